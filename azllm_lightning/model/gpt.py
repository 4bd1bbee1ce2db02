"""The model: the same weights, parameter names included, as `Qwen3ForCausalLM` of transformers.

Shape letters, here and in the other files that work on tensors:

    B  texts in a batch         H  query heads (n_head)
    T  tokens per text          K  key and value heads (n_kv_head)
    C  width (n_embd)           D  width of a head (head_dim)
    V  vocabulary (vocab_size)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model import cpu
from azllm_lightning.model.loss import next_token_loss, token_nll

CPU_BLOCK = 128
"""Queries per block of `attend_in_blocks`: the fastest of 64, 128, 256 at a context of 256."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis (arXiv:1910.07467), computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., size) of any dtype; the result has the same shape and dtype."""
        if cpu.by_hand(x):
            return cpu.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Dropout(nn.Dropout):
    """PyTorch's dropout, faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape; while training, `p` of its values are zero."""
        if self.training and 0 < self.p < 1 and cpu.by_hand(x):
            return cpu.dropout(x, self.p)
        return super().forward(x)


class Attention(nn.Module):
    """Causal attention with grouped key and value heads, QK-norm and rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_kv_head is not None
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend over x (B, T, C); cos and sin are (T, D)."""
        B, T, C = x.shape
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q = self.q_proj(x).view(B, T, -1, self.head_dim)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)
        q = norm_and_rotate(q, self.q_norm, cos, sin)  # (B, H, T, D)
        k = norm_and_rotate(k, self.k_norm, cos, sin)  # (B, K, T, D)
        y = attend(q.to(v.dtype), k.to(v.dtype), v)
        out: Tensor = self.o_proj(y.reshape(B, T, C))
        return out


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One layer: attention, then MLP, each with a norm before it and a residual around it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C); cos and sin (T, D)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Decoder(nn.Module):
    """Embeddings, layers and the last norm: everything but the head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, T) to the input of the head, (B, T, C)."""
        T = input_ids.shape[1]
        if len(self.cos) < T:
            raise ValueError(
                tr(
                    "{tokens:,} tokens do not fit the model's block_size={block_size}",
                    tokens=T,
                    block_size=len(self.cos),
                )
            )
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.dropout(self.embed_tokens(input_ids))
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class GPT(nn.Module):
    """A language model; `GPT(config)` is initialized by `init_weights`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Matrices from N(0, 0.02) as in GPT-2, norms one, the last matrix of each branch zero.

        A residual branch then starts by adding nothing (as in KellerJordan/modded-nanogpt), and the
        first loss is close to ln V.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.ones_(parameter)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The input of the head, (B, T, C), of input_ids (B, T); ValueError if T > block_size."""
        out: Tensor = self.model(input_ids)
        return out

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Logits (B, T, V) of input_ids (B, T), or with `labels` (B, T) the loss in nats, in fp32.

        labels[b, t] is the token after input_ids[b, t]. The loss is the mean over all tokens, a
        scalar; with reduction="none", for evaluation, it is that of each token, (B, T).
        """
        hidden = self.hidden(input_ids)
        if labels is None:
            logits: Tensor = self.lm_head(hidden)
            return logits
        hidden, targets = hidden.flatten(0, 1), labels.flatten()
        if reduction == "mean":
            return next_token_loss(hidden, self.lm_head.weight, targets)
        return token_nll(hidden, self.lm_head.weight, targets).view(labels.shape)


def rotary_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (arXiv:2104.09864), both (block_size, D) in fp32.

    The first D/2 sines are negative, as `rotate` needs them.
    """
    wavelength = config.rope_theta ** (
        torch.arange(0, config.head_dim, 2).float() / config.head_dim
    )
    angles = torch.arange(config.block_size).float()[:, None] / wavelength
    cos = angles.cos()
    sin = angles.sin()
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of x (..., T, D) by the angle of its position."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def norm_and_rotate(x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalize each head of x (B, T, H, D) and rotate it, as (B, H, T, D)."""
    if cpu.by_hand(x):
        return cpu.norm_and_rotate(x, norm.weight, cos, sin, norm.eps)
    return rotate(norm(x).transpose(1, 2), cos, sin)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (B, H, T, D) over k and v (B, K, T, D), as (B, T, H, D)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # enable_gqa=True would fall back to the slow kernel on a T4
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
    if q.device.type == "cuda":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    if cpu.by_hand(q):
        return cpu.attend(q, k, v).transpose(1, 2)
    return attend_in_blocks(q, k, v).transpose(1, 2)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), as (B, H, T, D), with a softmax in fp32.

    On a CPU this takes half the time of PyTorch's fused kernel, which was a quarter of a training
    step. Each block of queries is multiplied only with the keys that it may see.
    """
    q = q * q.shape[-1] ** -0.5
    blocks = []
    for start in range(0, q.shape[2], CPU_BLOCK):
        end = min(start + CPU_BLOCK, q.shape[2])
        scores = q[:, :, start:end] @ k[:, :, :end].mT
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(start + 1)
        weights = scores.float().masked_fill(later, -torch.inf).softmax(dim=-1)
        blocks.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(blocks, dim=2)
