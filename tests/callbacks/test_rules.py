"""Judgements of recorded and made-up histories."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from driven import Row, rows
from recorded import CORPUS, MEMORISING, SMALL, TALES

from azllm_lightning.callbacks.rules import (
    against_overfitting,
    jitter,
    overfitting,
    underfitting,
    waiting_share,
)
from azllm_lightning.cli.entrance import compose
from azllm_lightning.config.optimizer import optimizer_config

@pytest.mark.parametrize("curve", [TALES, CORPUS, SMALL])
def test_a_healthy_curve_is_neither_over_nor_underfit(
    curve: list[Row],
) -> None:
    guess = curve[0][2]
    for end in range(1, len(curve) + 1):
        assert overfitting(rows(curve[:end]), 0.01) < 0.5
    assert underfitting(rows(curve), guess, warmup_steps=40) is None


def test_overfitting_is_a_rise_that_lasts_while_the_training_loss_falls() -> None:
    found = [overfitting(rows(MEMORISING[:end]), 0.01) for end in range(1, len(MEMORISING) + 1)]
    assert [severity >= 1 for severity in found] == [False] * 12 + [True]
    assert found[-1] > found[-2] > 0
    assert overfitting(rows(MEMORISING), 0.10) < 1  # the setting


def test_a_rise_of_both_losses_is_no_overfitting() -> None:
    risen = [(130, 3.9, 3.9), (140, 4.0, 4.1)]
    assert overfitting(rows([*MEMORISING[:9], *risen]), 0.01) < 1


def test_a_spike_that_is_recovering_is_no_overfitting() -> None:
    early = [
        (0, None, 9.0),
        (100, 6.8, 5.8),
        (200, 5.3, 5.1),
        (300, 5.25, 5.9),
        (400, 4.9, 5.4),
        (500, 4.8, 5.2),
    ]
    assert overfitting(rows(early), 0.01) < 1


def test_a_jumpy_val_loss_needs_a_larger_rise() -> None:
    """Up and down by 0.1 around a slow fall, as at a high rate; the training loss falls."""
    jumpy = [
        (100 * i, 5.0 - 0.05 * i, 4.9 - 0.01 * i + (0.1 if i % 3 else -0.1)) for i in range(1, 16)
    ]
    assert all(overfitting(rows([(0, None, 9.0), *jumpy[:end]]), 0.01) < 1 for end in range(1, 16))


def test_jitter_is_the_noise_and_not_the_curve() -> None:
    noise = random.Random(1)
    smooth = [4 + 3 * math.exp(-i / 4) for i in range(9)]
    assert jitter(smooth) < 0.02
    rough = [jitter([value + noise.gauss(0, 0.1) for value in smooth]) for _ in range(200)]
    assert statistics.fmean(rough) == pytest.approx(0.1, rel=0.25)
    assert jitter([1.0, 2.0, 1.0, 2.0]) == 0
    assert math.isfinite(jitter([*smooth, math.nan, math.inf]))


STEEP = [(0, None, 9.0), (100, 8.0, 7.0), (200, 6.6, 6.2), (300, 5.6, 5.0), (400, 4.6, 4.3)]
STUCK = [(0, None, 9.0), (100, 7.9, 7.0), (200, 6.9, 6.81), (300, 6.8, 6.80), (400, 6.79, 6.79)]


def test_underfitting_is_judged_at_the_end() -> None:
    assert underfitting(rows(STEEP), 9.0, 40) == ("undertrained", rows(STEEP)[2])
    assert underfitting(rows(STUCK), 9.0, 40) == ("too_small", rows(STUCK)[2])
    assert underfitting(rows(STUCK), 13.0, 40) is None  # low enough among so many tokens
    for curve in (STEEP, STUCK):
        assert underfitting(rows(curve), 9.0, 150) is None  # hardly past its warm-up
        assert (
            underfitting(rows([curve[0], curve[-1]]), 9.0, 40) is None
        )  # nothing known of the middle
    apart = [*STEEP[:-1], (400, 3.0, 4.3)]
    assert underfitting(rows(apart), 9.0, 40) is None  # the text is what is short
    tuned = [(0, None, 3.50), (200, 3.45, 3.42), (300, 3.40, 3.39), (400, 3.37, 3.36)]
    assert underfitting(rows(tuned), 9.0, 40) is None  # from init_from: it had little to learn


def test_the_advice_against_overfitting_can_be_typed_and_changes_once_taken() -> None:
    config = compose()
    advice: list[str] = []
    for _ in range(4):
        dropout = config["model"]["dropout"]
        advice.append(against_overfitting(optimizer_config(config["optimizer"]), dropout))
        config = compose(" ".join(advice).split())
    assert advice[0] == "optimizer.weight_decay=3 optimizer.adam_weight_decay=3"
    assert advice[1:] == ["model.dropout=0.2", "model.dropout=0.4", "model.dropout=0.5"]
    adamw = optimizer_config(compose(["optimizer=adamw"])["optimizer"])
    assert against_overfitting(adamw, 0.0) == "model.dropout=0.2"


def test_waiting_is_a_share_of_the_steps_whose_wait_is_known() -> None:
    assert waiting_share([0.25] * 49, [1.0] * 49) is None  # too few steps
    assert waiting_share([0.025] * 60, [0.1] * 60) is None  # too little time
    assert waiting_share([0.25] * 50, [1.0] * 50) == pytest.approx(0.25)
    assert waiting_share([math.nan, 0.25] * 50, [100.0, 1.0] * 50) == pytest.approx(0.25)
