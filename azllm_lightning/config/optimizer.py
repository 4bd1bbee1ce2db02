"""The settings of conf/optimizer: one dataclass per optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems, from_mapping


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, as conf/optimizer/adamw.yaml explains it."""

    name: str
    lr: float
    weight_decay: float
    betas: tuple[float, ...] | list[float]
    eps: float

    def __post_init__(self) -> None:
        problems = Problems("optimizer")
        problems.require_choice("name", self.name, CHOICES)
        problems.require(self.lr > 0, "lr", self.lr, tr("above 0"))
        problems.require(self.eps > 0, "eps", self.eps, tr("above 0"))
        decay = self.weight_decay
        problems.require(decay >= 0, "weight_decay", decay, tr("at least 0"))
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        problems.require(fits, "betas", list(self.betas), tr("two numbers in [0, 1)"))
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> OptimizerConfig:
        """The config of the optimizer that `values` names; ValueError for settings it does not
        have.
        """
        name = values.get("name")
        chosen = CHOICES.get(name, OptimizerConfig) if isinstance(name, str) else OptimizerConfig
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


@dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon, as conf/optimizer/muon.yaml explains it.

    lr, weight_decay and momentum are for hidden matrices; all other settings are for the AdamW that
    updates token tables and norms.
    """

    momentum: float
    adam_lr: float
    adam_weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems("optimizer")
        problems.require(0 <= self.momentum < 1, "momentum", self.momentum, tr("in [0, 1)"))
        problems.require(self.adam_lr > 0, "adam_lr", self.adam_lr, tr("above 0"))
        decay = self.adam_weight_decay
        problems.require(decay >= 0, "adam_weight_decay", decay, tr("at least 0"))
        problems.raise_if_any()


CHOICES: dict[str, type[OptimizerConfig]] = {"adamw": OptimizerConfig, "muon": MuonConfig}
"""The settings of each optimizer, by its name; to add an optimizer, add it here first."""
