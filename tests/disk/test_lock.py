"""One process at a time, also where the file system has no locks, and never because of a dead
one.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from azllm_lightning.disk import lock as module
from azllm_lightning.disk.lock import Lock, State

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock is simulated")
NONE = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]
Fail = Callable[[int], None]


def write_marker(lock: Lock, host: str, pid: int, age: float = 0.0) -> None:
    values = {"host": host, "pid": pid, "token": "0123", "beat": time.time() - age}
    lock.marker.write_text(json.dumps(values).ljust(511) + "\n", encoding="ascii")


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def test_a_lock_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert first.try_acquire() is State.HELD
    assert second.try_acquire() is State.BUSY
    assert second.holder is None
    first.release()
    assert second.try_acquire() is State.HELD
    first.release()  # again, which must not end the other's
    assert first.try_acquire() is State.BUSY
    second.release()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_look_at_a_lock_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, looks = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert looks.is_held() is None
    assert list(tmp_path.iterdir()) == []
    assert lock.try_acquire() is State.HELD
    assert looks.is_held() is True
    assert lock.is_held() is True
    lock.release()
    assert looks.is_held() is False
    # Another process looks exactly while this one wants the lock.
    real = module._lock_descriptor
    answers = iter([False])
    monkeypatch.setattr(module, "_lock_descriptor", lambda d, **_: next(answers, None) or real(d))
    assert lock.try_acquire() is State.HELD
    lock.release()


def test_without_flock_a_look_at_a_lock_asks_its_marker(
    without_flock: Fail, tmp_path: Path
) -> None:
    without_flock(errno.ENOLCK)
    lock, looks = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert lock.try_acquire() is State.HELD
    assert looks.is_held() is True
    lock.release()
    assert looks.is_held() is False
    for host, pid, age, expected in (
        ("vm1", 77, 30.0, True),
        ("vm1", 77, 700.0, False),
        (socket.gethostname(), ended_process(), 0.0, False),
    ):
        write_marker(lock, host, pid, age)
        content = lock.marker.read_bytes()
        assert looks.is_held() is expected
        assert lock.marker.read_bytes() == content


@pytest.mark.parametrize("number", NONE, ids=errno.errorcode.get)
def test_without_flock_a_marker_that_is_renewed_keeps_the_lock(
    number: int,
    without_flock: Fail,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_flock(number)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.3)
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert first.try_acquire() is State.HELD
    states = [second.try_acquire()]
    end = time.monotonic() + 60
    while states[-1] is State.UNKNOWN and time.monotonic() < end:
        time.sleep(0.01)
        states.append(second.try_acquire())
    assert states[0] is State.UNKNOWN
    assert states[-1] is State.BUSY
    assert second.holder == f"process {os.getpid()} on {socket.gethostname()}"
    assert str(second.marker) in second.way_out
    first.release()
    assert second.try_acquire() is State.HELD
    second.release()
    assert not second.marker.exists()
    assert caplog.text.count("does not support locks") == 1


def test_a_marker_of_a_process_that_ended_here_is_taken_over_at_once(
    without_flock: Fail, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_flock(errno.ENOSYS)
    lock = Lock(tmp_path / ".lock")
    pid = ended_process()
    write_marker(lock, socket.gethostname(), pid)
    assert lock.try_acquire() is State.HELD
    assert f"left behind by process {pid}" in caplog.text
    lock.release()


def test_a_marker_with_our_own_number_from_before_a_restart_is_taken_over(
    without_flock: Fail, tmp_path: Path
) -> None:
    """In a container the training is process 1 each time."""
    without_flock(errno.ENOSYS)
    lock = Lock(tmp_path / ".lock")
    write_marker(lock, socket.gethostname(), os.getpid())
    assert lock.try_acquire() is State.HELD
    lock.release()


def test_a_marker_of_a_machine_that_is_gone_is_taken_over_after_a_while(
    without_flock: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(errno.ENOSYS)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.3)
    lock = Lock(tmp_path / ".lock")
    write_marker(lock, "vm1", 77)
    assert lock.try_acquire() is State.UNKNOWN
    assert lock.holder == "process 77 on vm1"
    time.sleep(0.4)
    assert lock.try_acquire() is State.HELD
    lock.release()


def test_a_marker_of_yesterday_is_taken_over_at_once(without_flock: Fail, tmp_path: Path) -> None:
    without_flock(errno.ENOSYS)
    lock = Lock(tmp_path / ".lock")
    write_marker(lock, "vm1", 77, age=86_400)
    assert lock.try_acquire() is State.HELD
    lock.release()


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b'{"host": "vm1"', b"[]"])
def test_a_damaged_marker_is_watched_and_then_taken_over(
    content: bytes, without_flock: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(errno.ENOSYS)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    lock = Lock(tmp_path / ".lock")
    lock.marker.write_bytes(content)
    assert lock.try_acquire() is State.UNKNOWN
    time.sleep(0.2)
    assert lock.try_acquire() is State.HELD
    lock.release()


def test_of_several_that_take_over_at_once_one_gets_the_lock(
    without_flock: Fail, tmp_path: Path
) -> None:
    without_flock(errno.ENOSYS)
    locks = [Lock(tmp_path / ".lock") for _ in range(6)]
    write_marker(locks[0], socket.gethostname(), ended_process())
    together = threading.Barrier(len(locks))

    def take(lock: Lock) -> State:
        together.wait()
        return lock.try_acquire()

    with ThreadPoolExecutor(len(locks)) as pool:
        states = list(pool.map(take, locks))
    assert states.count(State.HELD) == 1
    assert set(states) <= {State.HELD, State.UNKNOWN}
    for lock in locks:
        lock.release()


def test_the_former_holder_is_warned_and_leaves_the_new_marker(
    without_flock: Fail,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_flock(errno.ENOSYS)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    lock = Lock(tmp_path / ".lock")
    assert lock.try_acquire() is State.HELD
    write_marker(lock, "vm2", 5)
    end = time.monotonic() + 30
    while "taken over by another process" not in caplog.text and time.monotonic() < end:
        write_marker(lock, "vm2", 5)  # its renewal may have come between the check and ours
        time.sleep(0.05)
    assert "taken over by another process" in caplog.text
    lock.release()
    assert "vm2" in lock.marker.read_text(encoding="ascii")


def test_a_marker_that_cannot_be_read_any_more_is_released_all_the_same(
    without_flock: Fail, tmp_path: Path
) -> None:
    """A release is part of every end, and must not replace its reason."""
    without_flock(errno.ENOLCK)
    mine = Lock(tmp_path / ".lock")
    assert mine.try_acquire() is State.HELD
    mine.marker.unlink()
    mine.marker.mkdir()  # as good as an error of the disk
    mine.release()
    mine.release()


def test_a_wait_is_reported_with_the_way_out(
    without_flock: Fail,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_flock(errno.ENOLCK)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    lock = Lock(tmp_path / ".lock")
    write_marker(lock, "vm1", 77)
    lock.wait("waiting for the other one")
    lines = [text for text in caplog.messages if text.startswith("waiting for the other one")]
    assert len(lines) == 1
    assert "process 77 on vm1" in lines[0]
    assert f"delete {lock.marker}" in lines[0]
    lock.release()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_place_where_no_file_can_be_made_is_reported_at_once() -> None:
    with pytest.raises(OSError, match="/proc/"):
        Lock(Path("/proc/azllm.lock")).try_acquire()
