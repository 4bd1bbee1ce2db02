"""metrics.csv: the curve of a run as a table, if logger.csv asks for one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path


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


def carry_table(source: Path, target: Path, last_step: int) -> None:
    """Copy the rows of the table `source` up to `last_step` to `target`, if there are any."""
    rows = [{"step": step, **row} for step, row in table_rows(source) if step <= last_step]
    if not rows:
        return
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
