"""The rows of `azllm runs`: every run with its status, step, best val_loss and size on disk."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azllm_lightning.disk.lock import Lock
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import EVENTS, read_scalars
from azllm_lightning.runs.paths import LOCK, versions

QUIET_SECONDS = 600.0
"""A run without a lock that has written nothing for so long is not training."""


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
    written = max((file.stat().st_mtime for file in folder.glob(EVENTS)), default=-math.inf)
    if summary and (step != summary["steps"] or _goes_on(folder, summary["steps"], written)):
        summary = {}  # it is that of an earlier session
    trains = is_training(folder, -math.inf if summary else written)
    if trains:
        summary = {}
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return RunRow(
        name=f"{folder.parent.name}/{folder.name}",
        status="training" if trains else str(summary.get("status", "unfinished")),
        step=step,
        best_val_loss=summary.get("best_val_loss") if summary else _best_val_loss(folder),
        num_bytes=sum(file.stat().st_size for file in files),
    )


def _goes_on(folder: Path, step: int, written: float) -> bool:
    """Whether the curves, last written at `written`, go on after the summary of `step`.

    Reading them takes long, and those that are older than the summary do not.
    """
    if written < (folder / "summary.json").stat().st_mtime:
        return False
    return max(read_scalars(folder).get("train_loss", {}), default=0) > step


def is_training(folder: Path, last_sign: float) -> bool:
    """Whether a process trains the run in `folder`: it holds the lock of the folder.

    A folder without a lock, such as a copy, counts as training for a while after its `last_sign`
    of life, in seconds since 1970.
    """
    is_held = Lock(folder / LOCK).is_held()
    return time.time() - last_sign < QUIET_SECONDS if is_held is None else is_held


def _best_val_loss(folder: Path) -> float | None:
    """The lowest finite val_loss of the curve after step 0, or None."""
    curve = read_scalars(folder).get("val_loss", {})
    return min((v for step, v in curve.items() if step and math.isfinite(v)), default=None)


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a run's summary.json; empty if there is none, or it is damaged, or of
    another program.
    """
    try:
        values = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(values, dict) and isinstance(values.get("steps"), int)
    return values if is_ours else {}
