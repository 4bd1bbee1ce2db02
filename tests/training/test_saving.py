"""Which checkpoints are kept, and what a run does where it cannot continue in its folder."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_runs import Crash, Probe, Uninterrupted, assert_same_end, curve

from azllm_lightning.formats.load import FORMAT
from azllm_lightning.runs import folder as run
from azllm_lightning.runs.checkpoint_files import step_files, write_checkpoint
from azllm_lightning.runs.folder import claim, find_checkpoint
from azllm_lightning.training import saving
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.saving import AtomicCheckpointIO, BestCheckpoint

Train = Callable[..., Path]


def steps(folder: Path) -> list[int]:
    return [step for step, _ in step_files(folder / "checkpoints")]


def test_the_newest_three_stay_the_last_step_is_saved_and_last_points_to_it(
    train_tiny: Train,
) -> None:
    """Lightning's save_last=True writes the file twice, and two callbacks in one folder make
    last-v1.ckpt.
    """
    folder = train_tiny("trainer.checkpoint_every_steps=2", "trainer.max_steps=9")
    assert steps(folder) == [9, 8, 6]
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names - {"last.ckpt"} == {"best.ckpt", *(f"step_{step:08d}.ckpt" for step in (9, 8, 6))}
    if "last.ckpt" in names:
        assert (folder / "checkpoints/last.ckpt").resolve().name == "step_00000009.ckpt"
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert "optimizer_states" not in best
    losses = curve(folder)["val_loss"]
    assert best["azllm"]["step"] == min(list(losses)[1:], key=losses.__getitem__)


def test_saving_by_the_clock(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's train_time_interval can save in mid-accumulation."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        saving, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    )
    probe.at(2, lambda: setattr(clock, "now", 61.0), micro=1)
    folder = train_tiny(
        "trainer.checkpoint_every_steps=100",
        "trainer.checkpoint_every_minutes=1",
        "trainer.micro_batch_size=1",
    )
    assert steps(folder) == [8, 3]


def test_a_save_that_failed_is_tried_again_after_a_minute(
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        saving, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    )

    def once(checkpoint: dict[str, Any], target: Path) -> None:
        if checkpoint["global_step"] == 4:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        write_checkpoint(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", once)
    probe.at(6, lambda: setattr(clock, "now", 61.0))
    # Best weights that are saved meanwhile are no full state.
    folder = train_tiny("trainer.checkpoint_every_steps=4", "trainer.val_every_steps=5")
    assert steps(folder) == [8, 7]
    said = capsys.readouterr().err
    assert "the save is tried again" in said
    assert "disk space" not in said


def test_an_old_state_that_another_program_reads_stays_for_now(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no open file."""
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step_00000002.ckpt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    folder = train_tiny("trainer.checkpoint_every_steps=2", "trainer.max_steps=9")
    assert steps(folder) == [9, 8, 6, 2]


@pytest.mark.parametrize(("spoiled_steps", "best_step"), [((4,), 8), ((4, 8), None)])
def test_a_first_val_loss_that_is_not_finite_is_no_best(
    spoiled_steps: tuple[int, ...],
    best_step: int | None,
    train_tiny: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning keeps a NaN of the first validation as the best."""
    compute = CausalLM.on_validation_epoch_end

    def spoiled(self: CausalLM) -> None:
        if self.trainer.global_step in spoiled_steps:
            self.val_metric.nll += math.nan
        compute(self)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", spoiled)
    best = train_tiny() / "checkpoints/best.ckpt"
    assert best.is_file() == (best_step is not None)
    if best_step is not None:
        assert torch.load(best, weights_only=True)["azllm"]["step"] == best_step


def test_a_run_in_a_read_only_folder_continues_in_a_new_version(
    uninterrupted: Callable[..., Uninterrupted], train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Kaggle's inputs. The curve and the best weights come along; the source is not
    changed.
    """
    straight = uninterrupted(
        "trainer.max_steps=10", "schedule.total_steps=8", "schedule.min_lr_ratio=0.1"
    ).folder
    source = train_tiny("schedule.min_lr_ratio=0.1")
    before = {path: path.read_bytes() for path in source.rglob("*.*") if path.is_file()}

    def read_only(folder: Path) -> None:
        raise PermissionError(f"{folder} is read-only")

    monkeypatch.setattr(run, "reopen", read_only)
    resumed = train_tiny(
        f"ckpt_path={source}/checkpoints/step_00000008.ckpt", "trainer.max_steps=10"
    )
    assert resumed.name == "version_1"
    assert (resumed / "checkpoints/best.ckpt").is_file()
    assert {path: path.read_bytes() for path in before} == before
    assert_same_end(straight, resumed)


def test_last_is_in_the_newest_version_that_has_a_complete_checkpoint(train_tiny: Train) -> None:
    train_tiny("trainer.max_steps=1")
    second = train_tiny("trainer.max_steps=2", "trainer.checkpoint_every_steps=1")
    assert find_checkpoint("last", "tiny").parent.parent == second
    for _, path in step_files(second / "checkpoints"):
        os.truncate(path, 100)
    assert find_checkpoint("last", "tiny") == Path(
        "lightning_logs/tiny/version_0/checkpoints/step_00000001.ckpt"
    )
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*other"):
        find_checkpoint("last", "other")


def test_without_a_name_last_says_which_run_it_looked_into_and_which_have_states(
    tmp_path: Path,
) -> None:
    def made(name: str, file: str) -> Path:
        run = claim(name, tmp_path)
        run.release()
        (run.checkpoints / file).touch()
        return run.folder

    newest = made("c", "best.ckpt")
    with pytest.raises(ValueError, match="no complete checkpoint in") as no:
        find_checkpoint("last", logs=tmp_path)
    assert str(newest) in str(no.value)
    assert "run_name" not in str(no.value)
    for folder in (made("a", "step_00000004.ckpt"), made("b", "best.ckpt")):
        os.utime(folder / "checkpoints", (1.0, 1.0))
    with pytest.raises(ValueError, match=r"run_name=NAME: a$") as no:
        find_checkpoint("last", logs=tmp_path)
    assert f"no complete checkpoint in {newest};" in str(no.value)


@pytest.mark.parametrize("worse", [0.0, 10.0])
def test_after_a_crash_best_is_what_the_file_has(
    worse: float, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations come more often than full states, so that best.ckpt may be of a step that the
    crash undid, and that a resume with other settings, here a worse one, does not reach again.
    """
    often = ["trainer.val_every_steps=1", "trainer.checkpoint_every_steps=4"]
    probe.crash(7)
    with pytest.raises(Crash):
        train_tiny(*often)
    best = Path("lightning_logs/tiny/version_0/checkpoints/best.ckpt")
    ahead = torch.load(best, weights_only=True)["azllm"]
    assert ahead["step"] > 4
    compute = CausalLM.on_validation_epoch_end

    def spoiled(self: CausalLM) -> None:
        self.val_metric.nll += worse * self.val_metric.tokens
        compute(self)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", spoiled)
    folder = train_tiny("ckpt_path=last")
    kept = torch.load(best, weights_only=True)["azllm"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["best_step"] == kept["step"]
    assert summary["best_val_loss"] == kept["metrics"]["val_loss"]
    assert kept["metrics"]["val_loss"] <= ahead["metrics"]["val_loss"]
    losses = curve(folder)["val_loss"]
    until_now = {
        step: min(loss for other, loss in losses.items() if 0 < other <= step)
        for step in losses
        if step > 0
    }
    found = {step: loss for step, loss in curve(folder)["val_loss_best"].items() if step > 0}
    assert found == pytest.approx(until_now)


def test_best_weights_that_cannot_be_read_do_not_end_a_resume(
    train_tiny: Train, probe: Probe
) -> None:
    probe.crash(7)
    with pytest.raises(Crash):
        train_tiny()
    best = Path("lightning_logs/tiny/version_0/checkpoints/best.ckpt")
    best.write_bytes(best.read_bytes()[:100])
    log = (train_tiny("ckpt_path=last") / "train.log").read_text(encoding="utf-8")
    assert "the best weights until now cannot be read" in log
    torch.load(best, weights_only=True)


@pytest.mark.parametrize("fails", [True, False])
def test_all_processes_keep_the_same_best_after_a_save(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first process writes, and so only it knows that a save failed: it decides. The
    second process gets its answers here, one for one.
    """
    answers: list[object] = []

    def save(self: ModelCheckpoint, trainer: SimpleNamespace, module: object) -> None:
        """As Lightning's own: all processes note the score, the first writes."""
        self.best_model_score = trainer.callback_metrics["val_loss"]
        self.best_step = trainer.global_step
        if trainer.is_global_zero:
            self.io.failed = "no room" if fails else None

    def decide(decision: Callable[[], object]) -> object:
        answers.append(decision())
        return answers[-1]

    monkeypatch.setattr(ModelCheckpoint, "on_validation_end", save)
    state = {"format": FORMAT, "tokenizer": "", "metrics": {"val_loss": 4.0}, "step": 2}
    write_checkpoint({"azllm": state, "state_dict": {}}, tmp_path / "best.ckpt")
    states = []
    for rank in range(2):
        monkeypatch.setattr(
            saving, "first", decide if rank == 0 else lambda decision: answers.pop(0)
        )
        best = BestCheckpoint(
            tmp_path if rank == 0 else tmp_path / "elsewhere", AtomicCheckpointIO()
        )
        best.load_state_dict({"best_model_score": 4.0, "best_step": 2})
        trainer = SimpleNamespace(
            callback_metrics={"val_loss": torch.tensor(3.0)},
            global_step=4,
            is_global_zero=rank == 0,
            loggers=[],
        )
        best.on_validation_end(trainer, None)
        states.append(best.state_dict())
    assert answers == [], "both processes ask the same number of times"
    expected = (4.0, 2) if fails else (3.0, 4)
    assert states == [{"best_model_score": expected[0], "best_step": expected[1]}] * 2
