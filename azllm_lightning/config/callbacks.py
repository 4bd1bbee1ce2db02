"""The settings of conf/callbacks and conf/logger, including the user's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems, from_mapping


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a run counts as broken, and when as overfitting."""

    patience: int
    spike: float
    max_rollbacks: int
    overfit_rise: float

    def __post_init__(self) -> None:
        problems = Problems("callbacks.health")
        problems.require(self.patience >= 1, "patience", self.patience, tr("at least 1"))
        problems.require(self.spike > 0, "spike", self.spike, tr("above 0"))
        rollbacks = self.max_rollbacks
        problems.require(rollbacks >= 0, "max_rollbacks", rollbacks, tr("at least 0"))
        rise = self.overfit_rise
        problems.require(rise > 0, "overfit_rise", rise, tr("above 0"))
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """What the model writes after each validation, for TensorBoard."""

    prompts: list[str] | None
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        problems = Problems("callbacks.samples")
        wanted = tr("a list with at least one prompt, or null for the default prompts")
        problems.require(self.prompts != [], "prompts", self.prompts, wanted)
        tokens = self.max_new_tokens
        problems.require(tokens >= 0, "max_new_tokens", tokens, tr("at least 0 (0: no samples)"))
        wanted = tr("above 0 (the greedy text is written in any case)")
        problems.require(
            0 < self.temperature < float("inf"), "temperature", self.temperature, wanted
        )
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    """What watches a run. `custom` has the entries with a `_target_`: Lightning callbacks of the
    user.
    """

    early_stopping: bool
    early_stopping_patience: int
    health: HealthConfig
    samples: SamplesConfig
    custom: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = Problems("callbacks")
        patience = self.early_stopping_patience
        problems.require(patience >= 1, "early_stopping_patience", patience, tr("at least 1"))
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> CallbacksConfig:
        """The config of `values`; entries with a `_target_` are gathered in `custom`."""
        return from_mapping(CallbacksConfig, with_custom(values), group)


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Where curves go. `custom` has the entries with a `_target_`: the user's Lightning loggers.

    `wandb` and `trackio` are names of projects there. Runs of older versions have only
    `tensorboard`.
    """

    tensorboard: bool
    csv: bool = False
    wandb: str | None = None
    trackio: str | None = None
    custom: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = Problems("logger")
        wanted = tr("the name of a project")
        for name in ("wandb", "trackio"):
            project = getattr(self, name)
            problems.require(project is None or bool(project), name, project, wanted)
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> LoggerConfig:
        """The config of `values`; entries with a `_target_` are gathered in `custom`."""
        return from_mapping(LoggerConfig, with_custom(values), group)


def with_custom(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the entries that have a `_target_` gathered under "custom"."""
    custom = {key: value for key, value in values.items() if is_custom(value)}
    own = {key: value for key, value in values.items() if key not in custom}
    return {**own, "custom": custom} if custom else own


def is_custom(value: Any) -> bool:
    """Whether `value` describes an object of the user's own, by the class in `_target_`."""
    return isinstance(value, Mapping) and "_target_" in value
