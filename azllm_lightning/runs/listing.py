"""The rows of `azllm runs`: every run with its status, step, best val_loss and size on disk."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import EVENTS, read_scalars
from azllm_lightning.runs.paths import versions

QUIET_SECONDS = 600.0
"""A run that has written nothing for so long is not training."""


@dataclass(frozen=True)
class RunRow:
    """One run: `status` is done, stopped, training, or unfinished (killed, or silent)."""

    name: str
    status: str
    step: int | None
    best_val_loss: float | None
    num_bytes: int


def list_runs(logs: Path) -> list[RunRow]:
    """The runs in `logs`, by name, newest version first."""
    folders = [folder for parent in sorted(logs.glob("*")) for folder in versions(parent)]
    return [_row(folder) for folder in folders]


def _row(folder: Path) -> RunRow:
    summary = read_summary(folder)
    newest = [step for step, _ in step_files(folder / "checkpoints")[:1]]
    step = max([*newest, *([summary["steps"]] if summary else [])], default=None)
    # A summary older than the newest checkpoint was written by an earlier session.
    is_current = bool(summary) and step == summary["steps"]
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return RunRow(
        name=f"{folder.parent.name}/{folder.name}",
        status=str(summary["status"]) if is_current else _status(folder),
        step=step,
        best_val_loss=summary.get("best_val_loss") if is_current else _best_val_loss(folder),
        num_bytes=sum(file.stat().st_size for file in files),
    )


def _status(folder: Path) -> str:
    """Of a run without a current summary: training, if its curves grew a moment ago."""
    written = max((file.stat().st_mtime for file in folder.glob(EVENTS)), default=-math.inf)
    return "training" if time.time() - written < QUIET_SECONDS else "unfinished"


def _best_val_loss(folder: Path) -> float | None:
    """The lowest finite val_loss of the curve after step 0, or None."""
    curve = read_scalars(folder).get("val_loss", {})
    return min((v for step, v in curve.items() if step and math.isfinite(v)), default=None)


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a run's summary.json; empty if there is none, or it is damaged."""
    try:
        values = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and "steps" in values else {}
