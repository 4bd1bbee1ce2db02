"""The settings of conf/schedule."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning-rate schedule, as conf/schedule/power.yaml explains it.

    If `total_steps` is None, it becomes trainer.max_steps when the run first starts.
    """

    name: str
    warmup_steps: int
    total_steps: int | None
    decay_ratio: float
    min_lr_ratio: float
    branches: int = 1

    def __post_init__(self) -> None:
        problems = Problems("schedule")
        problems.require_choice(
            "name", self.name, ("power", "linear", "cosine", "sqrt", "constant")
        )
        warmup = self.warmup_steps
        problems.require(warmup >= 0, "warmup_steps", warmup, tr("at least 0"))
        total = self.total_steps
        wanted = tr("at least 1, or null for trainer.max_steps")
        problems.require(total is None or total >= 1, "total_steps", total, wanted)
        ratio = self.decay_ratio
        problems.require(0 < ratio <= 1, "decay_ratio", ratio, tr("above 0 and at most 1"))
        ratio = self.min_lr_ratio
        problems.require(0 <= ratio <= 1, "min_lr_ratio", ratio, tr("from 0 to 1"))
        problems.require(self.branches >= 1, "branches", self.branches, tr("at least 1"))
        ends = self.branches == 1 or self.name != "constant"
        wanted = tr("1 with schedule.name=constant, whose rate never falls")
        problems.require(ends, "branches", self.branches, wanted)
        problems.raise_if_any()
