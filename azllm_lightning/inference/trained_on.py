"""How much of a text that is scored is a model's own training text.

Runs of tokens are compared, not documents: a chapter of a book that was trained on is not one of
the documents that the book was split into. Each run is one number, its polynomial modulo 2**64
(Karp and Rabin, 1987), so that a chunk of text is compared in a few operations on arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.corpus import Document
from azllm_lightning.data.progress import Progress
from azllm_lightning.data.shards import TokenShards
from azllm_lightning.data.tokenizer import Tokenizer

RUN_TOKENS = 32
"""Tokens of a run: some twenty words. Unrelated text has no such run in common with the training
text, laws held out have 3 % of theirs, and excerpts of it 99.8 % (benchmarks/LOG.md).
"""

PART_TOKENS = 1 << 22
"""The scored text is compared with all of the training text once per this many tokens of it, which
take some 300 MB of memory meanwhile.
"""

_NUMBERS = np.random.default_rng(0).integers(0, 1 << 64, 1 << 16, np.uint64)  # of each token
_BASE = 0x9E3779B97F4A7C15  # any odd number that is 3 or 5 modulo 8 repeats its powers late


class Overlap:
    """Compares documents with the training text that is prepared in `folder`.

    Raises ValueError for a folder without it, and for damaged shards. Keeps 2 bytes per token of
    the documents.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(folder)
        self._shards = TokenShards.open(folder, "train", self._tokenizer)
        self._parts: list[array[int]] = []

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, each remembered when it is taken: a pipe can be read only once."""
        end = self._tokenizer.eot_id
        for document in documents:
            if not self._parts or len(self._parts[-1]) >= PART_TOKENS:
                self._parts.append(array("H", [end]))
            (ids,) = self._tokenizer.encode_batch([document.text])
            self._parts[-1].extend([*ids, end])
            yield document

    def share(self) -> float:
        """The share of these documents, by bytes and in [0, 1], that is training text: tokens in a
        run of RUN_TOKENS or more that the training text has, too, within one document. A shorter
        document is training text if it is one there.
        """
        sizes = self._tokenizer.token_bytes.astype(np.int64)
        trained = 0
        total = 0
        with Progress(tr("training text"), 2 * len(self._shards) * len(self._parts)) as progress:
            for part in self._parts:
                tokens = np.frombuffer(part, np.uint16)
                total += int(sizes[tokens].sum())
                trained += int(sizes[tokens[self._is_trained(tokens, progress)]].sum())
        return trained / max(1, total)

    def _is_trained(
        self, tokens: npt.NDArray[np.uint16], progress: Progress
    ) -> npt.NDArray[np.bool_]:
        """Whether each token (N,) is training text."""
        end = self._tokenizer.eot_id
        runs = _runs(tokens, end)
        wanted = np.unique(runs.hashes)
        found = np.zeros(len(wanted), np.bool_)
        rest = np.array([end], np.uint16)
        for chunk in self._shards.chunks():
            known = np.concatenate([rest, chunk])
            # Searched for in order, which is kinder to the processor's caches.
            hashes = np.sort(_runs(known, end).hashes)
            at = np.searchsorted(wanted, hashes)
            found[at[wanted.take(at, mode="clip") == hashes]] = True
            rest = known[-RUN_TOKENS:]  # the longest run has one token more
            progress.add(2 * len(chunk))
        is_found = found[np.searchsorted(wanted, runs.hashes)]
        length = len(tokens) + 1
        edges = np.bincount(runs.starts[is_found], minlength=length)
        edges -= np.bincount(runs.stops[is_found], minlength=length)
        covered: npt.NDArray[np.bool_] = np.cumsum(edges)[:-1] > 0
        return covered


class _Runs(NamedTuple):
    """Tokens [start, stop) of each run, and its hash (N,)."""

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]


def _runs(tokens: npt.NDArray[np.uint16], end: int) -> _Runs:
    """The runs of RUN_TOKENS tokens without an `end` of text, and the documents that are shorter,
    with the `end` before and after them.
    """
    is_end = tokens == end
    ends_before = _sums(is_end)
    full = np.flatnonzero(ends_before[RUN_TOKENS:] == ends_before[:-RUN_TOKENS])
    ends = np.flatnonzero(is_end)
    short = np.flatnonzero(np.diff(ends) <= RUN_TOKENS)
    starts = np.concatenate([full, ends[short]])
    stops = np.concatenate([full + RUN_TOKENS, ends[short + 1] + 1])
    sums = _sums(_NUMBERS[tokens] * _powers(_BASE, len(tokens)))
    shifts = _powers(pow(_BASE, -1, 1 << 64), len(tokens))  # to what they are at the beginning
    return _Runs(starts, stops, (sums[stops] - sums[starts]) * shifts[starts])


def _sums(values: np.ndarray) -> np.ndarray:
    """The sum of the values before each of them (N,), and of all (N + 1,)."""
    sums = np.cumsum(values)
    return np.concatenate([np.zeros(1, sums.dtype), sums])


def _powers(base: int, count: int) -> npt.NDArray[np.uint64]:
    """`base` to the power of 1, 2, ..., modulo 2**64 (count,)."""
    return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)
