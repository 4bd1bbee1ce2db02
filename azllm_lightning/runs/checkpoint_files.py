"""Checkpoint files that survive: written whole or not at all, verified before use, loaded without pickle."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from azllm_lightning.formats.load import read_checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

BEST, LAST = "best.ckpt", "last.ckpt"
STEP_NAME = re.compile(r"step_(\d{8,})\.ckpt")


def step_path(folder: Path, step: int) -> Path:
    """The full state of optimizer step `step` in a run's checkpoints folder."""
    return folder / f"step_{step:08d}.ckpt"


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """The full states in `folder` with their steps, newest first; by name, not by date, which copying changes."""
    found = ((STEP_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.ckpt"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def write_atomically(checkpoint: dict[str, Any], target: Path) -> None:
    """torch.save to a temporary sibling, fsync of file and folder, os.replace."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(
            error.__context__, OSError
        ):  # torch's writer hides what the system said behind a RuntimeError
            raise error.__context__ from None
        raise
    if (
        os.name == "posix"
    ):  # the new name itself must reach the disk; Windows has no handle for a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what killed saves left behind; only the holder of the run's lock may call this."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def verify(path: Path) -> dict[str, Any]:
    """`read_checkpoint` after the CRC-32 of every part of the file was checked, which torch.load leaves out."""
    if path.is_file():
        try:
            with zipfile.ZipFile(path) as file:
                broken = file.testzip()
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{path}: not a whole checkpoint ({error})") from None
        if broken:
            raise ValueError(
                f"{path}: not a whole checkpoint (its part {broken} does not match its checksum)"
            )
    return read_checkpoint(path)


def valid_steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The full states in `folder` that load whole, newest first; each that does not is told in one line."""
    for step, path in step_files(folder):
        try:
            verify(path)
        except ValueError as error:
            log.warning(f"{error}; taking the one before it")
            continue
        yield step, path


def canonical_loops(trainer: Trainer, step: int, validation_done: bool) -> dict[str, Any]:
    """The state of Lightning's fit loop between optimizer step `step` and the next.

    What Lightning stores depends on the hook that saved (mid-batch, mid-validation, in mid-accumulation, with the old
    micro-batch). Weights and optimizer only ever change between steps, so every checkpoint is one of a boundary, and
    this says so in Lightning's terms: `step` x accumulation batches are completed. If a validation is due at `step`
    and not `validation_done`, the loop is told that it was cut off in it, and runs it before the next step.
    """
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    batches = step * trainer.accumulate_grad_batches
    completed = {"ready": batches, "started": batches, "processed": batches, "completed": batches}
    state["epoch_loop.batch_progress"] = {
        "total": completed,
        "current": dict(completed),
        "is_last_batch": False,
    }
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
    steps = {"ready": step, "completed": step}
    state["epoch_loop.scheduler_progress"] = {"total": steps, "current": dict(steps)}
    optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    optimizer["step"] = {"total": dict(steps), "current": dict(steps)}
    cut_off = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    if not validation_done:
        state["epoch_loop.val_loop.batch_progress"] = {
            "total": cut_off,
            "current": dict(cut_off),
            "is_last_batch": False,
        }
    state["epoch_progress"] = {"total": dict(cut_off), "current": dict(cut_off)}
    return state
