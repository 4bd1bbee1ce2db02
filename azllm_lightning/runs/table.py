"""metrics.csv: the curve of a run as a table, if logger.csv asks for one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from azllm_lightning.runs.atomic import write_text


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The complete rows of a table, and their steps: a kill or a power cut may have cut one off."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    lines = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    for row in csv.DictReader(lines):
        try:
            step = int(row.pop("step"))
            values = {key: float(value) for key, value in row.items() if value}
        except (KeyError, TypeError, ValueError):
            continue
        yield step, values


def carry_table(source: Path, target: Path, last_step: int) -> list[str]:
    """Let `target` be the rows of the table `source` up to `last_step`; returns its columns.

    It is written completely or not at all; if there are no such rows, there is no file.
    """
    rows = [{"step": step, **row} for step, row in table_rows(source) if step <= last_step]
    columns = sorted({key for row in rows for key in row})
    if not rows:
        target.unlink(missing_ok=True)
        return columns
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(target, text.getvalue())
    return columns
