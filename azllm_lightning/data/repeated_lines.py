"""Lines that occur in many documents: menus, notices of rights, links to share a page."""

from __future__ import annotations

import re
from collections.abc import Container
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

DIGEST_TYPE = np.dtype("<u8")

_MERGE_SIZE = 1 << 22
_BLANK_LINES = re.compile(r"\n\s*\n")


def line_digest(line: str) -> int:
    """A hash of a line without the space around it; 0 for one without a letter, which is kept."""
    line = line.strip()
    if not any(map(str.isalpha, line)):
        return 0
    data = line.encode("utf-8")
    return int.from_bytes(blake2b(data, digest_size=DIGEST_TYPE.itemsize).digest(), "little")


def line_digests(text: str) -> set[int]:
    """The hashes of the lines of a document."""
    return set(map(line_digest, text.split("\n"))) - {0}


def without_lines(text: str, dropped: Container[int]) -> tuple[str, int]:
    """`text` without the lines whose hashes are in `dropped`, and their number."""
    lines = text.split("\n")
    kept = [line for line in lines if line_digest(line) not in dropped]
    if len(kept) == len(lines):
        return text, 0
    return _BLANK_LINES.sub("\n\n", "\n".join(kept)).strip(), len(lines) - len(kept)


class LineCounter:
    """Counts in how many documents each line occurs, in 16 bytes for each different line."""

    def __init__(self) -> None:
        self._digests = np.empty(0, DIGEST_TYPE)
        self._counts = np.empty(0, np.int64)
        self._pending: list[npt.NDArray[np.uint64]] = []
        self._pending_size = 0

    def add(self, digests: npt.NDArray[np.uint64]) -> None:
        """Count the lines of documents, each line once per document."""
        self._pending.append(digests)
        self._pending_size += len(digests)
        if self._pending_size > max(_MERGE_SIZE, len(self._digests) // 2):
            self._merge()

    def above(self, limit: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The hashes of the lines that more than `limit` documents have, and in how many."""
        self._merge()
        frequent = self._counts > limit
        return self._digests[frequent], self._counts[frequent]

    def _merge(self) -> None:
        digests = np.concatenate([self._digests, *self._pending])
        counts = np.concatenate([self._counts, np.ones(self._pending_size, np.int64)])
        self._pending = []
        self._pending_size = 0
        order = np.argsort(digests)
        digests = digests[order]
        starts = np.flatnonzero(np.diff(digests, prepend=~digests[:1]))
        self._digests = digests[starts]
        self._counts = np.add.reduceat(counts[order], starts) if len(starts) else counts
