"""The optimizer: one torch.optim.Optimizer whose groups cover every parameter exactly once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from azllm_lightning.settings import one_of


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings of conf/optimizer."""

    name: str
    lr: float
    weight_decay: float
    betas: tuple[float, ...] | list[float]
    eps: float

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, ("adamw",))
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be positive")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay} must not be negative")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")


def build_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with decay on matrices and none on vectors (norm gains)."""
    parameters = [p for p in net.parameters() if p.requires_grad]  # a tied head appears once
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    assert len(matrices) + len(vectors) == len(parameters)
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )
    # Lightning refuses to clip when a fused optimizer would unscale fp16 gradients itself; this makes the scaler do it.
    optimizer._step_supports_amp_scaling = False
    return optimizer
