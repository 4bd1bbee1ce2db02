"""Averages of the weights over the steps of a trial, the mean of its branches, and the look-ahead
along the average step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from trial_optimizer import TrialOptimizer

from azllm_lightning.training.schedule import branching


class Averages:
    """Exponential averages and means of the tail of the weights of `net`, as the settings `ema`,
    `ema_mix` and `tail` say.
    """

    def __init__(self, s: dict[str, Any], net: nn.Module) -> None:
        self.s = s
        self.weights = [p.detach() for p in net.parameters()]
        self.ema = {f"ema_{half:g}": (half, self._zeros()) for half in s["ema"]}
        self.total = dict.fromkeys(self.ema, 0.0)
        self.tail = {f"tail_{share:g}": (share, self._zeros()) for share in s["tail"]}
        self.count = dict.fromkeys(self.tail, 0.0)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.weights]

    @torch.no_grad()
    def update(self, progress: float, size: float) -> None:
        """After a step of `size` windows; `progress` is the share of the tokens that is done."""
        share = size / (self.s["steps"] * self.s["batch"])
        for name, (half, sums) in self.ema.items():
            keep = 0.5 ** (share / half)
            torch._foreach_lerp_(sums, self.weights, 1 - keep)
            self.total[name] = keep * self.total[name] + 1 - keep
        for name, (last, sums) in self.tail.items():
            if progress > 1 - last + 1e-9:
                torch._foreach_add_(sums, self.weights, alpha=size)
                self.count[name] += size

    def swapped(self) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
        """Each average's name, and a context in which the model has its weights."""
        for name, (_, sums) in self.ema.items():
            mean = torch._foreach_div(sums, self.total[name])
            yield name, self._using(list(mean))
            for share in self.s["ema_mix"]:
                yield (
                    f"{name}_mix_{share:g}",
                    self._using(
                        [w.lerp(m, share) for w, m in zip(self.weights, mean, strict=True)]
                    ),
                )
        for name, (_, sums) in self.tail.items():
            if self.count[name]:
                yield name, self._using(list(torch._foreach_div(sums, self.count[name])))

    @contextlib.contextmanager
    def _using(self, mean: list[Tensor]) -> Iterator[None]:
        own = [w.clone() for w in self.weights]
        torch._foreach_copy_(self.weights, mean)
        yield
        torch._foreach_copy_(self.weights, own)


class TrialBranches:
    """The branches of a trial, as azllm_lightning/training/branches.py has those of a training.

    What they go back to are the `parameters` and the state of the `optimizer`, copied in place, so
    that a recorded step finds its tensors.
    """

    def __init__(
        self, s: dict[str, Any], parameters: list[nn.Parameter], optimizer: TrialOptimizer
    ) -> None:
        self.plan = branching(s["branches"], s["steps"])
        self.weights = [p.detach() for p in parameters]
        self.optimizer = optimizer
        self.ended = 0
        self.sums = [torch.zeros_like(p) for p in self.weights] if self.plan else []
        self.start: list[Tensor] = []
        self.start_steps = 0

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Before step number `step` (0 is the first)."""
        if self.plan is None:
            return
        state = [*self.weights, *self.optimizer.tensors()]
        if step == self.plan.start:
            self.start = [tensor.clone() for tensor in state]
            self.start_steps = int(self.optimizer.steps)
        if self.plan.number(step) > self.ended:
            torch._foreach_add_(self.sums, self.weights)
            self.ended += 1
            torch._foreach_copy_(state, self.start)
            if isinstance(self.optimizer.steps, int):
                self.optimizer.steps = self.start_steps

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The model has the mean of the ended branches and the present one."""
        if not self.ended:
            yield
            return
        own = [w.clone() for w in self.weights]
        torch._foreach_add_(self.weights, self.sums)
        torch._foreach_div_(self.weights, self.ended + 1)
        yield
        torch._foreach_copy_(self.weights, own)


class LookAhead:
    """EMA-Nesterov (arXiv:2605.25395): each step starts from the weights plus a multiple of the
    average step.
    """

    def __init__(self, s: dict[str, Any], parameters: list[Tensor]) -> None:
        self.s = s
        self.parameters = [p.detach() for p in parameters]
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.old: list[Tensor] = []

    @torch.no_grad()
    def before(self, progress: float, factor: float) -> None:
        """Move the weights ahead."""
        self.old = [p.clone() for p in self.parameters]
        if self.s["look_ahead_from"] <= progress < self.s["look_ahead_until"]:
            torch._foreach_add_(self.parameters, self.mean, alpha=self.s["look_ahead"] * factor)

    @torch.no_grad()
    def after(self) -> None:
        """Take the step into the average."""
        moved = torch._foreach_sub(self.parameters, self.old)
        torch._foreach_lerp_(self.mean, moved, 1 - self.s["look_ahead_beta"])
