"""Attention that can copy at the start: one induction head, written into the first weights.

Text repeats itself: a name that a document has mentioned comes again, and what followed it follows
again. Models find this out late. Two heads have to work together for it (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv:2209.11895): one that
writes to each place which token stands before it, and one in a later layer that looks for the
places whose token before is the current one, and predicts what stands there. Neither is of use
without the other, so that a short training, or one on little text, may end before it has them.
Other weights that are worth starting from are in Trockman and Kolter 2023 (arXiv:2305.09828).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from azllm_lightning.model.gpt import GPT, Attention, Block

SHARED = 0.3
"""Length of what all embeddings have in common, relative to the mean embedding: what a head that
looks at a place, whatever stands there, recognizes."""

FASTEST = 3
"""Pairs of rotary dimensions that find the place before: the fastest, which tell places apart."""

PLACE_GAIN = 2.0
MATCH_GAIN = 1.5
"""Of the norms of queries and keys, in the dimensions of the two heads: how sure their attention
is."""

HEAD_RMS = 0.0065
"""Of the weights of an untied head. It starts as the embeddings, since copying a token means adding
its embedding to what the head reads; so small, since the first predictions must not be sure."""


@torch.no_grad()
def induction_heads(net: GPT, generator: torch.Generator) -> None:
    """Change the weights of `net`, which are those of `GPT.init_weights` but for the embeddings,
    so that it predicts, a little, what followed the current token earlier in the text.

    Only the first head of each of the first two layers changes, with the norms of its queries and
    keys, the embeddings by a direction that all have in common, and an untied head. A model of one
    layer, or of one token at a time, cannot do this, and stays as it is.
    """
    config = net.config
    if config.n_layer < 2 or config.block_size < 2:
        return
    table = net.model.embed_tokens.weight
    shared = _directions(1, config.n_embd, generator)[0]
    length = SHARED * float(table.norm(dim=1).mean())
    table += torch.outer(length - table @ shared, shared)
    rms = float(table.square().mean().sqrt())
    if not config.tie_embeddings:
        net.lm_head.weight.copy_(table * (HEAD_RMS / rms))
    first, second = (_attention(net.model.layers[i]) for i in (0, 1))
    rows = min(config.head_dim, config.n_embd - 1)
    current, before, copied = (
        _directions(rows, config.n_embd, generator, besides=shared) for _ in range(3)
    )
    _look_one_back(first, net.model.cos[1], net.model.sin[1], shared)
    _carry(first, current, before, rms)
    _match(second, current, before)
    _carry(second, copied, copied, rms)


def _attention(layer: nn.Module) -> Attention:
    assert isinstance(layer, Block)
    return layer.self_attn


def _look_one_back(attention: Attention, cos: Tensor, sin: Tensor, shared: Tensor) -> None:
    """Let the first head attend to the place before; cos and sin (D,) are those of place 1.

    Queries and keys are the same everywhere, and a key is turned by one place more, so that it
    points where the query of the next place does.
    """
    half = attention.head_dim // 2
    pairs = torch.arange(min(FASTEST, half))
    query = torch.zeros(attention.head_dim)
    query[pairs] = 1.0
    key = torch.zeros(attention.head_dim)
    key[pairs], key[half + pairs] = cos[pairs], sin[half + pairs]
    size = attention.head_dim**0.5 / len(pairs) ** 0.5
    attention.q_proj.weight[: len(query)] = torch.outer(query * size, shared)
    attention.k_proj.weight[: len(key)] = torch.outer(key * size, shared)
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[pairs] = norm.weight[half + pairs] = PLACE_GAIN


def _match(attention: Attention, current: Tensor, before: Tensor) -> None:
    """Let the first head attend to places whose token before is the current one: the part of the
    stream in the rows of `current` (D, C) here, and of `before` there.

    Only in the slower half of the rotary dimensions, so that it does not matter how far away.
    """
    half = attention.head_dim // 2
    slow = torch.arange(half // 2, half)
    slow = torch.cat((slow, half + slow))
    slow = slow[slow < len(current)]
    for projection, part in ((attention.q_proj, current), (attention.k_proj, before)):
        projection.weight[: attention.head_dim] = 0.0
        projection.weight[slow] = part[slow]
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[slow] = MATCH_GAIN


def _carry(attention: Attention, read: Tensor, written: Tensor, size: float) -> None:
    """Let the first head add what it finds in the rows of `read` to those of `written`, (D, C),
    at the size of an embedding.
    """
    rows = len(read)
    attention.v_proj.weight[:rows] = read
    attention.o_proj.weight[:, :rows] = size * written.T


def _directions(
    number: int, width: int, generator: torch.Generator, besides: Tensor | None = None
) -> Tensor:
    """Random unit vectors at right angles to each other, and to `besides`: (number, width)."""
    others = 0 if besides is None else 1
    random = torch.randn(width, number + others, generator=generator)
    if besides is not None:
        random[:, 0] = besides
    basis: Tensor = torch.linalg.qr(random).Q
    return basis[:, others:].T.contiguous()
