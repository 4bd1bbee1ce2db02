"""Where windows begin in each pass over the text: every pass cuts it at other places.

Whatever a token's place in its window, it would otherwise have the same context in every pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from azllm_lightning.data.sampler import Indices

GOLDEN = (math.sqrt(5) - 1) / 2


def cut_offset(passes: Indices, block_size: int) -> Indices:
    """By how many tokens the windows of `passes` begin later than those of pass 0, < block_size.

    Multiples of a stride near the golden section, without a common divisor: the offsets of a few
    passes are spread evenly, and those of `block_size` passes are all different.
    """
    wanted = GOLDEN * block_size
    strides = [n for n in range(1, block_size + 1) if math.gcd(n, block_size) == 1]
    stride = min(strides, key=lambda n: abs(n - wanted))
    return passes % block_size * stride % block_size


class Rings:
    """Text that is cut into windows as a ring: each of `rings` has one or more ranges of tokens
    [start, end), and no two ranges overlap.

    A window that passes the end of a range goes on at the start of the next one of its ring, after
    the last of them at that of the first. Text ends with an end-of-text token, so this is one more
    border of documents, and every pass has the same number of windows.
    """

    def __init__(self, rings: Sequence[Sequence[tuple[int, int]]]) -> None:
        ranges = [(start, end) for ring in rings for start, end in ring]
        sizes = np.array([end - start for start, end in ranges], dtype=np.int64)
        self._ends: Indices = np.array([end for _, end in ranges], dtype=np.int64)
        self._by_end: Indices = np.argsort(self._ends)
        # Places count the tokens of the first ring, then those of the second, and so on.
        self._place_ends: Indices = np.cumsum(sizes)
        self._ring_ends: Indices = self._place_ends[np.cumsum([len(ring) for ring in rings]) - 1]
        self._ring_starts: Indices = np.concatenate([[0], self._ring_ends[:-1]]).astype(np.int64)

    def windows(self, ring: int, block_size: int) -> Indices:
        """The first tokens of the windows of `block_size` + 1 tokens in ring number `ring`."""
        start, end = self._ring_starts[ring], self._ring_ends[ring]
        return self._tokens(np.arange(start, end - block_size, block_size, dtype=np.int64))

    def shifted(self, starts: Indices, offsets: Indices) -> Indices:
        """The tokens that come `offsets` after `starts` in their rings."""
        places = self._places(starts)
        ring = np.searchsorted(self._ring_ends, places, side="right")
        first = self._ring_starts[ring]
        return self._tokens(first + (places - first + offsets) % (self._ring_ends[ring] - first))

    def pieces(self, start: int, length: int) -> list[tuple[int, int]]:
        """The ranges (start, length) that hold `length` tokens from `start` on."""
        found: list[tuple[int, int]] = []
        while True:
            size = min(length, int(self._ends[self._range(start)]) - start)
            found.append((start, size))
            length -= size
            if not length:
                return found
            last = np.array([start + size - 1])
            start = int(self.shifted(last, np.ones(1, np.int64))[0])

    def _range(self, tokens: Indices | int) -> Indices:
        """The number of the range of each token."""
        sorted_ends = self._ends[self._by_end]
        return np.asarray(self._by_end[np.searchsorted(sorted_ends, tokens, side="right")])

    def _places(self, tokens: Indices) -> Indices:
        number = self._range(tokens)
        return self._place_ends[number] - (self._ends[number] - tokens)

    def _tokens(self, places: Indices) -> Indices:
        number = np.searchsorted(self._place_ends, places, side="right")
        return self._ends[number] - (self._place_ends[number] - places)
