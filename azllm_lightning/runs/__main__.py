"""azllm runs, or python -m azllm_lightning.runs: list the runs."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.verbs import RunsConfig
from azllm_lightning.runs.listing import RunRow, list_runs


def main() -> None:
    """Command-line entry point."""
    entrance.main("runs", show_runs, RunsConfig.from_mapping)


def show_runs(config: RunsConfig) -> None:
    """Print a table of all runs."""
    rows = list_runs(Path(config.logs_dir))
    if not rows:
        print(tr("no runs in {folder}", folder=Path(config.logs_dir).absolute()))
        return
    print(table(rows))


def table(rows: list[RunRow]) -> str:
    """One line per run, under a header."""
    statuses = {
        "done": tr("done"),
        "stopped": tr("stopped"),
        "training": tr("training"),
        "unfinished": tr("unfinished"),
    }
    cells = [[tr("run"), tr("status"), tr("step"), tr("best val_loss"), tr("size")]]
    for row in rows:
        step = "-" if row.step is None else f"{row.step:,}"
        loss = "-" if row.best_val_loss is None else f"{row.best_val_loss:.4f}"
        size = f"{row.num_bytes / 1e6:,.0f} MB"
        cells.append([row.name, statuses.get(row.status, row.status), step, loss, size])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


if __name__ == "__main__":
    main()
