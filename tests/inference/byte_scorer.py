"""A scorer without a model: a token per byte, each with the same loss."""

from __future__ import annotations

import torch

from azllm_lightning.inference.scoring import Scorer


def byte_scorer(start: list[int], nll: float, unknown: str, vocab_size: int) -> Scorer:
    """Each token costs `nll` nats; the letter `unknown` is one that the tokenizer does not know."""
    return Scorer(
        token_nll=lambda input_ids, labels: torch.full(labels.shape, nll),
        encode=lambda texts: [list(text.encode()) for text in texts],
        start=start,
        unscored_bytes=lambda text: 0 if start else 1,
        unknown_id=ord(unknown),
        vocab_size=vocab_size,
        block_size=8,
        device=torch.device("cpu"),
    )
