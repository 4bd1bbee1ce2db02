"""The overfitting rule warns soon, and never of a run whose val_loss only jitters; on recorded runs
and on curves."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from recorded_runs import FLAT, HEALTHY, OVERFIT, validations

from azllm_lightning.callbacks.history import Validation, best_of
from azllm_lightning.callbacks.rules import jitter, overfitting, setback

pytestmark = pytest.mark.numerics

SHARE = 0.01
Curve = Sequence[tuple[int, float | None, float]]


def rows(curve: Curve) -> list[Validation]:
    return [Validation(step, train, val, math.exp(val), val / 3) for step, train, val in curve]


def warnings(history: Sequence[Validation], share: float = SHARE) -> list[int]:
    """The validations, counted from 0, at which the history so far is judged overfit."""
    return [i for i in range(len(history)) if overfitting(history[: i + 1], share) >= 1]


def u_turn(
    *, rise: float = 0.05, fall: float = 0.2, gap: float = 0.8, steps: int = 6
) -> list[Validation]:
    """A smooth descent to 3.0 in ten validations, then `steps` of a rise of val_loss and a fall of
    train_loss."""
    down = [(10 * i, 3.0 - gap + 0.2 * (10 - i), 3.0 + 0.02 * (10 - i) ** 2) for i in range(1, 11)]
    up = [(100 + 10 * i, 3.0 - gap - fall * i, 3.0 + rise * i) for i in range(1, steps + 1)]
    return rows([(0, None, 5.7), *down, *up])


# --- recorded runs ------------------------------------------------------------------------------


def test_runs_that_overfit_are_noticed_mostly_within_three_validations_of_their_best() -> None:
    delays = []
    for recorded in OVERFIT.values():
        history = validations(recorded)
        best = best_of(history)
        assert best is not None
        delays.append(warnings(history)[0] - history.index(best))
    assert min(delays) >= 2
    assert statistics.median(delays) <= 3
    assert max(delays) <= 9


@pytest.mark.parametrize("name", [*HEALTHY, *FLAT])
def test_a_run_that_does_not_overfit_is_never_warned_of(name: str) -> None:
    assert warnings(validations({**HEALTHY, **FLAT}[name])) == []


# --- curves -------------------------------------------------------------------------------------


def test_a_clear_rise_counts_after_two_validations_and_a_slight_one_later() -> None:
    assert warnings(u_turn(rise=0.08)) == [12, 13, 14, 15, 16]
    assert warnings(u_turn(rise=0.03)) == [13, 14, 15, 16]
    assert warnings(u_turn(rise=0.01)) == [16]
    assert warnings(u_turn(rise=0.003)) == []


def test_the_share_of_the_setting_must_be_exceeded() -> None:
    assert warnings(u_turn(rise=0.08), share=0.05) == [14, 15, 16]
    assert warnings(u_turn(rise=0.08), share=0.5) == []


def test_train_loss_must_keep_falling() -> None:
    assert warnings(u_turn(fall=0.2))
    assert not warnings(u_turn(fall=0.0))
    assert not warnings(u_turn(fall=-0.05))  # both rise: the rate is too high


def test_the_losses_must_be_apart() -> None:
    assert not warnings(u_turn(gap=0.0, rise=0.03, fall=0.01, steps=3))
    assert warnings(u_turn(gap=0.3, rise=0.03, fall=0.03, steps=3))


def test_a_rise_the_run_has_recovered_from_before_is_noise() -> None:
    smooth = u_turn(rise=0.03)
    assert warnings(smooth)
    bump = [
        row._replace(train_loss=3.0, val_loss=3.4) if row.step in (70, 80) else row
        for row in smooth
    ]
    assert not warnings(bump)


def test_a_run_that_is_recovering_is_not_warned_of() -> None:
    early = [
        (0, None, 9.0),
        (100, 6.8, 5.8),
        (200, 5.3, 5.1),
        (300, 5.25, 5.9),
        (400, 4.4, 5.4),
        (500, 4.2, 5.2),
    ]
    assert not warnings(rows(early))


def test_a_fast_jitter_needs_a_larger_rise() -> None:
    """Down by 0.2 in every third validation, then up again; train_loss falls after the tenth."""
    jumpy = [
        (i, 4.8 - 0.2 * max(0, i - 10), 4.9 - 0.01 * i + (0.1 if i % 3 else -0.1))
        for i in range(1, 22)
    ]
    assert not warnings(rows([(0, None, 9.0), *jumpy]))


@pytest.mark.parametrize(("deviation", "most"), [(0.01, 5), (0.03, 30)])
def test_noise_around_a_flat_end_is_rarely_overfitting(deviation: float, most: int) -> None:
    """Independent normal noise for 30 validations, a wide gap, train_loss falling: the hardest of
    what is healthy."""
    warned = 0
    for seed in range(100):
        noise = random.Random(seed)
        flat = [
            (10 * i, 2.6 - 0.02 * i, 3.0 + math.exp(-i / 2) + noise.gauss(0, deviation))
            for i in range(1, 31)
        ]
        warned += bool(warnings(rows([(0, None, 5.7), *flat])))
    assert warned <= most


def test_a_single_high_validation_is_no_rise() -> None:
    history = u_turn(rise=0.005, steps=4)
    assert warnings([*history[:-1], history[-1]._replace(val_loss=4.0)]) == []


def test_what_is_missing_or_not_finite_is_no_overfitting() -> None:
    history = u_turn()
    assert overfitting([], SHARE) == 0
    assert overfitting(history[:1], SHARE) == 0
    unknown = [row._replace(train_loss=None) for row in history]
    assert warnings(unknown) == []
    broken = [
        *history[:12],
        history[12]._replace(val_loss=math.nan),
        history[13]._replace(val_loss=math.inf),
    ]
    assert warnings(broken) == []
    assert warnings([*broken, *history[14:]]) == [14, 15, 16]  # nor does it hide any


# --- noise --------------------------------------------------------------------------------------


def test_jitter_is_the_noise_and_not_the_curve() -> None:
    noise = random.Random(1)
    smooth = [4 + 3 * math.exp(-i / 4) for i in range(9)]
    assert jitter(smooth) < 0.02
    rough = [jitter([value + noise.gauss(0, 0.1) for value in smooth]) for _ in range(200)]
    assert statistics.fmean(rough) == pytest.approx(0.1, rel=0.25)
    assert jitter([1.0, 2.0, 1.0, 2.0]) == 0
    assert math.isfinite(jitter([*smooth, math.nan, math.inf]))


def test_a_setback_is_the_highest_rise_of_two_in_a_row() -> None:
    assert setback([]) == setback([3.0]) == setback([5.0, 4.0, 3.0]) == 0
    assert setback([5.0, 4.0, 4.5, 3.0]) == 0  # a single one
    assert setback([5.0, 4.0, 4.5, 4.25, 3.0]) == 0.25
    assert setback([5.0, 4.0, 6.0, 6.0, *[3.0 - i / 100 for i in range(9)]]) == 0  # long ago
