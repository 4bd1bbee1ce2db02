"""The model and the loss of a trial: a GPT of ours whose initial weights or loss may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.distillation import student_losses
from azllm_lightning.model.gpt import GPT
from azllm_lightning.model.loss import next_token_loss
from azllm_lightning.training.causal_lm import derived_seed


class SecondToken(nn.Module):
    """What predicts the token after the next from the input of the head; only in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.proj.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        out: Tensor = self.proj(hidden)
        return out


def build_model(s: dict[str, Any], vocab_size: int, train: Tensor) -> tuple[GPT, nn.Module | None]:
    """The model, and what is added to it for the second token."""
    config = GPTConfig(
        vocab_size=vocab_size,
        block_size=s["block"],
        n_layer=s["layers"],
        n_head=s["heads"] or 2,
        n_kv_head=s["kv_heads"],
        n_embd=s["width"],
        intermediate_size=s["ffn"],
        dropout=s["dropout"],
        tie_embeddings=s["tied"],
        rope_theta=s["rope_theta"],
        norm_eps=s["norm_eps"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(s["seed"], "weights"))
        net = GPT(config)
        _change_weights(net, s, train)
    return net, SecondToken(s["width"]) if s["second_token"] else None


@torch.no_grad()
def _change_weights(net: GPT, s: dict[str, Any], train: Tensor) -> None:
    net.model.embed_tokens.weight.mul_(s["table_std"] / 0.02)
    if not s["tied"]:
        net.lm_head.weight.mul_(s["head_std"] / 0.02)
    for name, p in net.model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            if s["out_std"]:
                nn.init.normal_(p, std=s["out_std"])
        elif p.ndim == 2:
            p.mul_(s["hidden_std"] / 0.02)
        elif "layernorm" in name:
            p.fill_(s["branch_gain"])
    net.model.norm.weight.fill_(s["final_gain"])
    if s["unigram"] and not s["tied"]:
        # Every embedding gets the same entry in one place, and the head the log frequencies there.
        counts = torch.bincount(train[:256].flatten(), minlength=net.config.vocab_size) + 0.5
        logs = (counts / counts.sum()).log()
        table = net.model.embed_tokens.weight
        table[:, 0] = 2 * s["table_std"]
        root = table.square().mean(dim=1).sqrt().mean()
        net.lm_head.weight[:, 0] = (
            s["unigram"] * (logs - logs.mean()) / (2 * s["table_std"] / root) / s["final_gain"]
        )


def loss_of(
    net: GPT, extra: nn.Module | None, x: Tensor, y: Tensor, s: dict[str, Any], progress: float
) -> tuple[Tensor, Tensor]:
    """The loss that is minimized, and that of the next token alone, of tokens x (B, T) and the
    next y (B, T).
    """
    hidden = net.hidden(x)
    weight = net.lm_head.weight
    if s["z_loss"]:
        logits = net.lm_head(hidden).float().flatten(0, 1)
        plain = F.cross_entropy(logits, y.flatten())
        loss = plain + s["z_loss"] * logits.logsumexp(dim=1).square().mean()
    else:
        plain = loss = next_token_loss(hidden.flatten(0, 1), weight, y.flatten())
    if extra is not None:
        share = s["second_token"] * max(0.0, 1 - progress / s["second_until"])
        # Always computed, so that the optimizer's state has the same number of steps.
        ahead = extra(hidden[:, :-1]).flatten(0, 1)
        loss = loss + share * next_token_loss(ahead, weight, y[:, 1:].flatten())
    return loss, plain


def taught_loss(
    net: GPT, teachers: list[GPT], x: Tensor, y: Tensor, s: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """As `loss_of`, of a student."""
    hidden = net.hidden(x)
    losses = torch.zeros(2, device=x.device)
    for group, chosen in groups_of_texts(teachers, x, s["one_teacher"]):
        taught = []
        with torch.no_grad():
            for teacher in group:
                theirs = teacher.hidden(x[chosen]).flatten(0, 1) / s["teacher_temperature"]
                taught.append((theirs, teacher.lm_head.weight))
        states, labels = hidden[chosen].flatten(0, 1), y[chosen].flatten()
        found = student_losses(states, net.lm_head.weight, labels, taught, s["teacher_share"])
        losses = losses + found * (len(labels) / y.numel())
    minimized, nll = losses
    return minimized, nll


def groups_of_texts(
    teachers: list[GPT], x: Tensor, one_teacher: bool
) -> list[tuple[list[GPT], Tensor | slice]]:
    """Teachers, and which of the texts x (B, T) they read."""
    if not one_teacher:
        return [(teachers, slice(None))]
    numbers = x.sum(dim=1) % len(teachers)
    groups = [([teacher], numbers == number) for number, teacher in enumerate(teachers)]
    return [(group, chosen) for group, chosen in groups if chosen.any()]


def write_weights(s: dict[str, Any], net: nn.Module) -> None:
    """Keep the weights of a trial for its students."""
    folder = Path(s["keep_weights"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"config": net.config, "weights": net.state_dict()}, folder / f"{s['name']}.pt")


def read_weights(s: dict[str, Any], name: str) -> GPT:
    """The model of the trial `name`."""
    # A file of ours, not of others: the config is an object.
    kept = torch.load(Path(s["keep_weights"]) / f"{name}.pt", weights_only=False)
    net = GPT(kept["config"]).to(s["device"])
    net.load_state_dict(kept["weights"])
    return net.eval().requires_grad_(False)
