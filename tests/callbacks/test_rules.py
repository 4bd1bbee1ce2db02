"""Judgements of recorded and made-up histories."""

from __future__ import annotations

import math

import pytest
from driven import Row, rows
from recorded import CORPUS, SMALL, STEEP, STUCK, TALES

from azllm_lightning.callbacks.rules import (
    against_overfitting,
    overfitting,
    underfitting,
    waiting_share,
)
from azllm_lightning.config.compose import compose


@pytest.mark.parametrize("curve", [TALES, CORPUS, SMALL])
def test_a_healthy_curve_is_neither_over_nor_underfit(
    curve: list[Row],
) -> None:
    guess = curve[0][2]
    for end in range(1, len(curve) + 1):
        assert overfitting(rows(curve[:end]), 0.01) < 0.5
    assert underfitting(rows(curve), guess, warmup_steps=40) is None


def test_underfitting_is_judged_at_the_end() -> None:
    assert underfitting(rows(STEEP), 9.0, 40) == ("undertrained", rows(STEEP)[2])
    assert underfitting(rows(STUCK), 9.0, 40) == ("too_small", rows(STUCK)[2])
    assert underfitting(rows(STUCK), 13.0, 40) is None  # low enough among so many tokens
    for curve in (STEEP, STUCK):
        assert underfitting(rows(curve), 9.0, 150) is None  # hardly past its warm-up
        ends = rows([curve[0], curve[-1]])
        assert underfitting(ends, 9.0, 40) is None  # nothing known of the middle
    apart = [*STEEP[:-1], (400, 3.0, 4.3)]
    assert underfitting(rows(apart), 9.0, 40) is None  # the text is what is short
    tuned = [(0, None, 3.50), (200, 3.45, 3.42), (300, 3.40, 3.39), (400, 3.37, 3.36)]
    assert underfitting(rows(tuned), 9.0, 40) is None  # from init_from: it had little to learn


def test_the_advice_against_overfitting_can_be_typed_and_changes_once_taken() -> None:
    config = compose()
    advice: list[str] = []
    for _ in range(4):
        advice.append(against_overfitting(config.optimizer, config.model.dropout))
        config = compose(" ".join(advice).split())
    assert advice[0] == "optimizer.weight_decay=3 optimizer.adam_weight_decay=3"
    assert advice[1:] == ["model.dropout=0.2", "model.dropout=0.4", "model.dropout=0.5"]
    adamw = compose(["optimizer=adamw"])
    assert against_overfitting(adamw.optimizer, 0.0) == "model.dropout=0.2"
    assert against_overfitting(compose().optimizer, 0.1, is_student=True) == "model.dropout=0.3"


def test_waiting_is_a_share_of_the_steps_whose_wait_is_known() -> None:
    assert waiting_share([0.25] * 49, [1.0] * 49) is None  # too few steps
    assert waiting_share([0.025] * 60, [0.1] * 60) is None  # too little time
    assert waiting_share([0.25] * 50, [1.0] * 50) == pytest.approx(0.25)
    assert waiting_share([math.nan, 0.25] * 50, [100.0, 1.0] * 50) == pytest.approx(0.25)
