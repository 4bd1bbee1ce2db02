"""The decoder once more, for writing: a few tokens at a time behind a KV cache. Shape letters as in gpt.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from azllm_lightning.model.gpt import GPT, Block, RMSNorm, attend, rotate

ONE_THREAD = 2**20
"""Numbers in a layer's keys, below which one thread reads them: on a CPU, waking another takes as long as the work, and
where other programs keep the cores busy, ten times as long."""


class _Layer(NamedTuple):
    """What `CachedDecoder` reads of a Block, and the layer's part of the cache."""

    input_norm: RMSNorm
    qkv: Tensor  # ((H + 2 K) D, C)
    qk_norm: Tensor  # (H + K, D)
    out: Tensor  # (C, C)
    mlp_norm: RMSNorm
    gate_up: Tensor
    down: Tensor
    keys: Tensor  # (B, K, capacity, D)
    values: Tensor


class CachedDecoder:
    """A GPT without dropout and gradients, laid out for continuing B texts up to `capacity` tokens.

    The time of a token goes into reading every matrix once and into starting many small operations. So what is applied
    to the same input is one operation, and matrices are copied: one for queries, keys and values, one for gate and up,
    and on a CPU all are stored by columns, which BLAS reads 1.5 to 1.8 times as fast for a single vector (measured:
    MKL on Zen 5). Make it anew after a change of the weights.
    """

    def __init__(self, model: GPT, batch_size: int, capacity: int) -> None:
        assert model.config.n_kv_head is not None
        assert capacity <= model.config.block_size
        self.length = 0  # tokens read so far; set to 0, the texts begin anew
        self.config = model.config
        self._decoder = model.model
        self._cache = (batch_size, model.config.n_kv_head, capacity, model.config.head_dim)
        self._layers = [self._lay_out(block) for block in model.model.layers]
        self._head = _matrix(model.lm_head)

    def _lay_out(self, block: nn.Module) -> _Layer:
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        q_norm = attention.q_norm.weight.expand(self.config.n_head, -1)
        k_norm = attention.k_norm.weight.expand(self._cache[1], -1)
        return _Layer(
            input_norm=block.input_layernorm,
            qkv=_matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            qk_norm=torch.cat((q_norm, k_norm)).float(),
            out=_matrix(attention.o_proj),
            mlp_norm=block.post_attention_layernorm,
            gate_up=_matrix(mlp.gate_proj, mlp.up_proj),
            down=_matrix(mlp.down_proj),
            keys=attention.k_proj.weight.new_empty(self._cache),
            values=attention.v_proj.weight.new_empty(self._cache),
        )

    @torch.inference_mode()
    def read(self, input_ids: Tensor) -> Tensor:
        """Logits (B, V), in fp32, of what comes after input_ids (B, T): a whole prompt first, then one token at a time.

        input_ids follow the `length` tokens that were read before.
        """
        (B, T), (_, K, capacity, D), H = input_ids.shape, self._cache, self.config.n_head
        start, end = self.length, self.length + T
        assert T == 1 or start == 0, "a prompt comes first and whole"
        assert end <= capacity, f"{end} tokens do not fit a cache of {capacity}"
        cos, sin = (
            self._decoder.cos[start:end, None],
            self._decoder.sin[start:end, None],
        )  # (T, 1, D)
        x = self._decoder.embed_tokens(input_ids)
        for layer in self._layers:
            qkv = F.linear(layer.input_norm(x), layer.qkv).view(B, T, -1, D)
            qk = F.rms_norm(qkv[:, :, :-K].float(), (D,), eps=self.config.norm_eps) * layer.qk_norm
            qk = rotate(qk, cos, sin).to(qkv.dtype)
            q = qk[:, :, :H]
            layer.keys[:, :, start:end] = qk[:, :, H:].transpose(1, 2)
            layer.values[:, :, start:end] = qkv[:, :, -K:].transpose(1, 2)
            keys, values = layer.keys[:, :, :end], layer.values[:, :, :end]
            if T == 1:
                y = _attend_singly(q.reshape(B, K, H // K, D), keys, values)
            else:
                y = attend(q.transpose(1, 2), keys, values)
            x = x + F.linear(y.reshape(B, T, -1), layer.out)
            gate, up = F.linear(layer.mlp_norm(x), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        self.length = end
        return F.linear(self._decoder.norm(x[:, -1]), self._head).float()


def _attend_singly(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one token, which sees all keys: q (B, K, H / K, D) has the query heads of a group as positions."""
    threads = torch.get_num_threads()
    if keys.numel() < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        return F.scaled_dot_product_attention(q, keys, values)
    finally:
        torch.set_num_threads(threads)


def _matrix(first: nn.Linear, *others: nn.Linear) -> Tensor:
    """The weights of linear layers with a common input, one below the other: (sum of outputs, inputs)."""
    weight = first.weight.detach()
    if others:
        weight = torch.cat((weight, *(layer.weight.detach() for layer in others)))
    return weight.T.contiguous().T if weight.device.type == "cpu" else weight
