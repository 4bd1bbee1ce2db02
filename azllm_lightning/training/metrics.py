"""Sums that make a true validation loss: over tokens, not over batches, and the same on any number of processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Negative log-likelihood summed over tokens, from which loss, perplexity and bits per byte follow.

    loss = sum of NLL / tokens (nats); perplexity = exp(loss); bits per byte = NLL of the text tokens / (ln 2 x UTF-8
    bytes they stand for): an end-of-text token gives context but has no bytes, so it is left out of the last.
    Sums are float64: a float32 sum over millions of tokens would round in the fifth digit.
    """

    full_state_update = False
    nll: Tensor
    text_nll: Tensor
    tokens: Tensor
    num_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "text_nll"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "num_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, label_bytes: Tensor) -> None:
        """Add a batch: per-token `nll` (B, T) in nats, and the UTF-8 bytes of each label (B, T), 0 for end-of-text."""
        self.nll += nll.sum(dtype=torch.float64)
        self.text_nll += nll.masked_fill(label_bytes == 0, 0).sum(dtype=torch.float64)
        self.tokens += nll.numel()
        self.num_bytes += label_bytes.sum()

    def compute(self) -> dict[str, float]:
        """`loss` (nats per token), `ppl`, and `bpb` (bits per byte)."""
        loss = float(self.nll) / float(self.tokens)
        return {
            "loss": loss,
            "ppl": perplexity(loss),
            "bpb": float(self.text_nll) / (math.log(2) * max(1, int(self.num_bytes))),
        }


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows, so that a diverged run is shown rather than crashes."""
    return math.inf if loss > 709 else math.exp(loss)
