from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driven import DrivenRun, rows
from events import Finished

from azllm_lightning.callbacks.history import KEPT, LONG, History, best_of
from azllm_lightning.runs.checkpoint_files import step_files


def restored(history: History) -> History:
    io: Any = SimpleNamespace(seconds=0.0)
    other = History(io)
    other.load_state_dict(json.loads(json.dumps(history.state_dict())))
    return other


def test_the_best_validation_is_that_of_a_trained_model_and_finite() -> None:
    assert best_of([]) is None
    assert best_of(rows([(0, None, 3.0)])) is None
    validations = rows([(0, None, 3.0), (10, 3.5, 3.6), (20, 3.4, 3.5), (30, 3.3, math.nan)])
    assert best_of(validations) == validations[2]


def test_a_history_goes_through_a_checkpoint() -> None:
    run = DrivenRun()
    run.validate((0, None, 7.6))
    run.history.starts_from = "a.ckpt"
    run.call("on_train_start")
    for step in range(KEPT + 10):
        run.step(loss=9.0 - 0.01 * step, scale=2.0 ** (13 - step % 3))
    run.validate((KEPT + 10, 5.0, 4.0))
    run.history.clock.validation_seconds = 12.5
    other = restored(run.history)
    assert other.validations == rows([(0, None, 7.6), (KEPT + 10, 5.0, 4.0)])
    assert other.validations[1].gap == pytest.approx(-1.0)
    assert other.losses == run.history.losses
    assert len(other.losses) == len(other.norms) == KEPT
    assert other.lowest == run.history.lowest
    assert other.scales == run.history.scales
    assert other.resumed_from == ["a.ckpt"]
    assert other.clock.validation_seconds == 12.5
    assert other.clock.wall_seconds >= run.history.clock.wall_seconds
    for history in (run.history, other):
        history.losses.append(1.0)  # both forget the oldest
    assert other.losses == run.history.losses


def test_losses_before_a_branch_goes_back_are_not_compared_with_later_ones() -> None:
    run = DrivenRun()
    for _ in range(2 * LONG):
        run.step(loss=1.0)
    run.module.began_branch = lambda steps_ago=0: steps_ago == 0
    run.step(loss=3.0, norm=0.5)
    assert list(run.history.losses) == [3.0]
    assert list(run.history.norms) == [0.5]
    assert run.history.lowest is None


def test_the_lowest_mean_and_its_scatter_are_kept() -> None:
    run = DrivenRun()
    for step in range(2 * LONG):
        run.step(loss=3.0 + (-1) ** step)
    for _ in range(LONG):
        run.step(loss=8.0)
    assert run.history.lowest is not None
    assert run.history.lowest == pytest.approx((3.0, 1.0))


def test_steps_that_are_not_finite_are_no_part_of_the_losses() -> None:
    run = DrivenRun()
    run.step(2.0)
    run.step(math.nan)
    run.step(3.0, norm=math.inf)
    assert list(run.history.losses) == [2.0]
    assert list(run.history.norms) == [1.0]


def test_scales_are_those_since_the_last_growth() -> None:
    run = DrivenRun()
    for scale in (8.0, 4.0, 4.0, 2.0):
        run.step(scale=scale)
    assert run.history.scales == [8.0, 4.0, 2.0]
    run.step(scale=4.0)
    assert run.history.scales == [4.0]


def test_the_rate_is_that_of_the_steps_since_it_was_last_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    run = DrivenRun()
    run.call("on_train_start")
    rates = []
    # Steps of 8 sequences of 32 tokens; the first is slow and not counted.
    for number, end in enumerate((50.0, 52.0, 54.0, 58.0, 59.0, 60.0)):
        run.module.logs_now = number % 2 == 0
        now = end
        run.step()
        rates.append(run.history.tokens_per_sec)
    assert rates == [None, None, 256 / 2, 256 / 2, 512 / 5, 512 / 5]
    assert run.history.median_tokens_per_sec() == 256 / 2  # of 2, 2, 4, 1, 1


def test_a_checkpoint_holds_the_history_and_what_was_judged(finished: Finished) -> None:
    path = step_files(finished.folder / "checkpoints")[0][1]
    states = torch.load(path, weights_only=True)["callbacks"]
    assert [row[0] for row in states["History"]["validations"]] == [0, 4, 8]
    assert len(states["History"]["losses"]) == 8
    assert {"Diagnosis", "Health"} <= states.keys()
    assert not {"Console", "Throughput", "TensorBoard", "Samples"} & states.keys()
