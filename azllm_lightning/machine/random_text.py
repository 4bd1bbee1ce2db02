"""Prepared shards of random text, so that a measurement needs no download and no tokenizing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from azllm_lightning.data.shards import VERSION, Manifest, ShardWriter, Split
from azllm_lightning.data.tokenizer import Tokenizer

DOCUMENT = 512
"""Tokens per document, the end-of-text token included."""


def random_text(
    folder: Path,
    vocabulary: int | Tokenizer,
    num_documents: int,
    made_from: dict[str, Any] | None = None,
) -> None:
    """Write shards of random documents into `folder`, and their tokenizer: `vocabulary`, or one of
    so many tokens that no text was needed for.

    Half of the tokens follow Zipf's law (Zipf 1949; a share of about 1 / rank). The other half are
    the fixed successor of the token before, so that there is something to learn. `made_from` is
    what the manifest names as the source, for a run that names one.
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(vocabulary) if isinstance(vocabulary, int) else vocabulary
    vocab_size = tokenizer.vocab_size
    tokenizer.save(folder / "tokenizer.json")
    generator = np.random.default_rng(0)
    shares = 1 / (np.arange(1, vocab_size) + 2.7)
    cumulative = np.cumsum(shares / shares.sum())[:-1]
    successor = np.concatenate([[0], 1 + generator.permutation(vocab_size - 1)])
    splits: dict[str, Split] = {}
    for split, count in (("train", num_documents), ("val", max(4, num_documents // 50))):
        shape = (DOCUMENT, count)
        tokens = 1 + np.searchsorted(cumulative, generator.random(shape))  # 0 is end-of-text
        follows = generator.random(shape) < 0.5
        for i in range(1, DOCUMENT - 1):
            tokens[i] = np.where(follows[i], successor[tokens[i - 1]], tokens[i])
        tokens[-1] = tokenizer.eot_id
        with ShardWriter(folder, split) as writer:
            writer.write(tokens.T.ravel(), count, 2 * tokens.size)
            splits[split] = writer.close()
    Manifest(VERSION, tokenizer.fingerprint, vocab_size, splits, (), {}, made_from or {}).write(
        folder
    )


def _tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of bytes and pairs of bytes."""
    parts = json.loads(Tokenizer.train([], vocab_size).to_json())
    vocab = parts["model"]["vocab"]
    letters = sorted(vocab, key=vocab.get)[1:]  # all bytes; the first token is end-of-text
    pairs = [[a, b] for a in letters for b in letters][: vocab_size - len(letters) - 1]
    parts["model"]["merges"] = pairs
    vocab |= {a + b: 1 + len(letters) + i for i, (a, b) in enumerate(pairs)}
    tokenizer = Tokenizer.from_json(json.dumps(parts))
    assert tokenizer.vocab_size == vocab_size
    return tokenizer
