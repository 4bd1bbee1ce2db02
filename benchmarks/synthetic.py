"""Prepared shards of random text, so that a benchmark of speed needs no download and no tokenizing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from azllm_lightning.data.shards import VERSION, Manifest, ShardWriter, Split
from azllm_lightning.data.tokenizer import Tokenizer


def synthetic_data(folder: Path, vocab_size: int, num_documents: int) -> None:
    """Prepared shards of random documents of 511 tokens and end-of-text, and a tokenizer with as many tokens.

    Half of the tokens follow Zipf's law (Zipf 1949; a share of about 1 / rank), and half are the fixed successor of the
    token before: something to learn in a few hundred steps, without a download.
    """
    folder.mkdir(parents=True)
    parts = json.loads(Tokenizer.train([], vocab_size).to_json())
    letters = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].get)[
        1:
    ]  # all bytes, after end-of-text
    pairs = [[a, b] for a in letters for b in letters][: vocab_size - len(letters) - 1]
    parts["model"]["merges"] = pairs
    parts["model"]["vocab"] |= {a + b: 1 + len(letters) + i for i, (a, b) in enumerate(pairs)}
    tokenizer = Tokenizer.from_json(json.dumps(parts))
    assert tokenizer.vocab_size == vocab_size
    tokenizer.save(folder / "tokenizer.json")
    generator = np.random.default_rng(0)
    shares = 1 / (np.arange(1, vocab_size) + 2.7)
    cumulative = np.cumsum(shares / shares.sum())[:-1]
    successor = np.concatenate([[0], 1 + generator.permutation(vocab_size - 1)])
    splits: dict[str, Split] = {}
    for split, count in (("train", num_documents), ("val", max(4, num_documents // 50))):
        tokens = 1 + np.searchsorted(cumulative, generator.random((512, count)))  # 0 is end-of-text
        follows = generator.random((512, count)) < 0.5
        for i in range(1, 511):
            tokens[i] = np.where(follows[i], successor[tokens[i - 1]], tokens[i])
        tokens[511] = tokenizer.eot_id
        with ShardWriter(folder, split) as writer:
            writer.write(tokens.T.ravel(), count, 2 * tokens.size)
            splits[split] = writer.close()
    Manifest(VERSION, tokenizer.fingerprint, vocab_size, splits, (), {}, {}).write(folder)
