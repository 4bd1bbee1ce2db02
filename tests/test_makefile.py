"""`make train` ends like the training that it starts, but a stop that was asked for is no error."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from azllm_lightning.cli.entrance import EXIT_RESUMABLE

pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("make") is None, reason="needs make"
)


def start_make(folder: Path, training: str) -> subprocess.Popen[str]:
    """`make train` where .venv/bin/python is the shell script `training`."""
    shutil.copy(Path(__file__).parents[1] / "Makefile", folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{training}\n", encoding="utf-8")
    python.chmod(0o755)
    (folder / "pyproject.toml").touch()
    (folder / ".venv" / "installed").touch()
    return subprocess.Popen(
        ["make", "train"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )


@pytest.mark.parametrize("status", [0, 1, 2, EXIT_RESUMABLE, 130])
def test_only_a_training_that_can_be_resumed_is_no_failure(status: int, tmp_path: Path) -> None:
    process = start_make(tmp_path, f"echo trained; exit {status}")
    said, _ = process.communicate(timeout=60)
    is_fine = status in (0, EXIT_RESUMABLE)
    assert (process.returncode == 0) == is_fine
    assert (said.splitlines()[-1] == "trained") == is_fine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_line_after_a_signal_is_that_of_the_training(number: int, tmp_path: Path) -> None:
    """As Ctrl+C, which all processes get; the shell waits until the training has saved."""
    training = (
        "trap 'sleep 0.3; echo resume; exit 75' INT TERM; : > ready; while :; do sleep 0.1; done"
    )
    process = start_make(tmp_path, training)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "resume"
