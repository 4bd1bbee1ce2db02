"""Processes that start side by side and are timed in turn: `gpu.py --together` uses them.

The parent opens `turns`; each measurement calls `take_turn` when it is warm, in a process of its
own, whose end is the end of the turn.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock  # torch needs it anyway

COUNT = "BENCHMARK_TURNS"
FOLDER = "BENCHMARK_TURNS_FOLDER"
"""Environment variables that the processes inherit."""

HELD: list[FileLock] = []
"""The turn of this process: a lock that nothing refers to would be released."""


@contextlib.contextmanager
def turns(count: int, folder: Path) -> Iterator[None]:
    """Let `count` processes that start within this context take turns; `folder` is theirs."""
    folder.mkdir()
    os.environ.update({COUNT: str(count), FOLDER: str(folder)})
    try:
        yield
    finally:
        del os.environ[COUNT], os.environ[FOLDER]
        shutil.rmtree(folder)


def take_turn() -> None:
    """Wait until all are warm or have failed, then for the turns of others; without `turns`, go on
    at once.
    """
    if FOLDER not in os.environ:
        return
    folder = Path(os.environ[FOLDER])
    be_ready(str(os.getpid()))
    while len(list(folder.glob("*.ready"))) < int(os.environ[COUNT]):
        time.sleep(0.1)
    time.sleep(1)  # what compiled may still be ending
    lock = FileLock(folder / "turn")
    lock.acquire()
    HELD.append(lock)


def be_ready(name: str) -> None:
    """The measurement `name` is warm, or has failed: nobody waits for it any longer."""
    if FOLDER in os.environ:
        (Path(os.environ[FOLDER]) / f"{name}.ready").touch()
