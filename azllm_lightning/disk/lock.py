"""Locks between processes, on every file system: flock where there is one, else a marker file."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from azllm_lightning.cli.messages import and_then, tr

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
"""A marker's holder renews it this often."""

SILENT_SECONDS = 60.0
"""A marker that is not renewed for so long, while it is watched, belongs to a dead process."""

OLD_SECONDS = 600.0
"""A marker this old is taken over at once; clocks of two machines do not differ by so much."""

SETTLE_SECONDS = 0.3
"""Between writing a marker and reading it again: of two processes that write one, one remains."""

LOOK_SECONDS = 0.05
"""`Lock.is_held` has a free lock for much less than this."""

RECORD_BYTES = 512
"""A marker has a fixed size, so that a renewal never shows half a record."""


class State(enum.Enum):
    """What an attempt to get a lock found."""

    HELD = "held"
    """This process holds the lock now."""
    BUSY = "busy"
    """Another process holds it for certain."""
    UNKNOWN = "unknown"
    """A marker file says that another process holds it, which may be dead: try again."""


@dataclass(frozen=True)
class Marker:
    """The content of a marker file: who holds the lock, and when they last renewed it."""

    host: str
    pid: int
    token: str
    beat: float

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended, or the marker is very old."""
        if time.time() - self.beat > OLD_SECONDS:
            return True
        if self.host != _host() or os.name != "posix":
            return False
        if self.pid == os.getpid():  # in a container started again, numbers of processes return
            return self.token not in _held
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


_held: set[str] = set()
"""The tokens of the markers that this process holds."""


class Lock:
    """A lock on the file `path`, which dies with its process.

    It is an flock (on Windows, a locked byte) where the file system has that. Elsewhere (Google
    Drive, NFS without its lock daemon, many FUSE mounts) a marker file next to `path` names the
    host and the process that hold the lock, and a thread of that process renews it. A marker whose
    process is known to be dead, or that is not renewed while another process watches it, is taken
    over with a warning.

    Not filelock: where flock is missing, its releases raise, wait without end, or leave a marker
    that outlives its machine.
    """

    warned: ClassVar[bool] = False
    """Whether this process has warned that a file system has no locks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marker = path.with_name(f"{path.name}.holder")
        """The marker file, where flock is missing."""
        self._descriptor: int | None = None
        self._token: str | None = None
        self._pid = 0
        self._stop = threading.Event()
        self._watched: Marker | None = None
        self._watched_since = 0.0

    def try_acquire(self) -> State:
        """Get the lock if it is free, without waiting.

        Raises OSError if its file cannot be created.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _lock_descriptor(descriptor)
            if not locked:
                time.sleep(LOOK_SECONDS)  # it may be another process that only looks
                locked = _lock_descriptor(descriptor)
        except OSError:
            os.close(descriptor)
            _warn_without_locks(self.path.parent)
            return self._try_marker()
        if not locked:
            os.close(descriptor)
            return State.BUSY
        self._descriptor = descriptor
        self._pid = os.getpid()
        return State.HELD

    def is_held(self) -> bool | None:
        """Whether a process holds the lock, this one included; None where there is no lock.

        This creates nothing, takes no marker over, and works in a folder that cannot be written.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            return None
        try:
            is_free = _lock_descriptor(descriptor, is_shared=True)
            if is_free:
                _unlock_descriptor(descriptor)
        except OSError:  # without flock, the marker alone counts
            is_free = True
        finally:
            os.close(descriptor)
        marker = _read_marker(self.marker)
        return not is_free or (marker is not None and not marker.is_dead)

    def wait(self, message: str) -> None:
        """Get the lock, however long that takes; `message` is logged if it takes any time."""
        said = False
        while self.try_acquire() is not State.HELD:
            if not said:
                log.warning(and_then(message, self.way_out) if self.holder else message)
                said = True
            time.sleep(0.5)

    @property
    def holder(self) -> str | None:
        """Who holds the lock, as far as a marker file says."""
        found = self._watched
        if found is None:
            return None
        return tr("process {pid} on {host}", pid=found.pid, host=found.host)

    @property
    def way_out(self) -> str:
        """How to take over a lock that a marker file keeps."""
        return tr(
            "It is held by {holder}; if that one no longer runs, it is taken over within "
            "{seconds:.0f} s, or at once if you delete {marker}",
            holder=self.holder,
            seconds=SILENT_SECONDS,
            marker=self.marker,
        )

    def release(self) -> None:
        """Let other processes have the lock."""
        if self._pid != os.getpid():  # a forked worker must not end its parent's lock
            return
        if self._descriptor is not None:
            _unlock_descriptor(self._descriptor)  # forked workers may still have it open
            os.close(self._descriptor)  # the file stays: another process may be waiting for it
            self._descriptor = None
        if self._token is not None:
            self._stop.set()
            _held.discard(self._token)
            with contextlib.suppress(OSError):  # the disk may be gone
                current = _read_marker(self.marker)
                if current is not None and current.token == self._token:
                    self.marker.unlink()
            self._token = None

    def _try_marker(self) -> State:
        found = _read_marker(self.marker)
        if found is not None:
            if not found.is_dead and not self._is_silent(found):
                is_first = self._watched is None or self._watched.token != found.token
                renewed = not is_first and self._watched != found
                if is_first or renewed:
                    self._watched = found
                    self._watched_since = time.monotonic()
                return State.BUSY if renewed else State.UNKNOWN
            if _read_marker(self.marker) != found:  # another process takes it over right now
                return State.UNKNOWN
            log.warning(
                tr(
                    "{marker} was left behind by process {pid} on {host}, which no longer runs: "
                    "taking over",
                    marker=self.marker,
                    pid=found.pid,
                    host=found.host,
                )
            )
            self.marker.unlink(missing_ok=True)
        return self._create_marker()

    def _is_silent(self, found: Marker) -> bool:
        """Whether `found` has been watched for long enough without a renewal."""
        return found == self._watched and time.monotonic() - self._watched_since > SILENT_SECONDS

    def _create_marker(self) -> State:
        token = secrets.token_hex(8)
        try:
            descriptor = os.open(self.marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return State.UNKNOWN
        try:
            os.write(descriptor, _record(token))
        finally:
            os.close(descriptor)
        time.sleep(SETTLE_SECONDS)
        current = _read_marker(self.marker)
        if current is None or current.token != token:
            return State.UNKNOWN
        self._token = token
        self._pid = os.getpid()
        _held.add(token)
        self._stop = threading.Event()
        arguments = (self.marker, token, self._stop)
        threading.Thread(target=_renew, args=arguments, daemon=True).start()
        return State.HELD


def _warn_without_locks(folder: Path) -> None:
    """Warn, once per process, that a file system has no locks."""
    if not Lock.warned:
        Lock.warned = True
        log.warning(
            tr(
                "{folder}: this file system does not support locks; a file marks what is in use "
                "instead",
                folder=folder,
            )
        )


def _lock_descriptor(descriptor: int, is_shared: bool = False) -> bool:
    """Lock an open file; False if another process has it. Raises OSError if it cannot be locked.

    Several may have it with `is_shared`, except on Windows.
    """
    busy = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in busy:
            return False
        raise
    return True


def _unlock_descriptor(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _host() -> str:
    return socket.gethostname()[:64]


def _record(token: str) -> bytes:
    marker = Marker(_host(), os.getpid(), token, round(time.time(), 1))
    return json.dumps(asdict(marker)).encode("ascii").ljust(RECORD_BYTES - 1) + b"\n"


def _read_marker(path: Path) -> Marker | None:
    """The marker in `path`; None if there is none.

    A file that is no marker is one of an unknown process, as old as its time of change.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        return Marker(
            str(values["host"]), int(values["pid"]), str(values["token"]), float(values["beat"])
        )
    except (ValueError, KeyError, TypeError):
        try:
            return Marker("?", 0, "", path.stat().st_mtime)
        except FileNotFoundError:
            return None


def _lost(path: Path, current: Marker | None) -> str:
    if current is None:
        return tr("{marker} was deleted: another process may now start to write here", marker=path)
    return tr(
        "{marker} was taken over by another process: two processes now write here", marker=path
    )


def _renew(path: Path, token: str, stop: threading.Event) -> None:
    """Renew the marker until `stop` is set; warn and end if it is gone or another process's."""
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            current = _read_marker(path)
            if current is None or current.token != token:
                if not stop.is_set():
                    log.warning(_lost(path, current))
                return
            with path.open("r+b") as file:
                file.write(_record(token))
