"""The order of the data: a permutation per epoch, and a pure function of (seed, position)."""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import pytest

from azllm_lightning.data.sampler import StepSampler, merge_ranges, skip_over, window_order


@pytest.mark.parametrize("num_windows", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_each_epoch_visits_every_window_once_in_its_own_order(num_windows: int) -> None:
    epochs = window_order(range(3 * num_windows), num_windows, seed=7).reshape(3, num_windows)
    for order in epochs:
        assert sorted(order) == list(range(num_windows))
    if num_windows >= 16:
        assert len({tuple(order) for order in epochs}) == 3


def test_the_order_never_changes() -> None:
    """A run resumed with a later version must continue in the order it started with."""
    order = window_order(range(1000), 12_345, seed=1234)
    assert order[:5].tolist() == [9070, 3233, 8019, 1621, 12000]
    assert (
        hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
        == "2870136f6903391aa4a5a47321c4b53e40bd98f3bacd4f4894780fd841d84153"
    )


def test_the_order_is_a_function_of_each_position_alone() -> None:
    order = window_order(range(300), 100, seed=3)
    assert [int(window_order([k], 100, seed=3)[0]) for k in range(300)] == order.tolist()
    shuffled = np.random.default_rng(0).permutation(300)
    assert np.array_equal(window_order(shuffled, 100, seed=3), order[shuffled])


def test_orders_of_different_seeds_are_unrelated() -> None:
    orders = [window_order(range(1000), 1000, seed) for seed in range(5)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # 1 is expected by chance
    steps = np.abs(np.diff(orders[0]))
    assert 250 < steps.mean() < 420  # neighbors are a third of the data apart on average


def test_large_data_stays_in_range() -> None:
    size = 2**33 + 5
    order = window_order([0, 1, size - 1, size, 5 * size + 1], size, seed=0)
    assert order.dtype == np.int64
    assert ((order >= 0) & (order < size)).all()


def windows_of_steps(
    first: int, count: int, micro_batch: int, accumulate: int, world_size: int
) -> list[list[int]]:
    """The positions of each step, over all processes."""
    ranks = [
        islice(StepSampler(first, micro_batch, accumulate, rank, world_size), count * accumulate)
        for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    return [
        sorted(
            k
            for batch in batches
            for micro in batch[step * accumulate : (step + 1) * accumulate]
            for k in micro
        )
        for step in range(count)
    ]


@pytest.mark.parametrize(
    ("micro_batch", "accumulate", "world_size"), [(12, 1, 1), (3, 4, 1), (2, 3, 2), (1, 4, 3)]
)
def test_a_step_has_the_same_windows_however_it_is_divided(
    micro_batch: int, accumulate: int, world_size: int
) -> None:
    steps = windows_of_steps(5, 4, micro_batch, accumulate, world_size)
    assert steps == [list(range(12 * step, 12 * step + 12)) for step in range(5, 9)]


def test_starting_at_a_later_step_continues_the_order() -> None:
    def batches(first: int, count: int) -> list[list[int]]:
        return list(
            islice(
                StepSampler(first, 3, 2, rank=1, world_size=2, skipped=[[20, 30], [40, 41]]), count
            )
        )

    assert batches(0, 20)[4:] == batches(2, 16)


def test_skipped_windows_are_skipped() -> None:
    used = [
        k for batch in islice(StepSampler(0, 4, 1, skipped=[[2, 5], [9, 10]]), 4) for k in batch
    ]
    assert used == [0, 1, 5, 6, 7, 8, *range(10, 20)]
    assert [skip_over(k, [[2, 5], [9, 10]]) for k in range(16)] == used
    assert skip_over(7, []) == 7


def test_ranges_merge() -> None:
    assert merge_ranges([[8, 9], [1, 3], [3, 5], [2, 4], [7, 8]]) == [[1, 5], [7, 9]]
    assert merge_ranges([[1, 10], [2, 3]]) == [[1, 10]]
    assert merge_ranges([]) == []
