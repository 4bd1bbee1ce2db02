"""Norms, rotary positions, attention and dropout on a CPU, with gradients written by hand.

They compute what `gpt.py` does in about two thirds of the time, since autograd would pass over the
activations two to three times as often. Under bf16 autocast, sums and roots are those of fp32, as
they are there, and what goes into products or is kept for the gradients is bf16. Not for
torch.compile, which fuses the plain operations, and does not cache functions with gradients of
their own. Shape letters as in gpt.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries per block of attention: faster than 128 at contexts of 128 and 256."""


_of_thread = threading.local()


@contextlib.contextmanager
def random_numbers(seed: int) -> Iterator[None]:
    """A context in which this thread's `dropout` draws from a generator of its own."""
    _of_thread.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _of_thread.generator = None


def by_hand(x: Tensor) -> bool:
    """Whether this file's functions are for x: on a CPU in fp32, or under bf16 autocast."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        is_bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        return is_bf16 and x.dtype in (torch.float32, torch.bfloat16)
    return x.dtype == torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) divided by the root of its mean square and multiplied by weight (C,), in the type
    of the products that read it.
    """
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
    out: Tensor = _Norm.apply(x, weight.float(), eps, dtype)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def norm_and_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """`rms_norm`, then `gpt.rotate`: x (B, T, H, D), weight (D,), cos and sin (T, D) to
    (B, H, T, D), in the type of x.
    """
    tables = cos.float(), sin.float()
    out: Tensor = _NormAndRotate.apply(x, weight.float(), *tables, eps)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), as (B, H, T, D)."""
    out: Tensor = _Attend.apply(*(x.flatten(0, 1) for x in (q, k, v)))  # type: ignore[no-untyped-call, unused-ignore]
    return out.view(q.shape)


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with each value set to zero with a probability of `rate`, within 1 / 65,536, and the others
    scaled so that the mean stays.
    """
    out: Tensor = _Dropout.apply(x, rate)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_gradients(
    g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x, in `out` (which may be g), and of weight, for that of the normed x, g."""
    size = x.shape[-1]
    gx = (g * x).view(-1, size)
    along = (gx @ weight).view_as(inverse)
    grad_weight = gx.t() @ inverse.flatten()
    torch.mul(g, weight, out=out)
    out.mul_(inverse).addcmul_(x, inverse.pow(3).mul_(along).div_(size), value=-1)
    return out, grad_weight


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        inverse = _inverse_root(x.float(), eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        out = torch.empty_like(x, dtype=torch.float32)
        grad_x, grad_weight = _norm_gradients(g.float(), x.float(), weight, inverse, out)
        return grad_x.to(x.dtype), grad_weight, None, None


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        half = x.shape[-1] // 2
        x32 = x.float()
        inverse = _inverse_root(x32, eps)
        ctx.save_for_backward(x, weight, cos, sin, inverse)
        rotated = _add_rotated(x32.transpose(1, 2), cos * weight, sin * weight.roll(half))
        return rotated.mul_(inverse.transpose(1, 2)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, cos, sin, inverse = ctx.saved_tensors
        half = x.shape[-1] // 2
        g = g.float().transpose(1, 2)
        back = _add_rotated(g, cos[:, None], sin.roll(half, dims=-1)[:, None])
        grad_x, grad_weight = _norm_gradients(back, x.float(), weight, inverse, back)
        return grad_x.to(x.dtype), grad_weight, None, None, None


def _add_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + x.roll(D / 2) * sin, contiguous."""
    half = x.shape[-1] // 2
    out = torch.mul(x, cos, out=x.new_empty(x.shape))
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class _Attend(torch.autograd.Function):
    """Attention of q, k, v (N, T, D), where N is B H."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T = q.shape[1]
        q = q * q.shape[-1] ** -0.5
        out = torch.empty_like(q)
        weights = []
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            later = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            scores[:, :, start:].masked_fill_(later, -torch.inf)
            # In fp32 inside, but not its result, as that of softmax() would be under autocast.
            weights.append(torch.ops.aten._softmax(scores, -1, False))
            out[:, start:end] = torch.bmm(weights[-1], v[:, :end])
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *weights = ctx.saved_tensors
        g = g.contiguous()
        grad_q = torch.empty_like(q)
        grad_k = torch.zeros_like(k, dtype=torch.float32)
        grad_v = torch.zeros_like(v, dtype=torch.float32)
        for number, w in enumerate(weights):
            end = w.shape[2]
            block = slice(BLOCK * number, end)
            _add_product(grad_v[:, :end], w.mT, g[:, block])
            grad_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(g[:, block], v[:, :end].mT), w, -1, w.dtype
            )
            _add_product(grad_k[:, :end], grad_scores.mT, q[:, block])
            grad_q[:, block] = torch.bmm(grad_scores, k[:, :end])
        return grad_q.mul_(q.shape[-1] ** -0.5), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, which is fp32."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b))


class _Dropout(torch.autograd.Function):
    """Four values per random number: drawing them is most of the time of PyTorch's own dropout,
    which uses one core.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        numbers.random_(-(2**63), None, generator=getattr(_of_thread, "generator", None))
        dropped = min(round(65536 * rate), 65535)
        kept = torch.empty(x.numel(), dtype=x.dtype)
        torch.ge(numbers.view(torch.int16)[: x.numel()], dropped - 32768, out=kept)
        kept = kept.view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = 65536 / (65536 - dropped)  # rounded with each value, not once for all in bf16
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (g * kept).mul_(ctx.scale), None
