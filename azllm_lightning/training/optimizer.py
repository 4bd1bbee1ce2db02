"""The optimizer: one torch.optim.Optimizer whose groups contain every parameter exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from azllm_lightning.config.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.training.affixes import Affixes
from azllm_lightning.training.muon import MuonAdamW


def parameter_groups(net: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `net` in groups, with their settings.

    Matrices decay; vectors (the gains of norms) do not. With Muon, the token tables are a group of
    their own, because AdamW updates them with another learning rate, and so is a head with a rate
    or an eps of its own. A tied head appears once, among the tables.
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    vectors = [p for _, p in named if p.ndim < 2]
    matrices = {name: p for name, p in named if p.ndim >= 2}
    embeddings = [p for name, p in matrices.items() if name.endswith("embed_tokens.weight")]
    head = [p for name, p in matrices.items() if name.endswith("lm_head.weight")]
    tables = [*embeddings, *head]
    hidden = [p for p in matrices.values() if not any(p is table for table in tables)]
    if isinstance(config, MuonConfig):
        groups = _muon_groups(config, hidden, embeddings, head, vectors)
    else:
        assert isinstance(config, AdamWConfig)
        groups = _adamw_groups(config, [*tables, *hidden], vectors)
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted({id(p) for _, p in named}), "each parameter is in exactly one group"
    return groups


def _muon_groups(
    config: MuonConfig,
    hidden: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    head: Sequence[Tensor],
    vectors: Sequence[Tensor],
) -> list[dict[str, Any]]:
    muon: dict[str, Any] = {"kind": "muon", "lr": config.lr, "momentum": config.momentum}
    adam: dict[str, Any] = {
        "kind": "adamw",
        "lr": config.adam_lr,
        "betas": tuple(config.betas),
        "eps": config.eps,
    }
    tables: dict[str, Any] = {
        **adam,
        "weight_decay": config.adam_weight_decay,
        "affix_rate": config.affix_rate,
    }
    groups = [
        {"params": hidden, "weight_decay": config.weight_decay, **muon},
        {"params": [*embeddings, *head], **tables},
        {"params": vectors, "weight_decay": 0.0, **adam},
    ]
    own = config.head_settings()
    if head and own:
        groups[1]["params"] = embeddings
        groups.append({"params": head, **tables, **own})
    return groups


def _adamw_groups(
    config: AdamWConfig, matrices: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[dict[str, Any]]:
    # In the groups, and not only in the constructor: a resume replaces what the groups have.
    adam = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    return [
        {"params": matrices, "weight_decay": config.weight_decay, **adam},
        {"params": vectors, "weight_decay": 0.0, **adam},
    ]


def build_optimizer(
    net: nn.Module,
    config: OptimizerConfig,
    muon_dtype: torch.dtype = torch.float32,
    process_group: dist.ProcessGroup | None = None,
    tokenizer: Tokenizer | None = None,
) -> torch.optim.Optimizer:
    """`MuonAdamW`, or AdamW (Loshchilov and Hutter 2019), of the trainable parameters of `net`.

    `process_group`: the processes among which Muon's work is shared out; None for one process.
    `tokenizer`: that of the token tables; without it, tokens share nothing by their affixes.
    """
    groups = parameter_groups(net, config)
    if isinstance(config, MuonConfig):
        affixes = Affixes.of(tokenizer) if tokenizer and config.shares_affixes else None
        return MuonAdamW(groups, muon_dtype, process_group, affixes)
    optimizer = torch.optim.AdamW(groups, fused=True)
    # A fused optimizer would unscale fp16 gradients itself, and then Lightning (2.6) refuses to
    # clip them. With this flag, the scaler unscales.
    optimizer._step_supports_amp_scaling = False
    return optimizer
