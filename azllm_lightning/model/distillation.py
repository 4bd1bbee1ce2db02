"""The loss of a student, which learns what its teachers predict in addition to the next token.

Hinton, Vinyals and Dean 2015 (arXiv:1503.02531), with the mean of several teachers' probabilities
as the target. In chunks, as in loss.py, whose shape letters these are: the logits of all models are
never all in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.model.loss import chunk_size, minus_onehot, product_dtype

Teacher = tuple[Tensor, Tensor]
"""The input of a teacher's head (N, C) and that head (V, C); C may be its own."""


def student_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, teachers: Sequence[Teacher], share: float
) -> Tensor:
    """(2,) in nats and fp32: the loss that a student minimizes, and `next_token_loss` of the same.

    The first is the cross-entropy with a target of which `share`, in [0, 1], is the mean
    probability of the `teachers`, at least one, and the rest the token of `labels` (N,); hidden
    (N, C) and weight (V, C) are the student's. Only the first has a gradient.
    """
    losses: Tensor = _StudentLosses.apply(hidden, weight, labels, teachers, share)  # type: ignore[no-untyped-call, unused-ignore]
    return losses


class _StudentLosses(torch.autograd.Function):
    """The gradient is computed with the loss, and kept without 1/N, as in `next_token_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        teachers: Sequence[Teacher],
        share: float,
    ) -> Tensor:
        dtype = product_dtype(hidden)
        head = weight.to(dtype)
        teachers = [(states.to(dtype), theirs.to(dtype)) for states, theirs in teachers]
        nll = torch.zeros((), dtype=torch.float32, device=hidden.device)
        taught = torch.zeros_like(nll)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_hidden = []
        rows = chunk_size(hidden)
        for first in range(0, len(labels), rows):
            chosen = slice(first, first + rows)
            h, y = hidden[chosen].to(dtype), labels[chosen].unsqueeze(1)
            log_probabilities = F.log_softmax((h @ head.t()).float(), dim=1)
            target = _mean_probabilities(teachers, chosen)
            nll -= log_probabilities.gather(1, y).sum()
            taught -= (log_probabilities * target).sum()
            difference = log_probabilities.exp_().sub_(target, alpha=share)
            grad_logits = minus_onehot(difference, y, dtype, 1 - share)
            grad_hidden.append(grad_logits @ head)
            grad_weight += grad_logits.t() @ h
            # Before there are those of the next chunk.
            del log_probabilities, target, difference, grad_logits
        ctx.save_for_backward(torch.cat(grad_hidden), grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return torch.stack(((1 - share) * nll + share * taught, nll)) / len(labels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        scale = grad_output[0] / len(grad_hidden)
        return (
            (grad_hidden.float() * scale).to(hidden_dtype),
            (grad_weight * scale).to(weight_dtype),
            None,
            None,
            None,
        )


def _mean_probabilities(teachers: Sequence[Teacher], chosen: slice) -> Tensor:
    """Of the tokens `chosen`, (n, V) in fp32."""
    total: Tensor | None = None
    for states, head in teachers:
        probabilities = F.softmax((states[chosen] @ head.t()).float(), dim=1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None, "a student has teachers"
    return total.div_(len(teachers))
