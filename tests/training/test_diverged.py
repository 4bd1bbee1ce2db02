"""Weights that are not finite: good states stay, and no command uses the broken ones silently."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import Probe, curve

from azllm_lightning.config.compose import compose
from azllm_lightning.evaluate import evaluate
from azllm_lightning.export import export
from azllm_lightning.formats.load import first_not_finite, load
from azllm_lightning.generate import generate
from azllm_lightning.runs.checkpoint_files import load_resumable, step_files
from azllm_lightning.runs.folder import find_checkpoint
from azllm_lightning.training import saving
from azllm_lightning.training.saving import AtomicCheckpointIO

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]


def spoil(probe: Probe) -> None:
    """Make one weight NaN that every loss depends on."""
    with torch.no_grad():
        probe.module.net.lm_head.weight.view(-1)[5] = math.nan


def is_finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.fixture
def broken(train_tiny: Train, probe: Probe) -> Path:
    """The folder of a run whose weights broke in step 6, and whose last step is saved apart."""
    probe.at(5, lambda: spoil(probe))
    return train_tiny("trainer.checkpoint_every_steps=1", "callbacks.health.patience=100")


def test_a_diverged_state_pushes_out_no_good_one(broken: Path) -> None:
    """Before, three saves after the first NaN left nothing to resume from."""
    files = step_files(broken / "checkpoints")
    assert [step for step, _ in files] == [5, 4, 3]
    assert all(is_finite(path) for _, path in files)
    assert is_finite(broken / "checkpoints/best.ckpt")
    apart = broken / "checkpoints/step_00000008.diverged.ckpt"
    assert list((broken / "checkpoints").glob("*diverged*")) == [apart]
    assert math.isnan(curve(broken)["val_loss"][8])
    assert find_checkpoint("last", "tiny").name == "step_00000005.ckpt"
    with pytest.raises(
        ValueError, match=r"step_00000008\.diverged\.ckpt: the weights are not fini"
    ):
        load_resumable(apart)


def test_a_rollback_goes_to_a_finite_state(train_tiny: Train, probe: Probe) -> None:
    """Steps 6 and 7 are saved within the patience of Health."""
    probe.at(5, lambda: spoil(probe))
    folder = train_tiny("trainer.checkpoint_every_steps=1", "callbacks.health.patience=3")
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 7, 6]
    assert math.isfinite(curve(folder)["val_loss"][8])


def test_states_that_an_earlier_version_saved_are_passed_over(
    broken: Path, train_tiny: Train
) -> None:
    """A resume continues from the newest finite state, and its own saves are kept."""
    checkpoints = broken / "checkpoints"
    state = (checkpoints / "step_00000008.diverged.ckpt").read_bytes()
    for step in (6, 7, 8):
        (checkpoints / f"step_{step:08d}.ckpt").write_bytes(state)
    assert find_checkpoint("last", "tiny").name == "step_00000005.ckpt"
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=7", "schedule.total_steps=7")
    assert resumed.name == broken.name
    assert [step for step, _ in step_files(checkpoints)] == [8, 7, 6, 5]
    assert is_finite(checkpoints / "step_00000007.ckpt")


def test_a_full_disk_removes_no_good_state_for_a_diverged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(checkpoint: object, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (1, 2, 3):
        (tmp_path / f"step_{step:08d}.ckpt").touch()
    monkeypatch.setattr(saving, "write_checkpoint", full)
    io = AtomicCheckpointIO()
    weights = {"w": torch.tensor([1.0, math.inf])}
    io.save_checkpoint({"state_dict": weights, "global_step": 4}, tmp_path / "step_00000004.ckpt")
    assert io.failed is not None
    assert len(step_files(tmp_path)) == 3


def test_a_full_disk_first_loses_what_the_run_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States newer than the step belong to what was rolled back, or are damaged."""
    for step in (1, 2, 7, 8):
        (tmp_path / f"step_{step:08d}.ckpt").touch()
    seen: list[list[int]] = []

    def full(checkpoint: object, target: Path) -> None:
        seen.append([step for step, _ in step_files(tmp_path)])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    io = AtomicCheckpointIO()
    weights = {"w": torch.zeros(1)}
    io.save_checkpoint({"state_dict": weights, "global_step": 3}, tmp_path / "step_00000003.ckpt")
    assert seen == [[8, 7, 2, 1], [7, 2, 1], [2, 1], [2]]


def test_a_full_disk_costs_no_more_states_if_removing_one_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Google Drive, where they are moved to the bin."""
    for step in (1, 2, 3, 4):
        (tmp_path / f"step_{step:08d}.ckpt").write_bytes(bytes(1000))
    is_full, free = True, 100

    def write(checkpoint: object, target: Path) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(bytes(1000))

    monkeypatch.setattr(saving, "write_checkpoint", write)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    io = AtomicCheckpointIO()

    def save(step: int) -> list[int]:
        checkpoint = {"state_dict": {"w": torch.zeros(1)}, "global_step": step}
        io.save_checkpoint(checkpoint, tmp_path / f"step_{step:08d}.ckpt")
        return [step for step, _ in step_files(tmp_path)]

    assert save(5) == save(6) == [4, 3, 2]
    is_full = False
    assert save(7) == [7, 4, 3, 2]
    is_full = True
    assert save(8) == [7, 4, 3]  # perhaps it helps by now


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_value_is_looked_at(value: float) -> None:
    weights = {"a": torch.ones(3), "ids": torch.ones(2, dtype=torch.long), "b": torch.ones(4, 5)}
    assert first_not_finite(weights) is None
    weights["b"][3, 4] = value
    assert first_not_finite(weights) == "b"
    assert first_not_finite({"b": weights["b"].half()}) == "b"
    assert first_not_finite({"ids": weights["ids"]}) is None


def test_no_command_uses_such_weights(broken: Path, train_tiny: Train) -> None:
    path = broken / "checkpoints/step_00000008.diverged.ckpt"
    given = [f"ckpt_path={path}"]
    with pytest.raises(ValueError, match="the weights are not finite"):
        load(path)
    for use, verb, settings in [
        (generate, "generate", [*given, "prompt=Bir", "max_new_tokens=2"]),
        (evaluate, "evaluate", given),
        (export, "export", [*given, "out=exported"]),
    ]:
        with pytest.raises(ValueError, match=r"diverged\.ckpt: the weights are not finite"):
            use(compose(settings, verb))
    assert not Path("exported").exists()
    with pytest.raises(ValueError, match="the weights are not finite"):
        train_tiny(f"init_from={path.absolute()}")
