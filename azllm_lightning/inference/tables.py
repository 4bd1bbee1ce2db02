"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from azllm_lightning.cli.streams import one_row

WIDTH = 80


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows under their heads; the first column is aligned left and shortened to fit 80 columns.

    Names from data stay in their row, and do not command the terminal.
    """
    rows = [[one_row(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    room = max(len(head[0]), WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else _shortened(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    )


def _shortened(text: str, width: int) -> str:
    """`text` without its middle if it is longer than `width`: names differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
