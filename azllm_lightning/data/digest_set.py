"""The digests of the documents seen so far, of which there may be hundreds of millions."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint8]

_SHARD_BITS = 4


class _Run(NamedTuple):
    """Digests (M,) in two halves, in the order of the first halves."""

    heads: npt.NDArray[np.uint64]
    tails: npt.NDArray[np.uint64]

    def has(
        self, heads: npt.NDArray[np.uint64], tails: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.bool_]:
        """Whether each digest (N,) is in the run (N,)."""
        found = np.zeros(len(heads), np.bool_)
        asked = np.arange(len(heads))
        places = np.searchsorted(self.heads, heads)
        while True:  # hardly ever more than once: several digests with the same first half
            inside = places < len(self.heads)
            asked, places = asked[inside], places[inside]
            same = self.heads[places] == heads[asked]
            asked, places = asked[same], places[same]
            if not len(asked):
                return found
            found[asked] = self.tails[places] == tails[asked]
            asked, places = asked[~found[asked]], places[~found[asked]] + 1

    def merged(self, other: _Run) -> _Run:
        """The digests of both."""
        heads = np.concatenate([self.heads, other.heads])
        order = np.argsort(heads, kind="stable")  # in linear time, since both are sorted
        return _Run(heads[order], np.concatenate([self.tails, other.tails])[order])


class DigestSet:
    """A set of 16-byte digests that takes 16 bytes for each.

    They are in sorted runs, each at least twice as long as the next: a new run is merged with those
    that are shorter. So n digests are in log2(n) runs at most, and each was moved as many times.
    They are split by their first bits, so that merging copies a small part of them at once.
    """

    def __init__(self) -> None:
        self._shards: list[list[_Run]] = [[] for _ in range(1 << _SHARD_BITS)]

    def __len__(self) -> int:
        return sum(len(run.heads) for runs in self._shards for run in runs)

    def contains(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Whether each of the digests (N, 16) is in the set (N,)."""
        found = np.zeros(len(digests), np.bool_)
        for runs, indices, new in self._split(digests):
            for run in runs:
                found[indices] |= run.has(new.heads, new.tails)
        return found

    def update(self, digests: Digests) -> None:
        """Add digests (N, 16), all different and none of them in the set."""
        for runs, _, new in self._split(digests):
            new = _Run(new.heads.copy(), new.tails.copy())  # not a part of larger arrays
            while runs and len(runs[-1].heads) < 2 * len(new.heads):
                new = runs.pop().merged(new)
            runs.append(new)

    def add_new(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Add digests (N, 16); returns which of them `are_new` (N,)."""
        is_new = self.are_new(digests)
        self.update(digests[is_new])
        return is_new

    def are_new(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Which of the digests (N, 16) are not in the set, and the first of their kind (N,)."""
        is_new = ~self.contains(digests)
        _, firsts = np.unique(as_keys(digests), return_index=True)
        is_first = np.zeros(len(digests), np.bool_)
        is_first[firsts] = True
        is_new &= is_first
        return is_new

    def _split(self, digests: Digests) -> list[tuple[list[_Run], npt.NDArray[np.int64], _Run]]:
        """The shards that digests belong to, with their indices, and them as a run."""
        halves = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
        order = np.argsort(halves[:, 0], kind="stable")
        heads, tails = halves[order].T
        bounds = np.arange(1, 1 << _SHARD_BITS, dtype=np.uint64) << np.uint64(64 - _SHARD_BITS)
        ends = [0, *np.searchsorted(heads, bounds).tolist(), len(heads)]
        return [
            (self._shards[number], order[start:stop], _Run(heads[start:stop], tails[start:stop]))
            for number, (start, stop) in enumerate(pairwise(ends))
            if stop > start
        ]


def as_keys(digests: Digests) -> npt.NDArray[np.void]:
    """The digests (N, 16) as values that numpy can compare (N,)."""
    return np.ascontiguousarray(digests).view("V16")[:, 0]
