"""Numbers that are not finite: the step is skipped, and a run with many of them rolls back."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from training_runs import Crash, Probe, assert_same_end, curve, raw_points

from azllm_lightning.callbacks import health
from azllm_lightning.callbacks.health import Health, RollBack
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.callbacks import HealthConfig
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.training.causal_lm import CausalLM, StepReport

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]


_windows: dict[int, list[list[int]]] = {}


@pytest.fixture
def windows(train_tiny: Train, probe: Probe) -> dict[int, list[list[int]]]:
    """The windows of each step (0 is the first) of an undisturbed run of 12 steps, trained once."""
    if not _windows:
        train_tiny("run_name=calm", "trainer.max_steps=12", "trainer.val_every_steps=12")
        _windows.update(probe.windows)
        probe.windows.clear()
    return _windows


def last_checkpoint(folder: Path) -> dict[str, dict[str, object]]:
    return torch.load(step_files(folder / "checkpoints")[0][1], weights_only=True)


def test_a_step_that_is_not_finite_changes_no_weight(train_tiny: Train, probe: Probe) -> None:
    """One NaN micro-batch of two skips the complete step, and the run continues."""
    seen: dict[int, dict[str, Tensor]] = {}
    batches = iter(range(100))
    # The second micro-batch of step 2:
    probe.factor = lambda step, batch: math.nan if next(batches) == 5 else 1.0
    for step in (2, 3, 4):
        probe.at(step, lambda step=step: seen.update({step: probe.weights()}))
    folder = train_tiny("trainer.micro_batch_size=2")
    assert all(torch.equal(tensor, seen[3][name]) for name, tensor in seen[2].items())
    assert not all(torch.equal(tensor, seen[4][name]) for name, tensor in seen[3].items())
    saved = last_checkpoint(folder)
    states = saved["optimizer_states"][0]["state"].values()
    assert {float(state["step"]) for state in states if "step" in state} == {7.0}
    assert math.isnan(curve(folder)["train_loss"][3])
    assert math.isfinite(curve(folder)["train_loss"][8])


def poison(probe: Probe, window: list[int]) -> None:
    probe.factor = lambda step, batch: math.nan if window in batch.tolist() else 1.0


def test_a_poisoned_window_is_skipped_and_a_resume_decides_the_same(
    train_tiny: Train, probe: Probe, windows: dict[int, list[list[int]]]
) -> None:
    """A window that breaks the loss costs a rollback; those of its step are not used again."""
    overrides = ["callbacks.health.patience=1", "trainer.max_steps=12"]
    broken = windows[5]
    poison(probe, broken[2])
    rolled_back = train_tiny(*overrides)
    saved = last_checkpoint(rolled_back)
    assert saved["TokenDataModule"]["skipped"] == [[20, 24]]
    assert saved["callbacks"]["Health"]["rollbacks"] == 1
    trained_on = [window for windows in probe.windows.values() for window in windows]
    assert not any(window in trained_on for window in broken)
    assert len(trained_on) == 48
    assert list(curve(rolled_back)["train_loss"]) == list(range(1, 13))
    assert all(map(math.isfinite, curve(rolled_back)["train_loss"].values()))
    points = raw_points(rolled_back)
    assert len(points) == len(set(points)), "the steps before the rollback are still there"

    # Saved after the rollback: the resume finds the decision in the checkpoint.
    probe.signal(9, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    assert_same_end(rolled_back, train_tiny("ckpt_path=last"))

    # Killed after the rollback, before anything was saved: the resume decides the same again.
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny(*overrides)
    assert_same_end(rolled_back, train_tiny("ckpt_path=last"))


@pytest.mark.slow
def test_a_stop_within_a_streak_keeps_its_count(
    train_tiny: Train, probe: Probe, windows: dict[int, list[list[int]]]
) -> None:
    overrides = ["callbacks.health.patience=3", "trainer.max_steps=12"]
    broken = [windows[step][0] for step in (5, 6, 7)]
    probe.factor = lambda step, batch: math.nan if batch.tolist()[0] in broken else 1.0
    straight = train_tiny(*overrides)
    assert last_checkpoint(straight)["TokenDataModule"]["skipped"] == [[20, 32]]
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    assert_same_end(straight, train_tiny("ckpt_path=last"))


def test_a_rollback_before_the_first_checkpoint_goes_to_the_start(
    train_tiny: Train, probe: Probe, windows: dict[int, list[list[int]]]
) -> None:
    poison(probe, windows[1][0])
    folder = train_tiny("callbacks.health.patience=1")
    assert last_checkpoint(folder)["TokenDataModule"]["skipped"] == [[4, 8]]
    assert list(curve(folder)["train_loss"]) == list(range(1, 9))


BREAKS_OFTEN = [
    "callbacks.health.patience=4",
    "trainer.checkpoint_every_steps=1",
    "trainer.max_steps=12",
]


def test_a_long_row_pushes_out_no_state_from_before(
    train_tiny: Train, probe: Probe, windows: dict[int, list[list[int]]]
) -> None:
    broken = [window for step in range(5, 9) for window in windows[step]]
    probe.factor = lambda step, batch: math.nan if batch.tolist()[0] in broken else 1.0
    probe.at(4, lambda: probe.at(4, lambda: pytest.fail("the run went back too far")))
    folder = train_tiny(*BREAKS_OFTEN)
    assert last_checkpoint(folder)["TokenDataModule"]["skipped"] == [[20, 36]]
    assert [probe.windows[step] for step in (5, 6, 7)] == [windows[step] for step in (9, 10, 11)]
    assert not any(window in broken for step in range(5, 12) for window in probe.windows[step])


def test_a_rollback_with_only_younger_checkpoints_goes_to_the_oldest(
    train_tiny: Train, probe: Probe, windows: dict[int, list[list[int]]]
) -> None:
    """A stop saves within a row, too; the run must not start from scratch."""
    broken = [window for step in range(5, 9) for window in windows[step]]
    probe.factor = lambda step, batch: math.nan if batch.tolist()[0] in broken else 1.0
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*BREAKS_OFTEN)
    (stopped, *earlier) = step_files(Path("lightning_logs/tiny/version_0/checkpoints").absolute())
    assert stopped[0] == 7
    for _, path in earlier:
        path.unlink()
    probe.at(6, lambda: pytest.fail("the run went back too far"))
    folder = train_tiny("ckpt_path=last")
    # The windows of steps 5 and 6, counted from 0, are already behind that checkpoint.
    assert last_checkpoint(folder)["TokenDataModule"]["skipped"] == [[28, 36]]
    assert not any(window in broken for step in range(7, 12) for window in probe.windows[step])


def test_a_state_from_which_no_step_can_be_taken_is_left_for_an_earlier_one(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights may be finite and yet give a loss that is not."""

    def spoil() -> None:
        probe.factor = lambda step, batch: math.nan if step >= 6 else 1.0
        probe.at(4, lambda: setattr(probe, "factor", lambda step, batch: 1.0))

    probe.at(4, spoil)  # until the steps from 4 on are taken again
    settings = ["callbacks.health.patience=2", "trainer.checkpoint_every_steps=3"]
    folder = train_tiny(*settings, "trainer.max_steps=9")
    said = " ".join(capsys.readouterr().err.split())
    assert "rolling back to step_00000006.ckpt" in said
    assert "rolling back to step_00000003.ckpt" in said
    assert [step for step, _ in step_files(folder / "checkpoints")] == [9, 6, 3]
    assert [path.name for path in (folder / "checkpoints").glob("*.diverged.ckpt")] == [
        "step_00000006.diverged.ckpt"
    ]


def test_what_a_rollback_leaves_is_not_resumed(train_tiny: Train, probe: Probe) -> None:
    """A stop soon after a rollback is resumed from where it stopped, not from later steps that the
    run has left.
    """
    probe.factor = lambda step, batch: math.nan if step >= 6 else 1.0
    settings = ["callbacks.health.patience=3", "trainer.checkpoint_every_steps=5"]
    probe.signal(7, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*settings, "trainer.max_steps=12")
    probe.at(5, lambda: probe.signal(6, signal.SIGTERM))
    with pytest.raises(Resumable):
        train_tiny("ckpt_path=last")
    states = step_files(Path("lightning_logs/tiny/version_0/checkpoints"))
    assert [step for step, _ in states] == [7, 5]  # and not 8, of before the rollback


@pytest.mark.thorough
def test_too_many_rollbacks_end_the_run_with_a_message(train_tiny: Train, probe: Probe) -> None:
    probe.factor = lambda step, batch: math.nan if step >= 5 else 1.0
    with pytest.raises(ValueError, match=r"steps 6 to 7.* after 2 rollbacks.* optimizer\.lr"):
        train_tiny("callbacks.health.patience=2", "callbacks.health.max_rollbacks=2")
    # What the message advises works.
    probe.factor = lambda step, batch: 1.0
    assert len(curve(train_tiny("ckpt_path=last", "optimizer.lr=0.001"))["train_loss"]) == 8


def test_without_rollbacks_a_broken_run_ends_at_once(train_tiny: Train, probe: Probe) -> None:
    probe.factor = lambda step, batch: math.nan if step >= 5 else 1.0
    with pytest.raises(ValueError, match=r"in steps 6 to 7: the data or the settings"):
        train_tiny("callbacks.health.patience=2", "callbacks.health.max_rollbacks=0")


def test_a_loss_that_stays_high_is_one_spike(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(health.log, "warning", lines.append)
    callback = Health(HealthConfig(patience=2, spike=2.0, max_rollbacks=1, overfit_rise=0.01))
    module = Mock(spec=CausalLM)
    trainer: Any = SimpleNamespace(global_step=0)

    def step(loss: float, scale: float = 1.0) -> None:
        trainer.global_step += 1
        module.step_report = StepReport(loss, 1.0 if math.isfinite(loss) else math.nan, 1e-3, scale)
        callback.on_train_batch_end(trainer, module)

    for loss in (3.0, 3.0, 9.0, 9.0, 3.0, 9.0):
        step(loss)
    assert [line.split(":")[0] for line in lines] == ["step 3", "step 6"]
    step(math.nan, scale=2.0**13)
    assert "step 7 skipped" in lines[-1]
    restored = Health(callback.config)
    older = {"skipped_steps": 1}  # which older checkpoints hold
    restored.load_state_dict({**callback.state_dict(), **older})
    callback = restored
    with pytest.raises(RollBack, match="in steps 7 to 8"):
        step(math.nan)
    assert sum("skipped" in line for line in lines) == 1  # a row of them is one episode
    step(9.0)  # still high, which was reported before the restart
    assert [line.split(":")[0] for line in lines if "jumped" in line] == ["step 3", "step 6"]
    assert max(len(part) for line in lines for part in line.splitlines()) <= 80


def test_an_overflow_of_fp16_is_no_broken_step() -> None:
    callback = Health(HealthConfig(patience=1, spike=2.0, max_rollbacks=1, overfit_rise=0.01))
    module = Mock(spec=CausalLM)
    module.step_report = StepReport(3.0, math.inf, 1e-3, loss_scale=2.0**13)
    trainer: Any = SimpleNamespace(global_step=1)
    callback.on_train_batch_end(trainer, module)
    module.step_report = StepReport(3.0, math.inf, 1e-3, loss_scale=1.0)
    with pytest.raises(RollBack, match=r"in step 1$"):
        callback.on_train_batch_end(trainer, module)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 2.0, 3, 0.01), "patience=0"),
        ((1, 0.0, 3, 0.01), "spike=0.0"),
        ((1, 2.0, -1, 0.01), "max_rollbacks=-1"),
        ((1, 2.0, 3, 0.0), "overfit_rise=0.0"),
    ],
)
def test_health_settings_are_checked(values: tuple[int, float, int, float], message: str) -> None:
    names = ("patience", "spike", "max_rollbacks", "overfit_rise")
    with pytest.raises(ValueError, match=message):
        HealthConfig(**dict(zip(names, values, strict=True)))
