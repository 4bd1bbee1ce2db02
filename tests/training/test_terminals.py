"""Terminals and pipes that go away, and signals that the caller had ignored."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from training_runs import add_callback, start, wait_for

from azllm_lightning.cli.entrance import EXIT_DONE, EXIT_RESUMABLE
from azllm_lightning.runs.checkpoint_files import step_files

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs terminals and signals"),
    pytest.mark.thorough,
]


def log_lines(folder: Path) -> str:
    return (folder / "lightning_logs/tiny/version_0/train.log").read_text(encoding="utf-8")


def newest_step(folder: Path) -> int:
    return step_files(folder / "lightning_logs/tiny/version_0/checkpoints")[0][0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="closing it sends SIGHUP on Linux")
def test_a_closed_terminal_saves_the_step(tiny: list[str], tmp_path: Path) -> None:
    """The system sends SIGHUP, and every write fails from then on."""
    ours, theirs = os.openpty()
    flag = tmp_path / "here"
    pause = add_callback("Pause", step=3, flag=flag, seconds=1)
    process = start([*tiny, *pause], tmp_path, output_path=os.ttyname(theirs))
    os.close(theirs)
    os.set_blocking(ours, False)
    end = time.monotonic() + 120
    while not flag.exists() and time.monotonic() < end:
        try:  # a terminal shows what is written to it
            os.read(ours, 4096)
        except OSError:
            time.sleep(0.01)
    os.close(ours)
    process.join(60)
    assert process.exitcode == EXIT_RESUMABLE
    assert newest_step(tmp_path) == 3
    assert "stopped by SIGHUP at step 3, saved" in log_lines(tmp_path)


def test_a_pipe_that_nobody_reads_ends_nothing(tiny: list[str], tmp_path: Path) -> None:
    """As after `| head`; train.log has all lines."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start(tiny, tmp_path, output_path=str(pipe))
    reader = os.open(pipe, os.O_RDONLY)
    os.read(reader, 1)
    os.close(reader)
    process.join(60)
    assert process.exitcode == EXIT_DONE
    assert newest_step(tmp_path) == 8
    assert "step 8  val_loss" in log_lines(tmp_path)


def test_a_signal_that_was_ignored_stays_ignored(tiny: list[str], tmp_path: Path) -> None:
    """SIGHUP under nohup, SIGINT in a background job of a script; SIGTERM still stops."""
    flag = tmp_path / "here"
    pause = add_callback("Pause", step=3, flag=flag, seconds=2)
    ignored = (signal.SIGHUP, signal.SIGINT)
    process = start([*tiny, *pause], tmp_path, ignored=ignored)
    wait_for(flag)
    for number in ignored:
        os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == EXIT_DONE
    assert newest_step(tmp_path) == 8
