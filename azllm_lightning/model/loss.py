"""Next-token cross-entropy in fp32, in chunks, so that the logits of a batch are never all in
memory.

A batch of 12 x 512 tokens over a vocabulary of 32,000 has 786 MB of fp32 logits, and the plain path
needs about three times that. Shape letters as in gpt.py; N is the number of tokens, B T.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of `labels` under softmax(hidden @ weight.T), in nats, fp32.

    hidden (N, C) and weight (V, C) may have any floating dtype, and autocast chooses that of the
    products; labels (N,) are token ids in [0, V).
    """
    if not torch.is_grad_enabled():
        return token_nll(hidden, weight, labels).mean()
    loss: Tensor = _NextTokenLoss.apply(hidden, weight, labels)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats, (N,) in fp32; shapes as in `next_token_loss`.

    Meant for evaluation: with gradients enabled, autograd keeps the logits of all chunks.
    """
    rows = chunk_size(hidden)
    head = weight.to(product_dtype(hidden))  # once: autocast would convert it for each chunk
    return torch.cat(
        [
            F.cross_entropy(F.linear(h, head).float(), y, reduction="none")
            for h, y in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
        ]
    )


def chunk_size(hidden: Tensor) -> int:
    """Tokens per chunk: a CPU is fastest with what fits its cache, a GPU with more."""
    return 256 if hidden.device.type == "cpu" else 2048


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the head's products: that of autocast, else that of its input."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def minus_onehot(
    probabilities: Tensor, labels: Tensor, dtype: torch.dtype, height: float = 1.0
) -> Tensor:
    """probabilities (N, V) in fp32 minus `height` times the one-hot rows of labels (N, 1), in
    `dtype`; overwrites `probabilities`.
    """
    if not torch.compiler.is_compiling():
        at_labels = probabilities.gather(1, labels) - height
        return probabilities.scatter_(1, labels, at_labels).to(dtype)
    # A comparison is fused with what comes before and after it, so that the gradient is never
    # written in fp32; a scatter is not, where it has to be deterministic.
    columns = torch.arange(probabilities.shape[1], device=probabilities.device)
    onehot = (columns == labels).to(probabilities.dtype)
    return probabilities.sub_(onehot, alpha=height).to(dtype)


class _NextTokenLoss(torch.autograd.Function):
    """Computes the gradient of each chunk while its logits exist, so nothing is computed twice.

    The idea is Liger Kernel's fused linear cross-entropy (arXiv:2410.10989). Here the gradient of
    the logits is kept as softmax - onehot, and 1/N and the loss scale are applied in fp32 in the
    backward pass, which keeps fp16 from underflow and overflow.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        dtype = product_dtype(hidden)
        head = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_hidden = []
        rows = chunk_size(hidden)
        for h, y in zip(
            torch.split(hidden.to(dtype), rows), torch.split(labels.unsqueeze(1), rows), strict=True
        ):
            logits = (h @ head.t()).float()
            logits -= logits.amax(dim=1, keepdim=True)
            label_logits = logits.gather(1, y)
            exponentials = logits.exp_()
            total = exponentials.sum(dim=1, keepdim=True)
            loss += (total.log() - label_logits).sum()
            grad_logits = minus_onehot(exponentials.div_(total), y, dtype)
            grad_hidden.append(grad_logits @ head)
            if dtype == torch.float32:
                grad_weight.addmm_(grad_logits.t(), h)
            else:
                grad_weight += grad_logits.t() @ h
            del logits, exponentials, grad_logits  # before there are those of the next chunk
        ctx.save_for_backward(torch.cat(grad_hidden), grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss / len(labels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        scale = grad_output / len(grad_hidden)
        return (
            (grad_hidden.float() * scale).to(hidden_dtype),
            (grad_weight * scale).to(weight_dtype),
            None,
        )
