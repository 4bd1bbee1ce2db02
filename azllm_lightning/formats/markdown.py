"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from azllm_lightning.cli.streams import one_row


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under their heads; what a cell holds cannot end it."""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(text: str) -> str:
    return one_row(text).replace("|", "\\|")
