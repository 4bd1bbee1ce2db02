"""The branches of a training: its last part run several times from one state, and the mean of the
weights that they end with.

Each reads other windows, with other dropout and replaced tokens, since all three follow from the
step. What the branches have learned in common stays in the mean; what one of them alone knows by
heart fades. Wortsman et al. 2022 (arXiv:2203.05482) average models that were tuned from the same
weights in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.training.schedule import branching, long_enough

Weights = dict[str, Tensor]


class Branches:
    """What a training with branches keeps besides the model that it trains, all of it in the memory
    of the CPU: the state that they begin with, and the sum of the weights of those that have ended.

    From the second branch on, the model is the mean of the ended branches and the present one: that
    is what is validated, saved and exported. The network has the weights of the present branch,
    except between `show_mean` and `hide_mean`.
    """

    def __init__(self, schedule: ScheduleConfig) -> None:
        assert schedule.total_steps is not None, "total_steps was resolved before training"
        self.schedule = schedule
        self.plan = branching(schedule.branches, schedule.total_steps)
        """None for a training without branches, for which nothing here does anything."""
        self.ended = 0
        """How many branches have ended."""
        self._start: Weights = {}
        self._start_optimizer: dict[int, Any] = {}
        self._sum: Weights = {}
        self._present: Weights = {}
        """The weights of the present branch while the network has the mean."""

    def before_step(self, step: int, net: nn.Module, optimizer: Optimizer) -> None:
        """After `step` steps: keep the state if the first branch begins, or go back to it if
        another one does.
        """
        if self.plan is None:
            return
        if step == self.plan.start:
            self._start = _weights(net)
            self._start_optimizer = _copied(optimizer.state_dict()["state"])
        if not self._start or self.plan.number(step) == self.ended:
            return
        ended = _weights(net)
        self._sum = {name: self._sum[name] + ended[name] for name in ended} if self._sum else ended
        self.ended += 1
        assert self.plan.number(step) == self.ended, "branches begin one after the other"
        _set_weights(net, self._start)
        _set_state(optimizer, self._start_optimizer)

    def show_mean(self, net: nn.Module) -> None:
        """Put the mean into the network, if a branch has ended."""
        if self.ended and not self._present:
            present = _weights(net)
            _set_weights(net, self._mean(present))
            self._present = present

    def hide_mean(self, net: nn.Module) -> None:
        """Put the weights of the present branch back."""
        if self._present:
            _set_weights(net, self._present)
            self._present = {}

    def save(self, checkpoint: dict[str, Any], net: nn.Module, prefix: str) -> None:
        """Make the weights of `checkpoint` the mean, and add to a full state what a resume needs.

        `prefix` is that of the network's parameters.
        """
        present = self._present
        if self.ended and not present:  # the network has the weights of the branch
            present = _weights(net)
            _replace(checkpoint["state_dict"], net, prefix, self._mean(present))
        if self._start and "optimizer_states" in checkpoint:
            assert self.plan is not None, "nothing is kept without branches"
            checkpoint["branches"] = {
                "plan": [self.plan.start, self.plan.steps],
                "ended": self.ended,
                "start": self._start,
                "start_optimizer": self._start_optimizer,
                "sum": self._sum,
                "present": present,
            }

    def load(self, checkpoint: dict[str, Any], step: int, net: nn.Module, prefix: str) -> None:
        """Continue after `step` steps from `checkpoint`, whose weights become those of its branch.

        A training whose branches begin later now, or that has none any more, goes on from the mean.
        Raises ValueError if they would have begun before `step`, and not where they did.
        """
        if self.plan is None or step <= self.plan.start:
            return
        saved = checkpoint.get("branches", {})
        check_branches(self.schedule, step, saved.get("plan"))
        self.ended = saved["ended"]
        self._start = saved["start"]
        self._start_optimizer = saved["start_optimizer"]
        self._sum = saved["sum"]
        if saved["present"]:
            _replace(checkpoint["state_dict"], net, prefix, saved["present"])

    def _mean(self, present: Weights) -> Weights:
        return {name: (self._sum[name] + present[name]) / (self.ended + 1) for name in present}


def kept_bytes(state: float, weights: float) -> float:
    """What branches add to a full state of `state` bytes, of which `weights` are the weights: the
    state that they begin with, the weights of one, and a sum of weights.
    """
    return state + 2 * weights


def check_branches(schedule: ScheduleConfig, step: int, begun: Sequence[int] | None) -> None:
    """Raise ValueError if the branches of `schedule` begin before `step`, and a run that is there
    has not begun them so: `begun` is the first step and the length of its own, None without any.
    """
    total = schedule.total_steps
    assert total is not None, "total_steps was resolved before training"
    plan = branching(schedule.branches, total)
    if plan is None or step <= plan.start or begun == [plan.start, plan.steps]:
        return
    raise ValueError(
        tr(
            "schedule.branches={branches}: with {total:,} steps the branches begin after step "
            "{start:,}, but this run is already at step {step:,} and has none from there. Set "
            "schedule.branches=1, or trainer.max_steps and schedule.total_steps to {longer:,} or "
            "more",
            branches=schedule.branches,
            total=total,
            start=plan.start,
            step=step,
            longer=long_enough(schedule.branches, step),
        )
    )


def _weights(net: nn.Module) -> Weights:
    """Copies of the parameters of `net` on the CPU, a shared one once."""
    return {name: p.detach().to("cpu", copy=True) for name, p in net.named_parameters()}


@torch.no_grad()
def _set_weights(net: nn.Module, weights: Weights) -> None:
    for name, p in net.named_parameters():
        p.copy_(weights[name])


@torch.no_grad()
def _set_state(optimizer: Optimizer, kept: dict[int, Any]) -> None:
    """Copy the state `kept` into that of `optimizer`, which needs no memory on the device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in kept.items():
        state = optimizer.state[parameters[number]]
        for name in values.keys() & state.keys():  # moments of other affixes have been dropped
            state[name].copy_(values[name])


def _replace(state: dict[str, Tensor], net: nn.Module, prefix: str, weights: Weights) -> None:
    """Replace the parameters of `net` in `state`, the one of a head that is tied too."""
    names = {id(p): name for name, p in net.named_parameters()}
    for name, p in net.named_parameters(remove_duplicate=False):
        state[prefix + name] = weights[names[id(p)]]


def _copied(value: Any) -> Any:
    """`value` with copies of its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value
