"""Progress of a long step: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from azllm_lightning.cli.messages import tr

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Reports on stderr how many of `total` bytes (None: unknown) a step has processed."""

    def __init__(self, label: str, total: int | None = None) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = tqdm(
            total=total, desc=label, unit="B", unit_scale=True, disable=None, mininterval=0.5
        )

    def add(self, num_bytes: int) -> None:
        """Count `num_bytes` as processed."""
        self._done += num_bytes
        self._bar.update(num_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        done = self._done / 1e6
        rate = done / max(seconds, 1e-9)
        if self._total is None:
            return tr(
                "{label}: {done:.1f} MB, {rate:.1f} MB/s", label=self._label, done=done, rate=rate
            )
        return tr(
            "{label}: {done:.1f} of {total:.1f} MB, {rate:.1f} MB/s",
            label=self._label,
            done=done,
            total=self._total / 1e6,
            rate=rate,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
