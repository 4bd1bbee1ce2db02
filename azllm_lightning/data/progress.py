"""Progress of a long step: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from azllm_lightning.cli.durations import duration
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.sizes import size_text

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Reports on stderr how many of `total` bytes (None: unknown) a step has processed, of how many
    documents if it counts them, and the time that is left.
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self._label = label
        self._total = total
        self._done = 0.0
        self._skipped = 0
        self._documents = 0
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = tqdm(
            total=total, desc=label, unit="B", unit_scale=True, disable=None, mininterval=0.5
        )
        if total is None:
            self._bar.set_postfix_str(tr("total unknown"), refresh=False)

    def skip(self, num_bytes: int) -> None:
        """Count `num_bytes` as processed by an earlier session: they say nothing of the speed."""
        self._done += num_bytes
        self._skipped += num_bytes
        if not self._bar.disable:
            self._bar.initial += num_bytes
        self._bar.update(num_bytes)

    def add(self, num_bytes: float, documents: int = 0) -> None:
        """Count `num_bytes`, and `documents`, as processed."""
        self._done += num_bytes
        self._documents += documents
        if documents:
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
        self._bar.update(num_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _details(self) -> list[str]:
        unknown = [tr("total unknown")] if self._total is None else []
        if not self._documents:
            return unknown
        return [*unknown, trn("{count:,} document", "{count:,} documents", self._documents)]

    def _line(self, seconds: float) -> str:
        done = size_text(self._done)
        rate = (self._done - self._skipped) / max(seconds, 1e-9)
        parts = [f"{self._label}: {done}"]
        if self._total is not None:
            total = size_text(self._total)
            parts = [tr("{label}: {done} of {total}", label=self._label, done=done, total=total)]
        parts += [*self._details(), f"{size_text(rate)}/s"]
        if self._total is not None and rate > 0:
            left = duration(max(0, self._total - self._done) / rate)
            parts.append(tr("{time} left", time=left))
        return ", ".join(parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
