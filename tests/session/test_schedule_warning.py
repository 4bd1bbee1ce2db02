"""One line at the start of a run whose learning rate only rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.session.session import schedule_warning

Train = Callable[..., Path]


def schedule(warmup: int, total: int, name: str = "power") -> ScheduleConfig:
    return ScheduleConfig(
        name=name, warmup_steps=warmup, total_steps=total, decay_ratio=1.0, min_lr_ratio=0.0
    )


@pytest.mark.parametrize(
    ("warmup", "total", "last_step", "name", "better"),
    [
        (40, 30, 30, "power", 3),
        (30, 30, 30, "linear", 3),
        (40, 5, 5, "cosine", 1),
        (500, 450, 450, "sqrt", 40),
        (40, 400, 30, "constant", 3),  # whose length is that of the run
    ],
)
def test_a_run_that_ends_in_its_warm_up_is_warned_of(
    warmup: int, total: int, last_step: int, name: str, better: int
) -> None:
    warning = schedule_warning(schedule(warmup, total, name), last_step)
    length = last_step if name == "constant" else total
    assert warning == (
        f"schedule.warmup_steps={warmup} is not less than the length of the schedule, {length}: "
        f"the learning rate rises until the last step. Add schedule.warmup_steps={better}"
    )
    assert schedule_warning(schedule(better, total, name), last_step) is None


@pytest.mark.parametrize(
    ("warmup", "total", "last_step", "name"),
    [
        (40, 400, 400, "power"),
        (29, 30, 30, "power"),
        (0, 1, 1, "power"),
        (1, 1, 1, "power"),
        (40, 400, 30, "power"),  # the first part of a longer run
        (40, 30, 400, "constant"),
    ],
)
def test_any_other_run_is_not(warmup: int, total: int, last_step: int, name: str) -> None:
    assert schedule_warning(schedule(warmup, total, name), last_step) is None


def test_too_few_steps_for_branches_are_warned_of() -> None:
    branched = replace(schedule(1, 9), branches=5)
    assert schedule_warning(branched, 9) is None
    for steps in (1, 5):
        short = replace(branched, total_steps=steps)
        assert schedule_warning(short, steps) == (
            f"schedule.branches=5: {steps} steps are too few for that, so the last fifth of the "
            "training is run once"
        )


def test_a_run_says_so_once_at_its_start(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny("trainer.max_steps=2")
    error = " ".join(capsys.readouterr().err.split())
    assert (
        error.count("schedule.warmup_steps=2 is not less than the length of the schedule, 2") == 1
    )
    train_tiny("trainer.max_steps=3")
    assert "is not less than" not in capsys.readouterr().err
