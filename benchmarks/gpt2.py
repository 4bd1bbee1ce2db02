"""GPT-2 with the architecture and the recipe of nanoGPT, in plain torch: what the benchmarks
compare with.

Architecture: Radford et al. 2019; the names of the weights are those of transformers'
GPT2LMHeadModel. Recipe: karpathy/nanoGPT (initialisation, AdamW with decay on matrices alone, exact
GELU, the loss over all logits at once). Shape letters: B batch, T tokens, C n_embd, V vocab_size, H
heads, D width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from azllm_lightning.data.cleaning import EOT
from azllm_lightning.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2; `bias` is of all linear layers but the head, and of the norms (nanoGPT
    trains without).
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True


class Attention(nn.Module):
    """Causal attention; queries, keys and values come from one product."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head, self.p = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = (
            self.c_attn(x).unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        )  # 3 x (B, H, T, D)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.p if self.training else 0.0
        )
        return self.c_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """One layer: attention, then MLP, each normed before and added after."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class GPT2(nn.Module):
    """A language model with learned positions and a tied head."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Matrices from N(0, 0.02), those that end a residual branch from N(0, 0.02 / sqrt(2
        n_layer)); biases zero.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)  # the gains of the norms are ones already

    def num_params(self) -> int:
        """Parameters in all, positions included, the tied table once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of input_ids (B, T), or with `labels` (B, T), the next tokens, their
        mean loss in nats.
        """
        layers = self.transformer
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = layers["drop"](layers["wte"](input_ids) + layers["wpe"](positions))
        for block in layers["h"]:
            x = block(x)
        logits = self.lm_head(layers["ln_f"](x))
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def configure_adamw(
    model: nn.Module, lr: float, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """nanoGPT's optimizer: AdamW with decay on matrices (embeddings too) and none on vectors,
    fused.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def save_hf(model: GPT2, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a folder that transformers loads as GPT2LMHeadModel: the same logits, and end-of-text
    as its start token.
    """
    from transformers import GPT2Config as Config
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    config = model.config
    peer = GPT2LMHeadModel(
        Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",
            bos_token_id=tokenizer.eot_id,
            eos_token_id=tokenizer.eot_id,
        )
    )
    # transformers keeps linear layers as Conv1D, transposed, and always has biases
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {
        name: weight.T if name.endswith(linear) else weight
        for name, weight in model.state_dict().items()
    }
    zeros = {
        name: torch.zeros_like(weight)
        for name, weight in peer.state_dict().items()
        if name.endswith("bias")
    }
    peer.load_state_dict({**zeros, **weights})
    peer.save_pretrained(folder)
    path = Path(folder) / "tokenizer.json"
    tokenizer.save(path)
    PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token=EOT, eos_token=EOT, unk_token=None
    ).save_pretrained(folder)
