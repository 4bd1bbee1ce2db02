"""Durations as text."""

from __future__ import annotations

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
