"""The model optimized for generation: one token at a time, with a KV cache.

Shape letters as in gpt.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from azllm_lightning.model.gpt import GPT, Block, RMSNorm, attend, rotate

ONE_THREAD = 2**20
"""If the keys of a layer have fewer elements, one thread computes attention: on a CPU, waking
another thread takes as long as the work, and ten times as long if other programs keep the cores
busy."""


LARGE = 2**19
"""Elements from which on a matrix is read from memory for each token rather than from a cache."""

FEW = 8
"""Up to so many vectors at once, reading a large matrix takes longer than the arithmetic."""


class _Matrix:
    """The stacked weights of linear layers with the same input: (sum of outputs, inputs).

    A CPU multiplies a few vectors by a large matrix as a batch of products with parts of its rows:
    for a single product, MKL reads with one core, and not as fast as it could (12 to 22 GB/s where
    the batch reads 29 to 37, on two cores of an AVX2 EPYC). A small matrix is stored by columns,
    which BLAS reads up to 1.8 times as fast for a single vector.
    """

    def __init__(self, first: nn.Linear, *others: nn.Linear) -> None:
        weight = first.weight.detach()
        if others:
            weight = torch.cat((weight, *(layer.weight.detach() for layer in others)))
        self.weight = weight
        self.parts = 1
        if weight.device.type == "cpu":
            if weight.numel() >= LARGE and weight.dtype == torch.float32:
                most = max(2, torch.get_num_threads())
                self.parts = max(n for n in range(1, most + 1) if len(weight) % n == 0)
            else:
                self.weight = weight.T.contiguous().T

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, T, inputs) to (B, T, outputs)."""
        B, T, size = x.shape
        if self.parts == 1 or B * T > FEW:
            return F.linear(x, self.weight)
        vectors = x.reshape(B * T, size).T.expand(self.parts, -1, -1)
        products = torch.bmm(self.weight.view(self.parts, -1, size), vectors)
        return products.flatten(0, 1).T.reshape(B, T, -1)


class _Layer(NamedTuple):
    """The weights of a Block, and its part of the cache."""

    input_norm: RMSNorm
    qkv: _Matrix  # ((H + 2 K) D, C)
    qk_norm: Tensor  # (H + K, D)
    out: _Matrix  # (C, C)
    mlp_norm: RMSNorm
    gate_up: _Matrix
    down: _Matrix
    keys: Tensor  # (B, K, capacity, D)
    values: Tensor


class CachedDecoder:
    """A GPT without dropout and gradients, for continuing B texts up to `capacity` tokens.

    Generating a token takes as long as reading every matrix once and starting many small
    operations. So what is applied to the same input is one operation, with copied matrices: one for
    queries, keys and values, one for gate and up. If the model's weights change, create a new
    CachedDecoder.
    """

    def __init__(self, model: GPT, batch_size: int, capacity: int) -> None:
        assert model.config.n_kv_head is not None
        assert capacity <= model.config.block_size
        self.length = 0  # tokens read so far; setting it to 0 starts new texts
        self.config = model.config
        self._decoder = model.model
        self._cache = (batch_size, model.config.n_kv_head, capacity, model.config.head_dim)
        self._layers = [self._pack(block) for block in model.model.layers]
        self._head = _Matrix(model.lm_head)

    def _pack(self, block: nn.Module) -> _Layer:
        assert isinstance(block, Block)
        attention = block.self_attn
        mlp = block.mlp
        q_norm = attention.q_norm.weight.expand(self.config.n_head, -1)
        k_norm = attention.k_norm.weight.expand(self._cache[1], -1)
        return _Layer(
            input_norm=block.input_layernorm,
            qkv=_Matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            qk_norm=torch.cat((q_norm, k_norm)).float(),
            out=_Matrix(attention.o_proj),
            mlp_norm=block.post_attention_layernorm,
            gate_up=_Matrix(mlp.gate_proj, mlp.up_proj),
            down=_Matrix(mlp.down_proj),
            keys=attention.k_proj.weight.new_empty(self._cache),
            values=attention.v_proj.weight.new_empty(self._cache),
        )

    @torch.inference_mode()
    def read(self, input_ids: Tensor) -> Tensor:
        """Logits (B, V), in fp32, of the token after input_ids (B, T).

        input_ids follow the `length` tokens read before: first a complete prompt, then one token
        at a time.
        """
        B, T = input_ids.shape
        _, K, capacity, D = self._cache
        H = self.config.n_head
        start = self.length
        end = self.length + T
        assert T == 1 or start == 0, "a prompt is read first and at once"
        assert end <= capacity, f"{end} tokens do not fit a cache of {capacity}"
        cos = self._decoder.cos[start:end, None]  # (T, 1, D)
        sin = self._decoder.sin[start:end, None]
        x = self._decoder.embed_tokens(input_ids)
        for layer in self._layers:
            qkv = layer.qkv(layer.input_norm(x)).view(B, T, -1, D)
            qk = F.rms_norm(qkv[:, :, :-K].float(), (D,), eps=self.config.norm_eps) * layer.qk_norm
            qk = rotate(qk, cos, sin).to(qkv.dtype)
            q = qk[:, :, :H]
            layer.keys[:, :, start:end] = qk[:, :, H:].transpose(1, 2)
            layer.values[:, :, start:end] = qkv[:, :, -K:].transpose(1, 2)
            keys = layer.keys[:, :, :end]
            values = layer.values[:, :, :end]
            if T == 1:
                y = _attend_one_token(q.reshape(B, K, H // K, D), keys, values)
            else:
                y = attend(q.transpose(1, 2), keys, values)
            x = x + layer.out(y.reshape(B, T, -1))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        self.length = end
        return self._head(self._decoder.norm(x[:, -1:]))[:, -1].float()


def _attend_one_token(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one token over all keys; q (B, K, H / K, D) has a group's heads as positions."""
    threads = torch.get_num_threads()
    if keys.numel() < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        return F.scaled_dot_product_attention(q, keys, values)
    finally:
        torch.set_num_threads(threads)
