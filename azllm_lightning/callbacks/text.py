"""Text for a terminal of 80 columns: labels on the left, numbers with the digits they need."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from azllm_lightning.cli.colors import LABEL
from azllm_lightning.cli.durations import duration as duration
from azllm_lightning.cli.sizes import size_text as size_text

WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"


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


def sparkline(values: Sequence[float], width: int) -> str:
    """The finite ones of `values` as at most `width` bars, from the lowest value to the highest.

    Each bar is the mean of neighboring values; "" for fewer than two values.
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if count < 2:
        return ""
    bounds = [i * len(finite) // count for i in range(count + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(bounds)]
    low = min(means)
    scale = (len(BARS) - 1) / ((max(means) - low) or 1.0)
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def one_line(text: str, width: int) -> str:
    """`text` in one line of at most `width` columns, without control characters."""
    printable = "".join(" " if character.isspace() else character for character in text)
    printable = "".join(c for c in printable if unicodedata.category(c)[0] != "C")
    line = re.sub("\N{REPLACEMENT CHARACTER}+", "\N{REPLACEMENT CHARACTER}", printable)
    line = " ".join(line.split())
    if columns(line) <= width:
        return line
    while columns(line) >= width:
        line = line[:-1]
    return line.rstrip() + "…"


def columns(text: str) -> int:
    """The columns that `text` takes on a terminal: two for a Chinese letter, none for an accent."""
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def perplexity_text(value: float) -> str:
    """A perplexity with its significant digits."""
    if value >= 1e6:
        return f"{value:.1e}"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def loss_text(value: float | None) -> str:
    """A loss in nats per token, or bits per byte; "-" where it is unknown.

    Six columns, from 10 on too, so that columns stay aligned.
    """
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 9.99995 else f"{value:.3f}"


def count_text(number: int) -> str:
    """A count, in millions from a million on."""
    if number < 1e6:
        return f"{number:,}"
    return f"{number / 1e6:.1f} M" if number < 1e8 else f"{number / 1e6:,.0f} M"


def ratio_text(part: int, whole: int) -> str:
    """`part` / `whole` to one decimal, or to one digit where it is small."""
    return f"{part / whole:,.1f}" if part >= 0.1 * whole else f"{part / whole:.1g}"


def _wrap(text: str, indent: int) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
