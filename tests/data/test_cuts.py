"""Every pass cuts the text at other places, and uses each token once."""

from __future__ import annotations

import numpy as np
import pytest

from azllm_lightning.data.cuts import Rings, cut_offset


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 32, 100, 256, 1000, 1024])
def test_the_cuts_of_block_size_passes_differ(block_size: int) -> None:
    offsets = cut_offset(np.arange(block_size + 1), block_size)
    assert offsets[0] == offsets[block_size] == 0  # the first pass is cut from the first token
    assert sorted(offsets[:-1].tolist()) == list(range(block_size))


@pytest.mark.parametrize("block_size", [64, 256, 1000])
@pytest.mark.parametrize("passes", [4, 8, 16])
def test_the_cuts_of_a_few_passes_are_spread_evenly(block_size: int, passes: int) -> None:
    offsets = sorted(cut_offset(np.arange(passes), block_size).tolist())
    gaps = np.diff([*offsets, block_size])
    assert gaps.max() < 2.5 * block_size / passes
    assert gaps.min() > 0.3 * block_size / passes


def test_the_cuts_never_change() -> None:
    """A run resumed with a later version must continue with the windows it started with."""
    assert cut_offset(np.arange(6), 256).tolist() == [0, 159, 62, 221, 124, 27]
    assert cut_offset(np.arange(6), 512).tolist() == [0, 317, 122, 439, 244, 49]


@pytest.mark.parametrize("ranges", [[(0, 97)], [(0, 9), (9, 42), (50, 90)], [(3, 14)]])
def test_a_pass_uses_each_token_at_most_once(ranges: list[tuple[int, int]]) -> None:
    block = 8
    rings = Rings(ranges)
    first = np.concatenate([np.arange(lo, hi - block, block) for lo, hi in ranges])
    for offset in range(block):
        used = []
        for start in rings.shifted(first, np.full(len(first), offset)).tolist():
            (ring,) = [(lo, hi) for lo, hi in ranges if lo <= start < hi]
            window = [lo + i for lo, n in rings.pieces(start, block + 1) for i in range(n)]
            assert len(window) == block + 1
            assert all(ring[0] <= token < ring[1] for token in window)
            used += window[1:]
        assert len(used) == len(set(used))
        for lo, hi in ranges:
            unused = hi - lo - sum(lo <= token < hi for token in used)
            assert 0 < unused <= block
