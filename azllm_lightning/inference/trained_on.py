"""How much of a text that is scored is a model's own training text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from azllm_lightning.data.corpus import Document
from azllm_lightning.data.shards import TokenShards
from azllm_lightning.data.tokenizer import Tokenizer

CHUNK_TOKENS = 1 << 20
DOCUMENTS_AT_ONCE = 256


def trained_share(folder: Path, documents: Iterable[Document]) -> float:
    """The share of `documents`, by bytes and in [0, 1], whose tokens are those of a document of the
    training text that is prepared in `folder`.

    Raises ValueError for damaged shards.
    """
    tokenizer = Tokenizer.from_file(folder)
    shards = TokenShards.open(folder, "train", tokenizer)
    sizes: dict[bytes, int] = {}
    remaining = iter(documents)
    while texts := [document.text for document in islice(remaining, DOCUMENTS_AT_ONCE)]:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            digest = _digest(np.asarray(ids, np.uint16))
            sizes[digest] = sizes.get(digest, 0) + len(text.encode("utf-8"))
    total = sum(sizes.values())
    found = sum(sizes.pop(_digest(ids), 0) for ids in _documents(shards, tokenizer.eot_id))
    return found / max(1, total)


def _documents(shards: TokenShards, eot_id: int) -> Iterator[np.ndarray]:
    """The ids of each document, without the end-of-text token."""
    rest = np.empty(0, np.uint16)
    for start in range(0, len(shards), CHUNK_TOKENS):
        tokens = shards.read(start, min(CHUNK_TOKENS, len(shards) - start))
        tokens = np.concatenate([rest, tokens])
        *ended, rest = np.split(tokens, np.flatnonzero(tokens == eot_id) + 1)
        yield from (ids[:-1] for ids in ended)


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
