"""The learning rate as a pure function of the step, so that a resume needs nothing but the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from azllm_lightning.config.schedule import ScheduleConfig

POWER = 0.6
"""Exponent of "power": 4 % fewer tokens to a loss than with a line in short runs, and none more in
longer ones (benchmarks/LOG.md).
"""

BRANCH_SHARE = 0.2
"""Share of a training that its branches repeat. The mean of two that begin 40 % before the end is
no better than one of them (benchmarks/LOG.md, averages and ensembles of branches).
"""


@dataclass(frozen=True)
class Branching:
    """When the branches of a training begin: `count` of `steps` optimizer steps each, all of them
    from the state after step `start`.
    """

    start: int
    steps: int
    count: int

    @property
    def first_end(self) -> int:
        """The step at which the first branch ends, and the learning rate is at its lowest."""
        return self.start + self.steps

    @property
    def starts(self) -> list[int]:
        """The steps after which the later branches begin."""
        return [self.start + number * self.steps for number in range(1, self.count)]

    def number(self, step: int) -> int:
        """How many branches have ended before step number `step` (0 is the first)."""
        return min(max(0, (step - self.start) // self.steps), self.count - 1)

    def is_between(self, step: int) -> bool:
        """Whether a later branch has begun, and not ended, when `step` steps are done."""
        return self.first_end < step < self.start + self.count * self.steps


def branching(count: int, total_steps: int) -> Branching | None:
    """`count` branches of a training of `total_steps`; None if it has one, or is too short."""
    first = total_steps / (1 + BRANCH_SHARE * (count - 1))
    steps = max(1, round(BRANCH_SHARE * first))
    start = total_steps - count * steps
    return Branching(start, steps, count) if count > 1 and start > 0 else None


def long_enough(count: int, step: int) -> int:
    """The least `total_steps` with which `count` branches begin at `step` or later; `step` for one
    branch.
    """
    if count == 1:
        return step
    total = step
    while (plan := branching(count, total)) is None or plan.start < step:
        total += 1
    return total


def twice_as_long(count: int, steps: int) -> int:
    """The `total_steps` to extend a finished training to: twice as many, or as many as it takes for
    its `count` branches to begin again.
    """
    return max(2 * steps, long_enough(count, steps))


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """The factor on the peak learning rate for optimizer step number `step` (0 is the first).

    The warm-up is linear and reaches 1 after `warmup_steps`. The rate stays at 1, falls to
    `min_lr_ratio` during the last `decay_ratio` of the `total_steps`, and then stays there. It
    falls along a line to the POWER, a line, a half cosine (Loshchilov and Hutter 2017), or 1 - sqrt
    (Hägele et al. 2024, arXiv:2405.18392; with a short decay, "warm-up, stable, decay"). With
    `branches`, it does so by the end of the first, and each later one repeats the rates of that.
    """
    assert config.total_steps is not None, "total_steps was resolved before training"
    total = config.total_steps
    if (branches := branching(config.branches, total)) is not None:
        step -= branches.number(step) * branches.steps
        total = branches.first_end
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    start = max(config.warmup_steps, round(total * (1 - config.decay_ratio)))
    progress = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    shape = {
        "power": math.pow(1 - progress, POWER),
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "sqrt": 1 - math.sqrt(progress),
    }[config.name]
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
