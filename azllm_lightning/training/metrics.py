"""A validation loss that is a mean over tokens, not over batches, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Negative log-likelihood summed over tokens: loss, perplexity and bits per byte.

    loss = sum of NLL / tokens (nats); perplexity = exp(loss); bits per byte = NLL of the text
    tokens / (ln 2 x their UTF-8 bytes). The end-of-text token has no bytes; it is context only and
    is not scored there. Sums are float64, since a float32 sum over millions of tokens rounds in the
    fifth digit. With `sources`, there is also a loss for each of them.
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
        # The last element is for tokens of any other source.
        per_source = torch.zeros(len(self.sources) + 1, dtype=torch.float64)
        for name in ("source_nll", "source_tokens"):
            self.add_state(name, per_source.clone(), dist_reduce_fx="sum")

    def update(self, nll: Tensor, label_bytes: Tensor, sources: Tensor | None = None) -> None:
        """Add a batch: `nll` (B, T) in nats, and the UTF-8 bytes of each label (B, T), 0 for
        end-of-text.

        `sources` (B, T), integers: the index of each label's source in the list of sources, or the
        length of that list for any other source.
        """
        self.nll += nll.sum(dtype=torch.float64)
        self.text_nll += nll.masked_fill(label_bytes == 0, 0).sum(dtype=torch.float64)
        self.tokens += nll.numel()
        self.num_bytes += label_bytes.sum()
        if sources is not None:
            indices = sources.flatten().long()
            values = nll.flatten().double()
            self.source_nll.index_add_(0, indices, values)
            self.source_tokens.index_add_(0, indices, torch.ones_like(values))

    def compute(self) -> dict[str, float]:
        """`loss` (nats per token), `ppl`, `bpb` (bits per byte), and `loss_by_source/<source>` of
        each source with tokens.
        """
        loss = float(self.nll) / float(self.tokens)
        values = {
            "loss": loss,
            "ppl": perplexity(loss),
            "bpb": float(self.text_nll) / (math.log(2) * max(1, int(self.num_bytes))),
        }
        sums = zip(self.source_nll.tolist(), self.source_tokens.tolist(), strict=True)
        for source, (nll, tokens) in zip(self.sources, sums, strict=False):
            if tokens:
                values[f"loss_by_source/{source}"] = nll / tokens
        return values


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows, so that a diverged run does not crash."""
    return math.inf if loss > 709 else math.exp(loss)
