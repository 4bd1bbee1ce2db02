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
    min_lr_ratio: float

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, ("cosine", "linear", "constant"))
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(
                f"schedule.total_steps={self.total_steps} must be at least 1, or null for trainer.max_steps"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"schedule.min_lr_ratio={self.min_lr_ratio} is outside 0..1")


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """The share of the peak learning rate for the optimizer step number `step` (0 is the first).

    Warm-up rises linearly to 1 over `warmup_steps`; then the rate falls to `min_lr_ratio` at `total_steps` along a
    half cosine (Loshchilov and Hutter 2017) or a line, and stays there.
    """
    assert config.total_steps is not None, "total_steps is settled before training"
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.total_steps - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
