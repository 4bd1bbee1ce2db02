"""What the gap between train_loss and val_loss is said to mean."""

from __future__ import annotations

import math

import pytest

from azllm_lightning.callbacks.gap import Point, gap_text


def points(*gaps: float) -> list[Point]:
    """Validations at every tenth step, from step 0 on."""
    return [Point(10 * number, 4.0, gap) for number, gap in enumerate(gaps)]


@pytest.mark.parametrize(
    ("gaps", "steps_per_reading", "expected"),
    [
        ((math.nan, -1.0, 0.1, 0.3), 100, ""),  # less than a tenth of val_loss
        ((math.nan, 0.2, 0.8, 0.84), 25, "harder than the training text"),  # since the first pass
        ((math.nan, 0.2, 0.8, 0.84), 100, "harder than the training text"),
        ((math.nan, -1.0, 0.1, 0.84), 25, "0.74 more than in the first pass"),
        ((math.nan, -1.0, -0.5, 0.84), 25, "0.84 more than in the first pass"),
        ((math.nan, 0.84), 4, "after 2.5 passes"),  # never validated in the first one
        ((0.9,), 10, ""),  # of an untrained model
        ((math.nan, 0.9, math.nan), 5, "above train_loss after 2.0 passes"),
        ((), 10, ""),
    ],
)
def test_a_gap_is_memorized_text_only_once_text_is_read_again(
    gaps: tuple[float, ...], steps_per_reading: float, expected: str
) -> None:
    found = gap_text(points(*gaps), steps_per_reading)
    assert expected in found
    assert bool(found) == bool(expected)
    assert not gap_text(points(*gaps), steps_per_reading, is_student=True)


@pytest.mark.parametrize(("best", "is_told"), [(3.4, False), (3.8, True)])
def test_a_loss_that_rose_at_the_end_says_nothing_of_the_texts(best: float, is_told: bool) -> None:
    """train_loss is a mean of the steps since the validation before."""
    seen = [Point(10, 4.0, -0.5), Point(20, best, 0.1), Point(30, 4.0, 0.64)]
    for steps_per_reading in (100, 25, 15):
        assert bool(gap_text(seen, steps_per_reading)) == is_told


def test_the_passes_of_a_mix_are_those_of_what_it_repeats_most() -> None:
    gaps = points(math.nan, 0.1, 0.84)
    assert "0.74 more than when no text had been read" in gap_text(gaps, 15, is_mixed=True)
    harder = gap_text(points(math.nan, 0.7, 0.84), 15, is_mixed=True)
    assert "0.70 were there when no text had been read more than once on average" in harder
    assert "data.mix repeats most has been read 5.0 times" in gap_text(gaps, 4, is_mixed=True)
