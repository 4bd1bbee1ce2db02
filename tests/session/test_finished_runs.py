"""A resume that has nothing to train changes nothing, and one from elsewhere brings what there
is.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import Crash, Probe, curve

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs import folder as run_folder
from azllm_lightning.runs.checkpoint_files import BEST
from azllm_lightning.training.causal_lm import CausalLM

Train = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("typed", [[], ["trainer.max_steps=4"]], ids=["", "shorter"])
def test_a_finished_run_is_left_as_it_is(
    typed: list[str], train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_tiny()
    before = contents(folder)
    probe.windows.clear()
    capsys.readouterr()
    assert train_tiny("ckpt_path=last", *typed) == folder
    assert contents(folder) == before
    assert not probe.windows
    assert "already at its last step, 8" in capsys.readouterr().err


def test_a_run_in_use_is_refused_before_anything_is_said_of_it(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_tiny("trainer.max_steps=2")
    file = folder / ".hydra" / "config.yaml"
    settings = file.read_text(encoding="utf-8")
    file.write_text(settings.replace("dropout: 0.0", "dropout: 0.25"), encoding="utf-8")
    before = contents(folder)
    holder = run_folder.reopen(folder)
    capsys.readouterr()
    for typed in ([], ["trainer.max_steps=4"]):
        with pytest.raises(ValueError, match="in use by another process that trains this run"):
            train_tiny("ckpt_path=last", *typed)
    assert capsys.readouterr().err == ""
    holder.release()
    assert contents(folder) == before
    train_tiny("ckpt_path=last")
    assert "differs from the newest checkpoint" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_early_stopping_ended_is_left_as_it_is(
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else each resume would train it on to the next validation."""
    compute = CausalLM.on_validation_epoch_end

    def rising(self: CausalLM) -> None:
        self.val_metric.nll += self.trainer.global_step * self.val_metric.tokens
        compute(self)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", rising)
    stopping = ["callbacks.early_stopping=true", "callbacks.early_stopping_patience=1"]
    typed = [*stopping, "trainer.val_every_steps=2"]
    folder = train_tiny(*typed)
    steps = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["steps"]
    assert steps < 8
    before = contents(folder)
    probe.windows.clear()
    capsys.readouterr()
    assert train_tiny("ckpt_path=last") == train_tiny("ckpt_path=last", *typed) == folder
    assert contents(folder) == before
    assert not probe.windows
    warning = " ".join(capsys.readouterr().err.split())
    assert f"at step {steps} of 8: callbacks.early_stopping=false continues it" in warning
    train_tiny("ckpt_path=last", "callbacks.early_stopping=false")
    assert list(probe.windows) == list(range(steps, 8))
    train_tiny("ckpt_path=last", "callbacks.early_stopping=true", "trainer.max_steps=10")
    assert 8 in probe.windows


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_a_stopped_run_with_a_last_step_that_it_has_passed_is_left_as_it_is(
    end: str, train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not done, and the next resume without that last step goes on."""
    if end == "stop":
        probe.signal(4, signal.SIGTERM)
    else:
        probe.crash(5)
    with pytest.raises((Resumable, Crash)):
        train_tiny("callbacks.early_stopping=true", "trainer.checkpoint_every_steps=5")
    folder = Path("lightning_logs/tiny/version_0")
    before = contents(folder)
    probe.windows.clear()
    capsys.readouterr()
    assert train_tiny("ckpt_path=last", "trainer.max_steps=4") == folder
    assert contents(folder) == before
    assert not probe.windows
    said = " ".join(capsys.readouterr().err.split())
    assert "trainer.max_steps=4 trains nothing" in said
    assert "at step 5. Without that setting it goes on to step 8" in said
    assert train_tiny("ckpt_path=last") == folder
    assert list(probe.windows) == [5, 6, 7]


def test_a_finished_run_that_was_best_long_ago_is_not_advised_to_train_longer(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train_tiny() / "summary.json"
    values = {**json.loads(summary.read_text(encoding="utf-8")), "best_step": 4}
    summary.write_text(json.dumps(values), encoding="utf-8")
    capsys.readouterr()
    train_tiny("ckpt_path=last")
    warning = " ".join(capsys.readouterr().err.split())
    assert "its best is step 4: more steps would not help" in warning
    assert "train it longer" not in warning


def test_a_run_whose_report_is_missing_gets_it(train_tiny: Train) -> None:
    """It was killed between its last save and its end."""
    folder = train_tiny()
    (folder / "summary.json").unlink()
    assert train_tiny("ckpt_path=last") == folder
    assert (folder / "summary.json").is_file()


def test_the_time_that_a_rollback_undoes_was_needed_all_the_same(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic = time.monotonic
    broken = iter([True])
    late = 0.0

    def factor(step: int, batch: object) -> float:
        nonlocal late
        if step == 5 and next(broken, False):
            late = 1000.0  # after the checkpoint of step 4
            return math.nan
        return 1.0

    monkeypatch.setattr("time.monotonic", lambda: monotonic() + late)
    probe.factor = factor
    folder = train_tiny("callbacks.health.patience=1")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 8
    assert 1000 <= summary["wall_seconds"] < 2000


def test_a_renamed_run_folder_brings_its_curve_and_its_best_weights(
    train_tiny: Train, tmp_path: Path
) -> None:
    folder = train_tiny()
    copied = tmp_path / "a copy of my run"
    shutil.move(folder, copied)
    before = contents(copied)
    resumed = train_tiny(f"ckpt_path={copied}", "trainer.max_steps=9", "run_name=tiny")
    assert resumed == Path("lightning_logs/tiny/version_0")
    assert contents(copied) == before
    assert list(curve(resumed)["train_loss"]) == list(range(1, 10))
    assert (resumed / "checkpoints" / BEST).is_file()


def test_a_file_that_comes_alone_is_warned_of(
    train_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(train_tiny() / "checkpoints" / "step_00000008.ckpt", alone)
    capsys.readouterr()
    resumed = train_tiny(f"ckpt_path={alone}", "trainer.max_steps=9")
    assert resumed.name == "version_1"
    assert "curve and its best weights do not come along" in capsys.readouterr().err


def test_a_read_only_source_brings_what_can_be_read(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under /kaggle/input; here even the best weights there are damaged."""
    folder = train_tiny()
    best = folder / "checkpoints" / BEST
    best.write_bytes(best.read_bytes()[:1000])

    def read_only(place: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))

    monkeypatch.setattr(run_folder, "reopen", read_only)
    capsys.readouterr()
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=9")
    warnings = capsys.readouterr().err
    assert resumed.name == "version_1"
    assert "continuing in a new version" in warnings
    assert "the best weights until now do not come along" in warnings
    assert list(curve(resumed)["train_loss"]) == list(range(1, 10))
