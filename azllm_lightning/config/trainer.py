"""The settings of conf/trainer: what a run does, counted in optimizer steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from azllm_lightning.config.strict import one_of


@dataclass(frozen=True)
class TrainerConfig:
    """How long a run lasts, on what, and how often it looks and saves. Steps are always optimizer steps."""

    max_steps: int
    accumulate_grad_batches: int
    gradient_clip_val: float
    val_every_steps: int
    checkpoint_every_steps: int
    checkpoint_every_minutes: float | None
    log_every_steps: int
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
    compile: bool | str
    accelerator: str
    devices: int | str
    strategy: str
    deterministic: bool
    deadline: str | None

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "accumulate_grad_batches",
            "val_every_steps",
            "checkpoint_every_steps",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least 1")
        if self.gradient_clip_val < 0:
            raise ValueError(
                f"trainer.gradient_clip_val={self.gradient_clip_val} must not be negative (0 = no clipping)"
            )
        if self.checkpoint_every_minutes is not None and self.checkpoint_every_minutes <= 0:
            raise ValueError(
                f"trainer.checkpoint_every_minutes={self.checkpoint_every_minutes} must be positive, or null"
            )
        if isinstance(self.compile, str):
            one_of("trainer.compile", self.compile, ("auto", "true", "false"))
        one_of("trainer.strategy", self.strategy, ("auto", "ddp", "ddp_notebook"))
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu", "cuda"))
        if (
            isinstance(self.devices, str)
            and self.devices != "auto"
            and not re.fullmatch(r"\d+(,\d+)*", self.devices)
        ):
            raise ValueError(
                f"trainer.devices={self.devices!r} is not a number, a list like '0,1', or auto"
            )
        if isinstance(self.devices, int) and self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices} must be at least 1")
