"""The settings of conf/schedule."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.config.strict import one_of


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
            raise ValueError(
                f"schedule.decay_ratio={self.decay_ratio} must be above 0 and at most 1"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"schedule.min_lr_ratio={self.min_lr_ratio} is outside 0..1")
