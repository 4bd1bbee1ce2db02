"""Which window comes k-th is a pure function of (seed, k): nothing to store, nothing to replay, nothing to drift.

A run consumes windows 0, 1, 2, ... ; pass p over n windows visits each once, in an order made by a small Feistel
network (Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002). The arithmetic is spelled out here on
64-bit integers, so that no library version changes the order.
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
    """The windows, each in [0, num_windows), that positions `k` of a run with `seed` consume; same shape as `k`."""
    positions = np.asarray(k, dtype=np.int64)
    passes, offsets = np.divmod(positions, num_windows)
    order = np.empty_like(positions)
    for number in np.unique(passes):
        here = passes == number
        order[here] = _permute(offsets[here], num_windows, _round_keys(seed, int(number)))
    return order


def skip_over(position: int, skipped: Sequence[Sequence[int]]) -> int:
    """The position in the order of the `position`-th window that is used, when ranges [start, stop) are left out.

    `skipped` is sorted and disjoint; it grows when a run rolls back and leaves out the windows that broke it.
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
    """Endless micro-batches of positions, for one process, from optimizer step `first_step` on.

    Step s of the run uses positions [s * B, (s + 1) * B) with B the effective batch, whatever the micro-batch and the
    number of processes; micro-batch m of rank r takes its slice of them.
    """

    def __init__(
        self,
        first_step: int,
        micro_batch: int,
        accumulate: int,
        rank: int = 0,
        world_size: int = 1,
        skipped: Sequence[Sequence[int]] = (),
    ) -> None:
        self.first_step, self.micro_batch, self.accumulate = first_step, micro_batch, accumulate
        self.rank, self.world_size, self.skipped = rank, world_size, [list(r) for r in skipped]

    def __iter__(self) -> Iterator[list[int]]:
        share = self.micro_batch * self.world_size
        start = self.first_step * share * self.accumulate + self.rank * self.micro_batch
        while True:
            yield [skip_over(start + i, self.skipped) for i in range(self.micro_batch)]
            start += share


def _round_keys(seed: int, number: int) -> list[int]:
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8 * ROUNDS).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]


def _permute(values: Indices, size: int, keys: list[int]) -> Indices:
    """A bijection of [0, size): permute the next power of four, and walk on from images that fall outside."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    image = values.astype(np.uint64)
    todo = np.ones(values.shape, dtype=bool)
    while todo.any():
        left, right = image[todo] >> half, image[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
        image[todo] = (left << half) | right
        todo = image >= np.uint64(size)
    return image.astype(np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): each input bit reaches each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
