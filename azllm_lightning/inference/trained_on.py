"""How much of a text that is scored is a model's own training text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from azllm_lightning.data.corpus import Document
from azllm_lightning.data.shards import TokenShards
from azllm_lightning.data.tokenizer import Tokenizer

CHUNK_TOKENS = 1 << 20


class Overlap:
    """Compares documents with the training text that is prepared in `folder`.

    Raises ValueError for a folder without it, and for damaged shards.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(folder)
        self._shards = TokenShards.open(folder, "train", self._tokenizer)
        self._sizes: dict[bytes, int] = {}

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, each remembered when it is taken: a pipe can be read only once."""
        for document in documents:
            (ids,) = self._tokenizer.encode_batch([document.text])
            digest = _digest(np.asarray(ids, np.uint16))
            size = len(document.text.encode("utf-8"))
            self._sizes[digest] = self._sizes.get(digest, 0) + size
            yield document

    def share(self) -> float:
        """The share of these documents, by bytes and in [0, 1], whose tokens are those of a
        document of the training text.
        """
        digests = map(_digest, self._training_documents())
        trained = {digest for digest in digests if digest in self._sizes}
        return sum(self._sizes[digest] for digest in trained) / max(1, sum(self._sizes.values()))

    def _training_documents(self) -> Iterator[np.ndarray]:
        """The ids of each, without the end-of-text token."""
        rest = np.empty(0, np.uint16)
        for start in range(0, len(self._shards), CHUNK_TOKENS):
            tokens = self._shards.read(start, min(CHUNK_TOKENS, len(self._shards) - start))
            tokens = np.concatenate([rest, tokens])
            ends = np.flatnonzero(tokens == self._tokenizer.eot_id) + 1
            *ended, rest = np.split(tokens, ends)
            yield from (ids[:-1] for ids in ended)


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
