"""Runs on file systems without locks: trained, resumed, and never refused for a dead machine."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from azllm_lightning.disk import lock
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.folder import claim, reopen

fcntl = pytest.importorskip("fcntl")
Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lock.Lock, "warned", False)


def as_if_on(host: str, folder: Path) -> Path:
    """Leave the marker of a training on `host` in a run folder."""
    marker = folder / ".lock.holder"
    values = {"host": host, "pid": 99, "token": "0", "beat": time.time()}
    marker.write_text(json.dumps(values).ljust(511) + "\n", encoding="ascii")
    return marker


def test_a_run_is_trained_and_resumed_with_one_warning(
    train_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.dir={tmp_path / 'shards'}", "data.tales_bytes=40_000"]
    folder = train_tiny("trainer.max_steps=2", *settings)
    assert not (folder / ".lock.holder").exists()
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=3", "schedule.total_steps=3")
    assert resumed == folder
    assert step_files(folder / "checkpoints")[0][0] == 3
    warnings = capsys.readouterr().err
    assert warnings.count("does not support locks") == 1


def test_the_marker_of_a_dead_machine_delays_a_resume_and_does_not_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.3)
    run = claim("r", tmp_path)
    run.release()
    as_if_on("vm1", run.folder)
    again = reopen(run.folder)
    again.release()
    assert "is marked as in use by process 99 on vm1: watching" in caplog.text
    assert "taking over" in caplog.text


def test_a_run_in_use_elsewhere_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run = claim("r", tmp_path)
    run.release()
    marker = as_if_on("vm1", run.folder)

    def renew() -> None:
        time.sleep(0.2)
        as_if_on("vm1", run.folder)

    threading.Thread(target=renew).start()
    with pytest.raises(ValueError, match=r"in use by another process .*99 on vm1.*delete ") as no:
        reopen(run.folder)
    assert str(marker) in str(no.value)
