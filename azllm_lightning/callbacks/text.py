"""Text for a terminal of 80 columns: labels on the left, numbers with the digits they need."""

from __future__ import annotations

import textwrap

from azllm_lightning.cli.durations import duration as duration

WIDTH = 80
LABEL = 10
"""Columns of a label with the space after it."""


def paragraph(text: str) -> str:
    """`text` in lines of at most WIDTH columns; a longer path or command is not broken."""
    return _wrap(text, indent=2)


def labeled(label: str, text: str) -> str:
    """A label and `text` next to it, broken between words."""
    return _wrap(f"{label:<{LABEL}}{text}", indent=LABEL)


def verbatim(label: str, text: str) -> str:
    """A label and a path or command to copy, on a line of its own where it does not fit."""
    if len(label) < LABEL and len(text) <= WIDTH - LABEL:
        return f"{label:<{LABEL}}{text}"
    return f"{label}\n  {text}" if label else f"  {text}"


def perplexity_text(value: float) -> str:
    """A perplexity with its significant digits."""
    if value >= 1e6:
        return f"{value:.1e}"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def loss_text(value: float | None) -> str:
    """A loss in nats per token, or bits per byte; "-" where it is unknown."""
    return "-" if value is None else f"{value:.4f}"


def count_text(number: int) -> str:
    """A count, in millions from a million on."""
    if number < 1e6:
        return f"{number:,}"
    return f"{number / 1e6:.1f} M" if number < 1e8 else f"{number / 1e6:,.0f} M"


def ratio_text(part: int, whole: int) -> str:
    """`part` / `whole` to one decimal, or to one digit where it is small."""
    return f"{part / whole:,.1f}" if part >= 0.1 * whole else f"{part / whole:.1g}"


def size_text(num_bytes: int) -> str:
    """Bytes in units of 10^6 or 10^9."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def _wrap(text: str, indent: int) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
