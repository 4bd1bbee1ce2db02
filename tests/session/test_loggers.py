"""Trackers next to TensorBoard: each continues a resumed run as the same run."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_runs import tiny_overrides

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.runs import atomic
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.session.build import check_optional
from azllm_lightning.session.loggers import (
    METRICS,
    TableLogger,
    close_trackers,
    tracker,
)

Train = Callable[..., Path]
INTERRUPT = "azllm_lightning.callbacks.interrupt.Interrupt"
STOP = [f"+callbacks.stop.{pair}" for pair in (f"_target_={INTERRUPT}", "step=6", "kill=false")]
NO_SAMPLES = "callbacks.samples.max_new_tokens=0"


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a column of metrics.csv."""
    with (folder / METRICS).open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row[tag])) for row in csv.DictReader(file) if row.get(tag)]


def test_a_table_keeps_the_curve_of_a_resumed_run_without_doubled_steps(
    train_tiny: Train,
) -> None:
    with pytest.raises(Resumable):
        train_tiny("logger=csv", NO_SAMPLES, *STOP)
    folder = train_tiny("ckpt_path=last")
    scalars = read_scalars(folder)
    for tag in ("train_loss", "val_loss", "lr"):
        expected = [(step, pytest.approx(value)) for step, value in scalars[tag].items()]
        assert points(folder, tag) == expected
    assert [step for step, _ in points(folder, "val_loss")] == [0, 4, 8]
    fork = train_tiny(f"ckpt_path={folder}/checkpoints/step_00000006.ckpt")
    assert fork != folder
    assert [step for step, _ in points(fork, "val_loss")] == [0, 4, 8]


def test_a_fork_without_a_table_of_its_own_has_no_later_rows(train_tiny: Train) -> None:
    folder = train_tiny(NO_SAMPLES)
    rows = "step,train_loss,val_loss\n2,5.0,\n4,4.5,4.75\n6,4.0,\n8,3"
    (folder / METRICS).write_text(rows, encoding="utf-8")  # of a session with logger=csv
    fork = train_tiny(f"ckpt_path={folder}/checkpoints/step_00000004.ckpt")
    assert fork != folder
    assert points(fork, "train_loss") == [(2, 5.0), (4, 4.5)]
    assert points(fork, "val_loss") == [(4, 4.75)]


def table_of(folder: Path, rows: str) -> Path:
    """The folder of a run that has this table."""
    run = folder / "a" / "version_0"
    run.mkdir(parents=True)
    (run / METRICS).write_text(rows, encoding="utf-8", newline="")
    return run


@pytest.mark.parametrize("end", ["0.1,3", "0.1,3,", "0.1", "0.1,3,3.", "\0\0\0", "0.1,3,3.0\0\0"])
def test_a_row_that_a_kill_or_a_power_cut_has_cut_off(end: str, tmp_path: Path) -> None:
    """It is lost, as the step will be trained again."""
    run = table_of(tmp_path, "lr,step,train_loss\n0.1,1,5.0\n0.1,2,4.0\n" + end)
    TableLogger(tmp_path, "a", "version_0", 3).save()
    assert points(run, "train_loss") == [(1, 5.0), (2, 4.0)]


def test_a_table_that_is_open_in_another_program_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A spreadsheet has it on Windows."""
    table = TableLogger(tmp_path, "a", "version_0")
    table.log_metrics({"loss": 1.0}, 0)
    table.save()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(table.experiment, "save", refuse)
        for step in (1, 2):
            table.log_metrics({"loss": 2.0}, step)
            table.save()
    table.finalize("success")
    assert points(tmp_path / "a" / "version_0", "loss") == [(0, 1.0), (1, 2.0), (2, 2.0)]
    assert caplog.text.count("the next save tries again") == 1


@pytest.mark.parametrize("refused", ["open", "replace"])
def test_a_table_that_is_open_at_the_start_of_a_session_continues_later(
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until then it stays as it is; a kill in the middle loses no row."""
    run = table_of(tmp_path, "lr,step,loss\n0.1,1,5.0\n0.1,2,4.0\n0.1,3,3.0\n")
    before = (run / METRICS).read_bytes()
    original = getattr(Path, refused)

    def refuse(path: Path, *args: Any, **settings: Any) -> Any:
        if METRICS in path.name and args:  # to write it, or to replace it
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, refused, refuse)
        patch.setattr(Path, "rename", refuse)
        patch.setattr(atomic, "RETRY_SECONDS", (0,))
        table = TableLogger(tmp_path, "a", "version_0", 2)
        for step in (3, 4):
            table.log_metrics({"loss": 2.0, "val_loss": 1.0}, step)
            table.save()
        assert (run / METRICS).read_bytes() == before
    table.log_metrics({"loss": 1.0}, 5)
    table.finalize("success")
    assert points(run, "loss") == [(1, 5.0), (2, 4.0), (3, 2.0), (4, 2.0), (5, 1.0)]
    assert points(run, "lr") == [(1, 0.1), (2, 0.1)]
    assert [path.name for path in run.iterdir() if path.suffix != ".yaml"] == [METRICS]
    assert caplog.text.count("the next save tries again") == 1


def test_an_empty_project_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger\.wandb"):
        compose(['logger.wandb=""'])


def test_a_missing_package_is_named(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="pip install trackio"):
        train_tiny("logger=trackio", NO_SAMPLES)


class Recorded:
    """What a tracker is told: stands for trackio, whose runs are continued by their names."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.ended = 0

    def init(self, **settings: Any) -> Recorded:
        self.opened.append(settings)
        return self

    def log(self, values: dict[str, float], step: int | None) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        if self.ended == len(self.opened):
            raise RuntimeError("nothing is open")
        self.ended += 1


def test_a_resumed_run_has_one_name_at_the_tracker_and_another_run_has_another(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorded()
    monkeypatch.setitem(sys.modules, "trackio", tracker)  # type: ignore[arg-type]
    with pytest.raises(Resumable):
        train_tiny("logger=trackio", "logger.trackio=dərs", NO_SAMPLES, *STOP)
    train_tiny("ckpt_path=last")
    train_tiny("logger=trackio", NO_SAMPLES, "trainer.max_steps=1")
    names = [settings["name"] for settings in tracker.opened]
    assert names[0] == names[1] != names[2]
    assert [settings["project"] for settings in tracker.opened] == [
        "dərs",
        "dərs",
        "azllm-lightning",
    ]
    assert all(settings["resume"] == "allow" for settings in tracker.opened)
    assert tracker.ended == 3
    steps = [step for step, values in tracker.logged if "val_loss" in values]
    assert steps[:3] == [0, 4, 8]
    assert tracker.config["seed"] == 1234


def test_a_run_ends_no_run_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Recorded()
    monkeypatch.setitem(sys.modules, "trackio", tracker)  # type: ignore[arg-type]
    tracker.init()
    close_trackers(compose([]).logger)
    assert tracker.ended == 0
    for _ in range(2):  # the second time nothing is open
        close_trackers(compose(["logger=trackio"]).logger)
    assert tracker.ended == 1


@pytest.mark.slow
def test_trackio_shows_a_resumed_run_as_one(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code = """
import sys
from azllm_lightning import compose, train
from azllm_lightning.cli.entrance import Resumable
try: train(compose(sys.argv[1:]))
except Resumable: pass
"""

    for typed in (
        [*tiny_overrides(), "logger=trackio", NO_SAMPLES, *STOP],
        ["run_name=tiny", "ckpt_path=last"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *typed], timeout=240, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "trackio.cli",
            "list",
            "runs",
            "--project",
            "azllm-lightning",
            "--json",
        ],
        timeout=120,
        capture_output=True,
        text=True,
    )
    runs = json.loads(listed.stdout)["runs"]
    assert len(runs) == 1, listed.stdout


@pytest.mark.slow
def test_wandb_offline_keeps_a_resumed_run_under_one_id(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(Resumable):
        train_tiny("logger=wandb", NO_SAMPLES, *STOP)
    folder = train_tiny("ckpt_path=last")
    sessions = sorted((folder / "wandb").glob("offline-run-*"))
    ids = {session.name.rpartition("-")[2] for session in sessions}
    assert ids == {(folder / "tracking_id").read_text(encoding="utf-8")}
    assert all(list(session.glob("*.wandb")) for session in sessions)
    assert list(read_scalars(folder)["val_loss"]) == [0, 4, 8]
    close_trackers(compose(["logger=wandb"]).logger)  # nothing is open: no error


@pytest.mark.slow
def test_wandb_without_an_account_says_what_to_do(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"logger\.wandb=a: api_key .* WANDB_MODE=offline"):
        train_tiny("logger.wandb=a", NO_SAMPLES)


@pytest.mark.parametrize(
    ("mode", "key", "token", "is_refused"),
    [
        ("online", None, None, True),
        ("online", "a", None, False),
        ("online", None, "file", False),
        ("offline", None, None, False),
        ("disabled", None, None, False),
    ],
)
def test_an_account_at_wandb_is_looked_for_before_the_text_is_prepared(
    mode: str,
    key: str | None,
    token: str | None,
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SimpleNamespace(mode=mode, identity_token_file=token)
    wandb = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=settings), api=SimpleNamespace(api_key=key)
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = compose(["logger.wandb=kitab"])
    if not is_refused:
        check_optional(config)
        return
    with pytest.raises(ValueError, match=r"logger\.wandb=kitab: .* WANDB_MODE=offline"):
        check_optional(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_optional(config)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"logger\.{name}=kitab: .*pip install {name}"):
        tracker(name, "kitab")
