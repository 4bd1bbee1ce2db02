"""Durations as text, and the dates that they lead to."""

from __future__ import annotations

from datetime import datetime

from azllm_lightning.cli.messages import tr


def duration(seconds: float) -> str:
    """A duration in its two largest units: 45 s, 2 min 26 s, 1 h 40 min."""
    left = round(seconds)
    parts: list[str] = []
    for size, unit in zip((86400, 3600, 60, 1), tr("d h min s").split(), strict=True):
        number, left = divmod(left, size)
        if number or parts or size == 1:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def local_time(moment: float) -> datetime | None:
    """The local time at `moment`, in seconds since 1970; None beyond the years of a date."""
    try:
        return datetime.fromtimestamp(moment)
    except (OverflowError, ValueError, OSError):
        return None
