"""The settings of conf/optimizer: one dataclass per optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from azllm_lightning.config.strict import from_mapping, one_of


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings of conf/optimizer/adamw."""

    name: str
    lr: float
    weight_decay: float
    betas: tuple[float, ...] | list[float]
    eps: float

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, ("adamw", "muon"))
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be positive")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay} must not be negative")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")


@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """The settings of conf/optimizer/muon: lr, weight_decay and momentum for hidden matrices, the rest for AdamW."""

    momentum: float
    adam_lr: float
    adam_weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum} is outside [0, 1)")
        if not self.adam_lr > 0:
            raise ValueError(f"optimizer.adam_lr={self.adam_lr} must be positive")
        if self.adam_weight_decay < 0:
            raise ValueError(
                f"optimizer.adam_weight_decay={self.adam_weight_decay} must not be negative"
            )


def optimizer_config(values: Mapping[str, Any]) -> OptimizerConfig:
    """The settings of the optimizer that `values` names; ValueError for what it does not know."""
    muons = {field.name for field in fields(MuonConfig)} - {
        field.name for field in fields(OptimizerConfig)
    }
    if values.get("name") == "adamw" and (
        foreign := sorted(muons & set(values))
    ):  # an experiment may set them
        leave_out = " ".join(f"~optimizer.{key}" for key in foreign)
        raise ValueError(f"optimizer={values['name']} has no {', '.join(foreign)}: add {leave_out}")
    return from_mapping(
        MuonConfig if values.get("name") == "muon" else OptimizerConfig, values, "optimizer"
    )
