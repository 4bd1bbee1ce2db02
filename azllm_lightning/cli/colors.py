"""Colors for a terminal: of what is written to it, never of what a file or a pipe gets."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from azllm_lightning.cli.messages import tr

RED = "31"
GREEN = "32"
YELLOW = "33"
CYAN = "36"
BOLD = "1"

LABEL = 10
"""Columns of a label with the space after it."""

LABELED = re.compile(r"(?:\S{9} |\S(?:.*\S)? {2,})(?=\S)")
TREND = re.compile(r"(↓ [\d.]+)|(↑ [\d.]+)")
SPARKS = re.compile("[▁▂▃▄▅▆▇█]{2,}")


def has_colors(stream: Any) -> bool:
    """Whether to color what is written to `stream`: a terminal, unless NO_COLOR is set.

    See no-color.org. Windows shows colors in its newer terminals, which set WT_SESSION or TERM.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if sys.platform == "win32" and not {"WT_SESSION", "TERM", "ANSICON"} & os.environ.keys():
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # not a stream of the system, or closed
        return False


def paint(text: str, *codes: str) -> str:
    """`text` in the color and style of `codes`."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if text else text


def highlight(text: str) -> str:
    """Lines of a report with their labels, trends, best values and curves colored."""
    return "\n".join(_highlighted(line) for line in text.split("\n"))


def _highlighted(line: str) -> str:
    best = f"  {tr('best')}"
    if line.endswith(best):
        return _highlighted(line.removesuffix(best)) + paint(best, BOLD, GREEN)
    label = LABELED.match(line[:LABEL] + "x") if len(line) > LABEL and line[LABEL] != " " else None
    start = LABEL if label is not None and label.end() == LABEL else 0
    rest = TREND.sub(lambda found: paint(found[0], GREEN if found[1] else RED), line[start:])
    return paint(line[:start], BOLD) + SPARKS.sub(lambda found: paint(found[0], CYAN), rest)
