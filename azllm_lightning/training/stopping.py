"""When to stop early: on a signal or before a deadline, between two steps; at once where nothing would be lost."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(BaseException):
    """Training left early and can go on; not an Exception, so that no library's `except Exception` swallows it."""


class StopRequest:
    """Listens for signals and watches the clock; a run asks `due` at each boundary where it could save and stop.

    The first signal asks for a stop. While `unsaved` is False (preparing data, compiling, the first step) it stops the
    process at once, since nothing would be lost. A second SIGINT (Ctrl+C) ends the process without saving.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.deadline: float | None = None
        """Seconds since the epoch by which the process should be gone; set from trainer.deadline by `until`."""
        self.reason: str | None = None
        self.unsaved = False
        self.finishing, self.at_once = "saving", "stopped"
        """What a person is told after the name of the first signal, and of the second."""
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def until(self, deadline: str | None) -> None:
        """Set the deadline; a span counts from this object's making, the start of the session."""
        self.deadline = parse_deadline(deadline, self.started) if deadline is not None else None

    def listen(self) -> None:
        """(Re)install the handlers: Lightning puts its own in place of them when a fit starts."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        for number in SIGNALS:
            previous = signal.signal(number, self._handle)
            self._previous.setdefault(number, previous)

    def due(self, seconds_needed: float) -> bool:
        """Whether to stop now, when a save and one more step would take `seconds_needed`."""
        if (
            self.reason is None
            and self.deadline is not None
            and time.time() + seconds_needed >= self.deadline
        ):
            self.reason = f"trainer.deadline ({datetime.fromtimestamp(self.deadline):%H:%M:%S})"
        return self.reason is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self._pid:  # a forked child that has not taken its own handlers yet
            os._exit(128 + number)
        if self.reason is not None:
            if number == signal.SIGINT:
                print(f"\n{name}: {self.at_once}", file=sys.stderr, flush=True)
                os._exit(130)
            return
        self.reason = name
        if not self.unsaved:
            raise Stopped(name)
        print(f"\n{name}: {self.finishing}", file=sys.stderr, flush=True)


def parse_deadline(text: str, now: float) -> float:
    """Seconds since the epoch of a deadline: a span from `now` ("11h30m", "45m", "90s") or a clock time ("06:30").

    A clock time that has passed today means tomorrow's; "2026-11-23T06:30" names the day too.
    """
    span = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if span and any(span.groups()):
        hours, minutes, seconds = (int(part or 0) for part in span.groups())
        return now + timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    here = datetime.fromtimestamp(now)
    if clock := re.fullmatch(r"(\d{1,2}):(\d{2})", text):
        hour, minute = int(clock[1]), int(clock[2])
        if hour < 24 and minute < 60:
            at = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (at if at > here else at + timedelta(days=1)).timestamp()
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(
            f"trainer.deadline={text!r} is neither a span (11h30m, 45m, 90s) nor a time (06:30, 2026-11-23T06:30)"
        ) from None
