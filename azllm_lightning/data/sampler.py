"""The order of the windows as a pure function of (seed, k): nothing to store, replay or drift.

A run consumes positions 0, 1, 2, ... Epoch e over n windows visits each once, in an order made by a
small Feistel network (Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002). The
arithmetic is written out here on 64-bit integers, so that no library version changes the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

ROUNDS = 6
Indices = npt.NDArray[np.int64]


def window_order(k: Sequence[int] | Indices, num_windows: int, seed: int) -> Indices:
    """The windows in [0, num_windows) at positions `k` of a run with `seed`; same shape as `k`."""
    positions = np.asarray(k, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_windows)
    order = np.empty_like(positions)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        order[in_epoch] = _permute(offsets[in_epoch], num_windows, _round_keys(seed, int(epoch)))
    return order


def skip_over(position: int, skipped: Sequence[Sequence[int]]) -> int:
    """The position of the `position`-th window that is used when the ranges `skipped` are left out.

    `skipped` holds sorted, disjoint [start, stop); it grows when a run rolls back and skips the
    windows that broke it.
    """
    for start, stop in skipped:
        if position < start:
            break
        position += stop - start
    return position


def merge_ranges(ranges: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same positions as sorted, disjoint ranges [start, stop)."""
    merged: list[list[int]] = []
    for start, stop in sorted(map(tuple, ranges)):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return merged


class StepSampler(Sampler[list[int]]):
    """Endless micro-batches of positions for one process, starting at optimizer step `first_step`.

    With B the global batch size, step s uses positions [s * B, (s + 1) * B), whatever the size of a
    micro-batch and the number of processes; each micro-batch of each rank is a slice of them.
    """

    def __init__(
        self,
        first_step: int,
        micro_batch_size: int,
        micro_batches_per_step: int,
        rank: int = 0,
        world_size: int = 1,
        skipped: Sequence[Sequence[int]] = (),
    ) -> None:
        self.first_step = first_step
        self.micro_batch_size = micro_batch_size
        self.micro_batches_per_step = micro_batches_per_step
        self.rank = rank
        self.world_size = world_size
        self.skipped = [list(range_) for range_ in skipped]

    def __iter__(self) -> Iterator[list[int]]:
        size = self.micro_batch_size
        stride = size * self.world_size
        start = self.first_step * stride * self.micro_batches_per_step + self.rank * size
        while True:
            yield [skip_over(start + i, self.skipped) for i in range(size)]
            start += stride


def _round_keys(seed: int, epoch: int) -> list[int]:
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]


def _permute(values: Indices, size: int, keys: list[int]) -> Indices:
    """A bijection of [0, size): permutes the next power of four, repeatedly for images outside."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    image = values.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = image[outside] >> half, image[outside] & mask
        for key in keys:
            left, right = right, left ^ (splitmix64(right ^ np.uint64(key)) & mask)
        image[outside] = (left << half) | right
        outside = image >= np.uint64(size)
    return image.astype(np.int64)


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
