"""Steps of a trial as CUDA graphs: launching a step of a small model takes several times as long as
the step itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One update by tokens x and the next y, both (B, T), and the factor on learning rates, a tensor
without dimensions; returns the loss."""

EAGER_STEPS = 3
"""Before a step is recorded, so that all state is there."""


class RecordedUpdate:
    """`update`: its first steps run as usual, the next one is recorded, and from then on replayed.

    What `update` reads beside its arguments must be in the same tensors at each step. All steps
    must have the same shapes and run in `stream`. On a CPU (stream None) nothing is recorded.
    """

    def __init__(self, update: Update, stream: torch.cuda.Stream | None) -> None:
        self.update = update
        self.stream = stream
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.arguments: list[Tensor] = []
        self.loss = torch.zeros(())

    def __call__(self, x: Tensor, y: Tensor, factor: float) -> Tensor:
        """One step."""
        if not self.arguments:
            self.arguments = [x.clone(), y.clone(), torch.zeros((), device=x.device)]
        tokens, following, kept_factor = self.arguments
        tokens.copy_(x)
        following.copy_(y)
        kept_factor.fill_(factor)
        self.steps += 1
        if self.stream is None or self.steps <= EAGER_STEPS:
            return self.update(*self.arguments)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.loss = self.update(*self.arguments)
        self.graph.replay()
        return self.loss.clone()


def can_record(s: dict[str, Any]) -> bool:
    """Whether all steps of the trial with the settings `s` do the same."""
    return not (
        s["batch_plan"]
        or s["length_plan"]
        or s["second_token"]
        or s["one_teacher"]
        or s["look_ahead"]
        or s["soap"]
        or s["momentum_start"] is not None
        or s["momentum_end"] is not None
        or s["decay_schedule"] != "lr"
    )
