"""Stopping early on a signal or before a deadline: after the current step, or at once while nothing
is unsaved.
"""

from __future__ import annotations

import contextlib
import math
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


class StoppedAtOnce(BaseException):
    """Training ended in a notebook, without a save: a KeyboardInterrupt, for which Lightning would
    end the whole process.
    """


class Requests(NamedTuple):
    """What a process asks for at the end of the current optimizer step."""

    stop: bool = False
    save: bool = False


NO_REQUESTS = Requests()

PRESS_SECONDS = 2.0
"""Signals within so long are one press: Colab, Jupyter and Kaggle send a `!` command several."""

OF_NOTEBOOK = "AZLLM_OF_NOTEBOOK"
"""In the environment of the processes that a notebook started for a run."""


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook, and has their variables."""
    return "ipykernel" in sys.modules


class StopRequest:
    """Listens for signals and watches the clock.

    A signal sets `reason`, and a run checks `due` wherever it could save and stop. While
    `interruptible`, from `begin` on, the first signal also raises `Stopped` on the spot: preparing
    data, compiling and the validation before the first step may take minutes, and nothing would be
    lost. From the first optimizer step on, and always with several processes, whose collective
    operations must not be left by one of them, nothing is raised. A second Ctrl+C, at least
    PRESS_SECONDS later, ends the process without saving. While the step is being saved, and always
    in a notebook, whose button is easily pressed twice, it takes a third; the process of a notebook
    stays, with `StoppedAtOnce`.

    A signal that was ignored when the program began (SIGHUP under nohup, SIGINT in a background job
    of a script) stays ignored.
    """

    def __init__(self, interruptible: bool = True) -> None:
        self.started = time.time()
        self.deadline: float | None = None
        """Seconds since the epoch by which the process should have ended; `until` sets it."""
        self.reason: str | None = None
        self.interruptible = False
        self.is_saving = False
        """Whether a checkpoint is being written; `PeriodicCheckpoint` sets it."""
        self._may_interrupt = interruptible
        self._is_of_notebook = in_notebook() or OF_NOTEBOOK in os.environ
        self._pressed_at = -math.inf
        """When the last press came that counted."""
        self._has_warned = False
        """Whether a second Ctrl+C was answered by a warning."""
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
            is_same_press = time.monotonic() - self._pressed_at < PRESS_SECONDS
            if number == signal.SIGINT and not is_same_press:
                self._warn_or_end(name)
            return
        self._pressed_at = time.monotonic()
        self.reason = name
        if self.interruptible:
            raise Stopped(name)
        if self._is_of_notebook:
            self._show(tr("{signal}: finishing this step, then saving", signal=name))
            return
        self._show(
            tr(
                "{signal}: finishing this step, then saving (Ctrl+C again: stop at once)",
                signal=name,
            )
        )

    def _warn_or_end(self, name: str) -> None:
        """After a Ctrl+C that was not the first signal."""
        if (self.is_saving or self._is_of_notebook) and not self._has_warned:
            self._has_warned = True
            self._pressed_at = time.monotonic()
            message = tr(
                "{signal}: this step is being finished and saved (once more: stop at once, without "
                "saving)",
                signal=name,
            )
            self._show(message)
            return
        _say(tr("{signal}: stopped at once, without saving", signal=name))
        if in_notebook():
            raise StoppedAtOnce
        os._exit(130)

    def _show(self, message: str) -> None:
        self.shown.append(message)  # not logged here: a log is no place for a signal handler
        _say(message)


def signal_name(number: int) -> str:
    """The name of a signal as a user knows it: Ctrl+C, SIGTERM, ..."""
    return "Ctrl+C" if number == signal.SIGINT else signal.Signals(number).name


def _say(message: str) -> None:
    # The terminal may be gone, and a signal may come in the middle of another write.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)
