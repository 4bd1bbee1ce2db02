"""What a run suggests at its end fits what happened in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.callbacks.history import Validation
from azllm_lightning.config.compose import compose
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.session.report import better_command, is_past_best, remedy


def validations(*losses: float) -> list[Validation]:
    return [Validation(100 * i, 2.0, loss, 2.7**loss, 1.0) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((7.0, 3.0, 2.5), False),
        ((7.0, 3.0, 2.5, 2.6), False),  # one may be noise
        ((7.0, 3.0, 2.5, 2.6, 2.55), True),
        ((7.0,), False),
    ],
)
def test_more_steps_are_not_offered_past_the_best(
    losses: tuple[float, ...], expected: bool
) -> None:
    assert is_past_best(validations(*losses)) is expected


MUON = compose(["optimizer=muon", "optimizer.lr=3e-3"]).optimizer
ADAMW = compose(["optimizer=adamw", "optimizer.lr=3e-3"]).optimizer


@pytest.mark.parametrize(
    ("present", "optimizer", "diverged", "expected"),
    [
        (set(), MUON, False, []),
        ({"data_bound"}, MUON, False, []),
        ({"overfitting"}, ADAMW, False, ["model.dropout=0.2"]),
        ({"lr_too_high", "overfitting"}, MUON, False, ["optimizer.lr=0.001"]),
        ({"too_small"}, MUON, False, ["optimizer.lr=0.009"]),
        (set(), MUON, True, ["optimizer.lr=0.001"]),
    ],
)
def test_the_settings_to_change_fit_the_problem(
    present: set[str], optimizer: OptimizerConfig, diverged: bool, expected: list[str]
) -> None:
    assert remedy(present, optimizer, 0.0, False, diverged) == expected


def test_a_student_is_not_told_to_decay_more() -> None:
    assert remedy({"overfitting"}, MUON, 0.1, True, False) == ["model.dropout=0.3"]


def test_the_command_of_the_next_run_keeps_what_was_typed() -> None:
    typed = ["data=tales", "ckpt_path=last", "optimizer=adamw", "+experiment=debug", "run_name=a"]
    config: Any = SimpleNamespace(
        overrides=(*typed, "model.dropout=0"),
        run_name="a",
        optimizer=ADAMW,
        shape=SimpleNamespace(dropout=0.0),
        teachers=None,
    )
    parts: Any = SimpleNamespace(
        diagnosis=SimpleNamespace(present=frozenset({"overfitting"})),
        io=SimpleNamespace(diverged=None),
    )
    assert better_command(parts, config) == (
        "python -m azllm_lightning.train data=tales optimizer=adamw experiment=debug run_name=a "
        "model.dropout=0.2"
    )
    parts.diagnosis.present = frozenset()
    assert better_command(parts, config) is None
