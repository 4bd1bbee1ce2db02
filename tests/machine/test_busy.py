"""Whether other programs slowed a measurement down, from the processor times of the system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from azllm_lightning.machine import busy
from azllm_lightning.machine.busy import (
    ProcessorTimes,
    how_busy,
    others_share,
    processor_times,
)


def share(cores: int, threads: int, own: float, others: float) -> float:
    """For ten seconds in which programs had so many seconds of all cores."""
    start = ProcessorTimes(100.0, cores, 5000.0, 70.0)
    return others_share(start, ProcessorTimes(110.0, cores, 5000 + own + others, 70 + own), threads)


def test_only_the_time_of_other_programs_counts() -> None:
    assert share(2, 2, own=19.0, others=0.0) == 0
    assert share(2, 2, own=10.0, others=9.0) == pytest.approx(0.45)
    assert share(2, 2, own=13.0, others=-0.02) == 0, "the two are not read at the same instant"


def test_others_on_further_cores_take_nothing_away() -> None:
    assert share(8, 4, own=39.0, others=40.0) == 0
    assert share(8, 4, own=30.0, others=50.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("cpu_share", "others", "is_busy"),
    [
        (0.49, 0.45, True),
        (0.67, 0.02, False),  # 12 threads with 16 texts wait for one another
        (0.97, 0.40, False),  # the steps had their cores
        (0.49, None, False),
        (None, 0.45, False),
    ],
)
def test_other_programs_are_blamed_only_for_what_they_took(
    cpu_share: float | None, others: float | None, is_busy: bool
) -> None:
    assert bool(how_busy(cpu_share, others)) == is_busy


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of three cores, of which this process may use two, at 100 ticks per second."""
    stat = (
        "cpu  9 9 9 9\ncpu0 100 20 30 9999 7 8 9 0 0 0\ncpu1 200 0 50 9999\ncpu2 777 0 0 9\nbtime 1"
    )
    (tmp_path / "stat").write_text(stat, encoding="utf-8")
    processes = {
        41: "(python -m a) (b)) S 1 41 7 0 -1 0 0 0 0 0 60 5 20 15 20 0",
        42: "(worker) R 41 41 7 0 -1 0 0 0 0 0 10 0 0 0 20 0",
        43: "(other) R 1 43 43 0 -1 0 0 0 0 0 500 0 0 0 20 0",
    }
    for number, text in processes.items():
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} {text}\n", encoding="utf-8")
    (tmp_path / "44").mkdir()  # it has ended meanwhile
    monkeypatch.setattr(busy, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getsid", lambda pid: 7, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100, raising=False)
    return tmp_path


def test_times_are_of_the_allowed_cores_and_of_all_processes_of_this_session(proc: Path) -> None:
    found = processor_times()
    assert found is not None
    assert (found.cores, found.everything, found.own) == (2, 4.0, pytest.approx(1.1))


def test_what_the_system_does_not_say_is_unknown(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 64})
    assert processor_times() is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert processor_times() is not None
    monkeypatch.setattr(os, "getsid", lambda pid: 8)  # of another list of processes
    assert processor_times() is None
    monkeypatch.setattr(os, "getsid", lambda pid: 7)
    (proc / "stat").unlink()
    assert processor_times() is None
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processor_times() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_process_has_times() -> None:
    start = processor_times()
    if start is None:
        pytest.skip("/proc does not say")
    sum(range(3_000_000))
    end = processor_times()
    assert end is not None
    assert end.own >= start.own
    assert 0 <= others_share(start, end, 1) <= 1
