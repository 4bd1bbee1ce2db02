"""The set of digests, compared with a set of Python."""

from __future__ import annotations

import numpy as np
import pytest

from azllm_lightning.data.digest_set import Digests, DigestSet


def keys(digests: Digests) -> list[bytes]:
    return [digest.tobytes() for digest in digests]


@pytest.mark.parametrize("same_bytes", [0, 7, 8, 15])
def test_it_is_a_set(same_bytes: int) -> None:
    """Also of digests that differ in their last bytes only, of blocks of any size, and of
    duplicates within a block.
    """
    draw = np.random.default_rng(same_bytes)
    digests = DigestSet()
    seen: set[bytes] = set()
    for size in [0, 1, 2, 300, *draw.integers(60, size=25)]:
        block = draw.integers(256, size=(size, 16), dtype=np.uint8)
        block[:, :same_bytes] = 77
        if same_bytes == 15:
            block[:, 0] = draw.integers(2, size=size) * 255  # the first shard and the last
        assert digests.contains(block).tolist() == [key in seen for key in keys(block)]
        expected = []
        for key in keys(block):
            expected.append(key not in seen)
            seen.add(key)
        assert digests.add_new(block).tolist() == expected
        assert digests.contains(block).all()
        assert len(digests) == len(seen)


def test_each_digest_is_moved_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block costs grows with the logarithm of what is known, not with that itself."""
    moved = 0
    argsort = np.argsort

    def counted(values: np.ndarray, **settings: str) -> np.ndarray:
        nonlocal moved
        moved += len(values)
        return argsort(values, **settings)

    monkeypatch.setattr(np, "argsort", counted)
    draw = np.random.default_rng(0)
    digests = DigestSet()
    blocks = 512
    for _ in range(blocks):
        digests.update(draw.integers(256, size=(64, 16), dtype=np.uint8))
    assert moved < 64 * blocks * (2 + 2 * np.log2(blocks))
