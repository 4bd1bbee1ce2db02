"""Sums that make a true validation loss: over tokens, not over batches, and the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Negative log-likelihood summed over tokens, from which loss, perplexity and bits per byte follow.

    loss = sum of NLL / tokens (nats); perplexity = exp(loss); bits per byte = NLL of the text tokens / (ln 2 x UTF-8
    bytes they stand for): an end-of-text token gives context but has no bytes, so it is left out of the last.
    Sums are float64: a float32 sum over millions of tokens would round in the fifth digit. With `sources`, the loss of
    each is told too.
    """

    full_state_update = False
    nll: Tensor
    text_nll: Tensor
    tokens: Tensor
    num_bytes: Tensor
    source_nll: Tensor
    source_tokens: Tensor

    def __init__(self, sources: Sequence[str] = ()) -> None:
        super().__init__()
        self.sources = list(sources)
        for name in ("nll", "text_nll"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "num_bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in (
            "source_nll",
            "source_tokens",
        ):  # the last place is for tokens of none of the sources
            self.add_state(
                name, torch.zeros(len(self.sources) + 1, dtype=torch.float64), dist_reduce_fx="sum"
            )

    def update(self, nll: Tensor, label_bytes: Tensor, sources: Tensor | None = None) -> None:
        """Add a batch: per-token `nll` (B, T) in nats, and the UTF-8 bytes of each label (B, T), 0 for end-of-text.

        `sources` (B, T), integers: the place of each label's source in the list of sources, its length for none.
        """
        self.nll += nll.sum(dtype=torch.float64)
        self.text_nll += nll.masked_fill(label_bytes == 0, 0).sum(dtype=torch.float64)
        self.tokens += nll.numel()
        self.num_bytes += label_bytes.sum()
        if sources is not None:
            places, values = sources.flatten().long(), nll.flatten().double()
            self.source_nll.index_add_(0, places, values)
            self.source_tokens.index_add_(0, places, torch.ones_like(values))

    def compute(self) -> dict[str, float]:
        """`loss` (nats per token), `ppl`, `bpb` (bits per byte), and `loss_by_source/<source>` of those with tokens."""
        loss = float(self.nll) / float(self.tokens)
        return {
            "loss": loss,
            "ppl": perplexity(loss),
            "bpb": float(self.text_nll) / (math.log(2) * max(1, int(self.num_bytes))),
            **{
                f"loss_by_source/{source}": nll / tokens
                for source, nll, tokens in zip(
                    self.sources,
                    self.source_nll[:-1].tolist(),
                    self.source_tokens[:-1].tolist(),
                    strict=True,
                )
                if tokens
            },
        }


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows, so that a diverged run is shown rather than crashes."""
    return math.inf if loss > 709 else math.exp(loss)
