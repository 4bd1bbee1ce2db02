"""Validations whose loss is not finite, which every comparison with a number lets pass."""

from __future__ import annotations

import math
from functools import cache

import pytest
from driven import DrivenRun, Row
from recorded import CORPUS, MEMORISING, STEEP, STUCK, TALES

from azllm_lightning.callbacks import diagnosis
from azllm_lightning.callbacks.diagnosis import Diagnosis
from azllm_lightning.callbacks.panels import table, validation_line
from azllm_lightning.config.callbacks import CallbacksConfig
from azllm_lightning.config.compose import compose

pytestmark = pytest.mark.numerics

VALUES = (math.nan, math.inf)


@cache
def settings(patience: int) -> CallbacksConfig:
    return compose(
        ["callbacks.early_stopping=true", f"callbacks.early_stopping_patience={patience}"]
    ).callbacks


class Judged(DrivenRun):
    """A driven run of `curve` with a Diagnosis that stops early after `patience` validations."""

    def __init__(self, curve: list[Row], patience: int) -> None:
        super().__init__(vocab_size=8100)
        self.callbacks.append(Diagnosis(self.history, settings(patience)))
        self.trainer.max_steps = curve[-1][0]
        for row in curve:
            self.validate(row)


def spoiled(curve: list[Row], places: range, value: float) -> list[Row]:
    """`curve` with a val_loss of `value` at `places`."""
    return [
        (step, train, value if place in places else val)
        for place, (step, train, val) in enumerate(curve)
    ]


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        *("TALES", "STEEP", "STUCK"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("CORPUS", "MEMORISING")),
    ],
)
def test_such_validations_are_no_evidence(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, two or all from some place on: nothing fails, and nothing new is reported but that the
    run stops early.
    """
    texts: list[str] = []
    monkeypatch.setattr(diagnosis.log, "warning", texts.append)
    curves = {
        "TALES": TALES,
        "CORPUS": CORPUS,
        "STEEP": STEEP,
        "STUCK": STUCK,
        "MEMORISING": MEMORISING,
    }
    curve = curves[name]
    usual = {mark for mark, _ in Judged(curve, patience=100).marks}
    for first in range(len(curve)):
        for count in (1, 2, len(curve)):
            run = Judged(spoiled(curve, range(first, first + count), value), patience=100)
            found = {mark for mark, _ in run.marks}
            assert found <= usual | {"undertrained", "too_small"}, (first, count)
            if first + count >= len(curve):  # the last validation is one of them
                assert not found & {"undertrained", "too_small"}
            assert len(table(run.history.validations)) >= 2
            for end in range(first + 1, len(curve) + 1):
                assert validation_line(run.history.validations[:end], 1000)
    assert not [text for text in texts if "nan" in text or "inf" in text]


@pytest.mark.parametrize("value", VALUES)
def test_they_count_for_early_stopping(value: float) -> None:
    curve = [*TALES[:4], *((1000 + step, 2.0, value) for step in (10, 20, 30))]
    run = Judged(curve, patience=3)
    assert run.trainer.should_stop
    assert [mark for mark, _ in run.marks] == ["early_stop"]
