"""The optimizer: one torch.optim.Optimizer whose groups contain every parameter exactly once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig
from azllm_lightning.training.muon import MuonAdamW


def parameter_groups(net: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `net` in groups, with their settings.

    Matrices decay; vectors (the gains of norms) do not. With Muon, the token tables are a group of
    their own, because AdamW updates them with another learning rate.
    """
    # A tied head appears once.
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    vectors = [p for _, p in named if p.ndim < 2]
    tables = [
        p
        for name, p in named
        if p.ndim >= 2 and name.endswith(("embed_tokens.weight", "lm_head.weight"))
    ]
    hidden = [p for _, p in named if p.ndim >= 2 and not any(p is table for table in tables)]
    if isinstance(config, MuonConfig):
        adam: dict[str, Any] = {
            "kind": "adamw",
            "lr": config.adam_lr,
            "betas": tuple(config.betas),
            "eps": config.eps,
        }
        muon: dict[str, Any] = {"kind": "muon", "lr": config.lr, "momentum": config.momentum}
        groups = [
            {"params": hidden, "weight_decay": config.weight_decay, **muon},
            {"params": tables, "weight_decay": config.adam_weight_decay, **adam},
            {"params": vectors, "weight_decay": 0.0, **adam},
        ]
    else:
        groups = [
            {"params": [*tables, *hidden], "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": vectors, "lr": config.lr, "weight_decay": 0.0},
        ]
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted({id(p) for _, p in named}), "each parameter is in exactly one group"
    return groups


def build_optimizer(
    net: nn.Module, config: OptimizerConfig, muon_dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """`MuonAdamW`, or AdamW (Loshchilov and Hutter 2019), of the trainable parameters of `net`."""
    groups = parameter_groups(net, config)
    if isinstance(config, MuonConfig):
        return MuonAdamW(groups, muon_dtype)
    betas = (config.betas[0], config.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    # A fused optimizer would unscale fp16 gradients itself, and then Lightning (2.6) refuses to
    # clip them. With this flag, the scaler unscales.
    optimizer._step_supports_amp_scaling = False
    return optimizer
