"""How far a long step over bytes of text has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A step called `what` over `total` bytes (None: unknown), told on stderr."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._started = self._told = time.monotonic()
        self._bar = tqdm(
            total=total, desc=what, unit="B", unit_scale=True, disable=None, mininterval=0.5
        )

    def add(self, num_bytes: int) -> None:
        """Count `num_bytes` as done."""
        self._done += num_bytes
        self._bar.update(num_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            of = "" if self._total is None else f" of {self._total / 1e6:.1f}"
            rate = self._done / 1e6 / (now - self._started)
            print(
                f"{self._what}: {self._done / 1e6:.1f}{of} MB, {rate:.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
