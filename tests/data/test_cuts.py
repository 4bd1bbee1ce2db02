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


@pytest.mark.parametrize(
    "rings",
    [
        [[(0, 97)]],
        [[(0, 9)], [(9, 42)], [(50, 90)]],
        [[(3, 14)]],
        [[(0, 3), (10, 12), (40, 60)], [(3, 10), (12, 40)]],
    ],
)
def test_a_pass_uses_each_token_at_most_once(rings: list[list[tuple[int, int]]]) -> None:
    block = 8
    cut = Rings(rings)
    for number, ring in enumerate(rings):
        tokens = [token for lo, hi in ring for token in range(lo, hi)]
        first = cut.windows(number, block)
        assert first.tolist() == tokens[:-block:block]
        for offset in range(block):
            used = []
            for start in cut.shifted(first, np.full(len(first), offset)).tolist():
                window = [lo + i for lo, n in cut.pieces(start, block + 1) for i in range(n)]
                place = tokens.index(start)
                around = tokens[place:] + tokens[:place]
                assert window == around[: block + 1]
                used += window[1:]
            assert len(used) == len(set(used))
            assert 0 < len(tokens) - len(used) <= block
