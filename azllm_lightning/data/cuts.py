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
    """Disjoint ranges of tokens, given as sorted [start, end), each cut into windows as a ring.

    A window that begins later than in pass 0 may pass the end of its range; it goes on at the
    start of the same range. Text ends with an end-of-text token, so this is one more border of
    documents, and every pass has the same number of windows.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._starts = np.array([start for start, _ in ranges], dtype=np.int64)
        self._ends = np.array([end for _, end in ranges], dtype=np.int64)

    def shifted(self, starts: Indices, offsets: Indices) -> Indices:
        """The tokens that come `offsets` after `starts` in their rings."""
        ring = np.searchsorted(self._ends, starts, side="right")
        first = self._starts[ring]
        return first + (starts - first + offsets) % (self._ends[ring] - first)

    def pieces(self, start: int, length: int) -> list[tuple[int, int]]:
        """The one or two ranges (start, length) that hold `length` tokens from `start` on."""
        ring = int(np.searchsorted(self._ends, start, side="right"))
        before_end = min(length, int(self._ends[ring]) - start)
        pieces = [(start, before_end)]
        if before_end < length:
            pieces.append((int(self._starts[ring]), length - before_end))
        return pieces
