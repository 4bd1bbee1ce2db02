"""The settings of conf/callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HealthConfig:
    """The settings of conf/callbacks under health."""

    patience: int
    spike: float
    max_rollbacks: int
    overfit_rise: float = 0.01  # runs of 0.1.0 have stored none

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"callbacks.health.patience={self.patience} must be at least 1")
        if self.spike <= 0:
            raise ValueError(f"callbacks.health.spike={self.spike} must be positive")
        if self.max_rollbacks < 0:
            raise ValueError(
                f"callbacks.health.max_rollbacks={self.max_rollbacks} must not be negative"
            )
        if self.overfit_rise <= 0:
            raise ValueError(f"callbacks.health.overfit_rise={self.overfit_rise} must be positive")


@dataclass(frozen=True)
class SamplesConfig:
    """The settings of conf/callbacks under samples."""

    prompts: list[str] | None
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        if self.prompts == []:
            raise ValueError(
                "callbacks.samples.prompts=[] has no prompt: null takes those of the project, "
                "callbacks.samples.max_new_tokens=0 writes no samples"
            )
        if self.max_new_tokens < 0:
            raise ValueError(
                f"callbacks.samples.max_new_tokens={self.max_new_tokens} must not be negative"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"callbacks.samples.temperature={self.temperature} must be above 0: what temperature 0 writes, "
                "the likeliest, stands beside it anyway"
            )


@dataclass(frozen=True)
class CallbacksConfig:
    """The settings of conf/callbacks; entries with a `_target_` are the user's own classes and not among them."""

    early_stopping: bool
    early_stopping_patience: int
    health: dict[str, Any]
    samples: dict[str, Any]

    def __post_init__(self) -> None:
        if self.early_stopping_patience < 1:
            raise ValueError(
                f"callbacks.early_stopping_patience={self.early_stopping_patience} must be at least 1"
            )
