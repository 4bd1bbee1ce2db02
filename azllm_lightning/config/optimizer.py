"""The settings of conf/optimizer: one dataclass per optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems, from_mapping


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What every optimizer has: its name, a learning rate, and weight decay for matrices."""

    hidden_moments: ClassVar[int]
    """Values that the optimizer stores per parameter of the layers' matrices."""

    name: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        problems = Problems("optimizer")
        problems.require_choice("name", self.name, CHOICES)
        problems.require(self.lr > 0, "lr", self.lr, tr("above 0"))
        decay = self.weight_decay
        problems.require(decay >= 0, "weight_decay", decay, tr("at least 0"))
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> OptimizerConfig:
        """The config of the optimizer that `values` names.

        Raises ValueError for settings that only another optimizer has.
        """
        name = values.get("name")
        chosen = CHOICES.get(name, AdamWConfig) if isinstance(name, str) else AdamWConfig
        other = {field.name for config in CHOICES.values() for field in fields(config)}
        foreign = sorted((other - {field.name for field in fields(chosen)}) & values.keys())
        if foreign:  # an experiment may set them for another optimizer
            raise ValueError(
                tr(
                    "optimizer={name} has no {keys}: add {removals}",
                    name=name,
                    keys=", ".join(foreign),
                    removals=" ".join(f"~optimizer.{key}" for key in foreign),
                )
            )
        return from_mapping(chosen, values, group)

    @property
    def shares_affixes(self) -> bool:
        """Whether tokens learn from those that are spelled like them."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW, as conf/optimizer/adamw.yaml explains it."""

    hidden_moments: ClassVar[int] = 2

    betas: tuple[float, ...] | list[float]
    eps: float

    def __post_init__(self) -> None:
        problems = Problems("optimizer")
        problems.attempt(super().__post_init__)
        problems.require(self.eps > 0, "eps", self.eps, tr("above 0"))
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        problems.require(is_pair, "betas", list(self.betas), tr("two numbers in [0, 1)"))
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class MuonConfig(AdamWConfig):
    """Muon, as conf/optimizer/muon.yaml explains it.

    lr, weight_decay and momentum are for hidden matrices; all other settings are for the AdamW that
    updates token tables and norms.
    """

    hidden_moments: ClassVar[int] = 1

    momentum: float
    adam_lr: float
    adam_weight_decay: float
    head_lr: float | None = None
    head_eps: float | None = None
    """None, as in runs that began before these were settings: those of the other tables."""
    affix_rate: float = 0.0
    """0 as in runs that began before this was a setting."""

    def __post_init__(self) -> None:
        problems = Problems("optimizer")
        problems.attempt(super().__post_init__)
        problems.require(0 <= self.momentum < 1, "momentum", self.momentum, tr("in [0, 1)"))
        problems.require(self.adam_lr > 0, "adam_lr", self.adam_lr, tr("above 0"))
        decay = self.adam_weight_decay
        problems.require(decay >= 0, "adam_weight_decay", decay, tr("at least 0"))
        rate = self.affix_rate
        problems.require(rate >= 0, "affix_rate", rate, tr("at least 0"))
        for key, value in self.head_settings().items():
            problems.require(value > 0, f"head_{key}", value, tr("above 0"))
        problems.raise_if_any()

    @property
    def shares_affixes(self) -> bool:
        """Whether tokens learn from those that are spelled like them."""
        return self.affix_rate > 0

    def head_settings(self) -> dict[str, float]:
        """What a head that is not tied has for itself: `lr`, `eps`, both, or nothing."""
        own = {"lr": self.head_lr, "eps": self.head_eps}
        return {key: value for key, value in own.items() if value is not None}


CHOICES: dict[str, type[OptimizerConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}
"""The settings of each optimizer, by its name."""
