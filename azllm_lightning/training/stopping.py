"""Stopping early on a signal or before a deadline: after the current step, or at once while nothing
is unsaved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from datetime import datetime
from types import FrameType
from typing import Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.trainer import parse_deadline

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)


class Stopped(BaseException):
    """Training ended early and can be resumed.

    It is not an Exception, so that no library's `except Exception` swallows it.
    """


class Requests(NamedTuple):
    """What a process asks for at the end of the current optimizer step."""

    stop: bool = False
    save: bool = False


NO_REQUESTS = Requests()


class StopRequest:
    """Listens for signals and watches the clock.

    A signal sets `reason`, and a run checks `due` wherever it could save and stop. While
    `interruptible`, from `begin` on, the first signal also raises `Stopped` on the spot: preparing
    data, compiling and the validation before the first step may take minutes, and nothing would be
    lost. From the first optimizer step on, and always with several processes, whose collective
    operations must not be left by one of them, nothing is raised. A second Ctrl+C ends the process
    without saving.

    A signal that was ignored when the program began (SIGHUP under nohup, SIGINT in a background job
    of a script) stays ignored.
    """

    def __init__(self, interruptible: bool = True) -> None:
        self.started = time.time()
        self.deadline: float | None = None
        """Seconds since the epoch by which the process should have ended; `until` sets it."""
        self.reason: str | None = None
        self.interruptible = False
        self._may_interrupt = interruptible
        self.shown: list[str] = []
        """What was written to the terminal about a signal."""
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def begin(self) -> None:
        """Be `interruptible` from now on, where `Stopped` is caught.

        Raises Stopped for a signal that came before.
        """
        self.interruptible = self._may_interrupt
        if self.interruptible and self.reason is not None:
            raise Stopped(self.reason)

    def until(self, deadline: str | None) -> None:
        """Set the deadline; a duration counts from the creation of this object, at the session's
        start.
        """
        self.deadline = parse_deadline(deadline, self.started) if deadline is not None else None

    def listen(self) -> None:
        """Install the handlers, unless they are."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous = signal.signal(number, self._handle)
                self._previous.setdefault(number, previous)

    def due(self, seconds_needed: float) -> bool:
        """Whether to stop now, given that a save and one more step take `seconds_needed`."""
        is_late = self.deadline is not None and time.time() + seconds_needed >= self.deadline
        if self.reason is None and self.deadline is not None and is_late:
            clock = datetime.fromtimestamp(self.deadline)
            form = "%H:%M:%S" if clock.date() == datetime.now().date() else "%Y-%m-%d %H:%M"
            self.reason = f"trainer.deadline ({clock:{form}})"
        return self.reason is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal_name(number)
        if os.getpid() != self._pid:  # a forked child that has not installed its own handlers yet
            os._exit(128 + number)
        if self.reason is not None:
            if number == signal.SIGINT:
                _say(tr("{signal}: stopped at once, without saving", signal=name))
                os._exit(130)
            return
        self.reason = name
        if self.interruptible:
            raise Stopped(name)
        message = tr(
            "{signal}: finishing this step, then saving (Ctrl+C again: stop at once)", signal=name
        )
        self.shown.append(message)  # not logged here: a log is no place for a signal handler
        _say(message)


def signal_name(number: int) -> str:
    """The name of a signal as a user knows it: Ctrl+C, SIGTERM, ..."""
    return "Ctrl+C" if number == signal.SIGINT else signal.Signals(number).name


def _say(message: str) -> None:
    # The terminal may be gone, and a signal may come in the middle of another write.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)
