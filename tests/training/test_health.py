"""Numbers that are not finite: the step is left out, and a run that has many goes back and around them."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import Crash, Probe, assert_same_end, curve, raw_points

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.callbacks import HealthConfig
from azllm_lightning.runs.checkpoint_files import step_files

Train = Callable[..., Path]


def last_checkpoint(folder: Path) -> dict[str, dict[str, object]]:
    return torch.load(step_files(folder / "checkpoints")[0][1], weights_only=True)


def test_a_step_that_is_not_finite_changes_no_weight(train_tiny: Train, probe: Probe) -> None:
    """One NaN micro-batch of two leaves the whole step out; it is counted, and the run goes on."""
    seen: dict[int, dict[str, Tensor]] = {}
    batches = iter(range(100))
    probe.factor = lambda step, batch: (
        math.nan if next(batches) == 5 else 1.0
    )  # the second micro-batch of step 2
    for step in (2, 3, 4):
        probe.at(step, lambda step=step: seen.update({step: probe.weights()}))
    folder = train_tiny("trainer.accumulate_grad_batches=2")
    assert all(torch.equal(tensor, seen[3][name]) for name, tensor in seen[2].items())
    assert not all(torch.equal(tensor, seen[4][name]) for name, tensor in seen[3].items())
    saved = last_checkpoint(folder)
    assert saved["callbacks"]["Health"]["skipped_steps"] == 1
    states = saved["optimizer_states"][0]["state"].values()
    assert {float(state["step"]) for state in states if "step" in state} == {7.0}
    assert math.isnan(curve(folder)["train_loss"][3])
    assert math.isfinite(curve(folder)["train_loss"][8])


def test_a_spike_is_warned_of(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.factor = lambda step, batch: 3.0 if step == 4 else 1.0
    train_tiny()
    assert capsys.readouterr().err.count("the loss jumped") == 1


def poison(probe: Probe, window: list[int]) -> None:
    probe.factor = lambda step, batch: math.nan if window in batch.tolist() else 1.0


def test_a_poisoned_shard_is_left_out_and_a_resume_decides_the_same(
    train_tiny: Train, probe: Probe
) -> None:
    """A window that breaks the loss each time it is met costs a roll back; its step's windows are not used again."""
    overrides = ["callbacks.health.patience=1", "trainer.max_steps=12"]
    train_tiny(*overrides)
    broken = probe.windows[5]
    poison(probe, broken[2])
    probe.windows.clear()
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
    assert len(points) == len(set(points)), "the steps before the roll back are still there"

    # Saved after the roll back: the resume finds the decision in the checkpoint.
    probe.signal(9, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    assert_same_end(rolled_back, train_tiny("ckpt_path=last"))

    # Killed after the roll back, before anything was saved: the resume comes to the same decision again.
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny(*overrides)
    assert_same_end(rolled_back, train_tiny("ckpt_path=last"))


def test_a_stop_within_a_streak_forgets_nothing_of_it(train_tiny: Train, probe: Probe) -> None:
    overrides = ["callbacks.health.patience=3", "trainer.max_steps=12"]
    train_tiny(*overrides)
    broken = [probe.windows[step][0] for step in (5, 6, 7)]
    probe.factor = lambda step, batch: math.nan if batch.tolist()[0] in broken else 1.0
    straight = train_tiny(*overrides)
    assert last_checkpoint(straight)["TokenDataModule"]["skipped"] == [[20, 32]]
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    assert_same_end(straight, train_tiny("ckpt_path=last"))


def test_a_roll_back_before_the_first_checkpoint_starts_anew(
    train_tiny: Train, probe: Probe
) -> None:
    train_tiny()
    poison(probe, probe.windows[1][0])
    folder = train_tiny("callbacks.health.patience=1")
    assert last_checkpoint(folder)["TokenDataModule"]["skipped"] == [[4, 8]]
    assert list(curve(folder)["train_loss"]) == list(range(1, 9))


def test_a_roll_back_with_only_younger_checkpoints_goes_to_the_oldest(
    train_tiny: Train, probe: Probe
) -> None:
    """Three are kept: with frequent saves a long patience outlives them all, and the run must not start anew."""
    overrides = [
        "callbacks.health.patience=4",
        "trainer.checkpoint_every_steps=1",
        "trainer.max_steps=12",
    ]
    train_tiny(*overrides)
    broken = [window for step in range(5, 9) for window in probe.windows[step]]
    probe.windows.clear()
    probe.factor = lambda step, batch: math.nan if batch.tolist()[0] in broken else 1.0
    probe.at(4, lambda: probe.at(4, lambda: pytest.fail("the run went back too far")))
    folder = train_tiny(*overrides)
    assert last_checkpoint(folder)["TokenDataModule"]["skipped"] == [[20, 36]]
    assert not any(window in broken for step in range(6, 12) for window in probe.windows[step])


def test_too_many_roll_backs_end_the_run_with_a_message(train_tiny: Train, probe: Probe) -> None:
    probe.factor = lambda step, batch: math.nan if step >= 5 else 1.0
    with pytest.raises(ValueError, match=r"steps 6 to 7 .* after 2 roll backs too.* optimizer\.lr"):
        train_tiny("callbacks.health.patience=2", "callbacks.health.max_rollbacks=2")


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 2.0, 3), "patience=0"), ((1, 0.0, 3), "spike=0.0"), ((1, 2.0, -1), "max_rollbacks=-1")],
)
def test_health_settings_are_checked(values: tuple[int, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HealthConfig(*values)
