"""Curves outlive a disk that is full for a while."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.runs.event_file import CurveWriter

if sys.platform == "win32":
    pytest.skip("the size of files cannot be limited", allow_module_level=True)
import resource


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [-1, 0, 10, 200])
def test_what_a_full_disk_refuses_is_written_later(
    room: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for nothing, for a part of the next event, and for some events."""
    writer = CurveWriter(str(tmp_path))
    writer.add_scalar("loss", 1.0, 1)
    with no_file_longer_than(0 if room < 0 else 10**9):
        writer.flush()
    used = sum(path.stat().st_size for path in tmp_path.iterdir())
    with no_file_longer_than(used + max(0, room)):
        for step in range(2, 12):
            writer.add_scalar("loss", float(step), step)
            writer.add_text("samples", "Bir gün", step)
            writer.flush()
    writer.add_scalar("loss", 12.0, 12)
    writer.close()
    assert read_scalars(tmp_path)["loss"] == {step: float(step) for step in range(1, 13)}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().split(":")[0] for record in warnings] == [
        "the curves cannot be written now"
    ]
    (path,) = tmp_path.iterdir()
    shown = [event.step for event in EventFileLoader(str(path)).Load() if event.summary.value]
    assert sorted({*shown}) == list(range(1, 13))  # TensorBoard ends at the first damage


def test_later_writers_of_one_second_come_later_by_name(tmp_path: Path) -> None:
    """Readers sort the files of a run by name."""
    files = []
    for step in range(12):
        writer = CurveWriter(str(tmp_path))
        writer.add_scalar("loss", 0.0, step)
        writer.close()
        new = set(tmp_path.iterdir()) - set(files)
        files += new
    assert files == sorted(files)
    assert list(read_scalars(tmp_path)["loss"]) == list(range(12))
