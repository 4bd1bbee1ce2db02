"""The learning rate as a pure function of the step, so that a resume needs nothing but the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from azllm_lightning.settings import one_of


@dataclass(frozen=True)
class ScheduleConfig:
    """The settings of conf/schedule. `total_steps` None means the run's max_steps, settled at the first start."""

    name: str
    warmup_steps: int
    total_steps: int | None
    decay_ratio: float
    min_lr_ratio: float

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, ("cosine", "linear", "sqrt", "constant"))
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(
                f"schedule.total_steps={self.total_steps} must be at least 1, or null for trainer.max_steps"
            )
        if not 0 < self.decay_ratio <= 1:
            raise ValueError(f"schedule.decay_ratio={self.decay_ratio} must be above 0 and at most 1")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"schedule.min_lr_ratio={self.min_lr_ratio} is outside 0..1")


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """The share of the peak learning rate for the optimizer step number `step` (0 is the first).

    Warm-up rises linearly to 1 over `warmup_steps`; the rate stays there, falls to `min_lr_ratio` over the last
    `decay_ratio` of the steps up to `total_steps`, and stays there: along a half cosine (Loshchilov and Hutter 2017),
    a line, or 1 - sqrt (Hägele et al. 2024, arXiv:2405.18392; with a short fall, "warm-up, stable, decay").
    """
    assert config.total_steps is not None, "total_steps is settled before training"
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    start = max(config.warmup_steps, round(config.total_steps * (1 - config.decay_ratio)))
    progress = min(1.0, max(0.0, (step - start) / max(1, config.total_steps - start)))
    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "sqrt": 1 - math.sqrt(progress),
    }[config.name]
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
