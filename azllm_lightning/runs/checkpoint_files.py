"""The checkpoint files of a run: their names, and which of them are complete."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.formats.load import check_finite, read_checkpoint
from azllm_lightning.runs.atomic import replacing

log = logging.getLogger(__name__)

BEST = "best.ckpt"
LAST = "last.ckpt"
STEP_NAME = re.compile(r"step_(\d{8,})\.ckpt")

PLAIN = (type(None), bool, int, float, str, Tensor, torch.nn.Parameter)
"""Types that torch.load reads with weights_only, without a trial."""


def step_path(folder: Path, step: int) -> Path:
    """The full state of optimizer step `step` in a run's checkpoints folder."""
    return folder / f"step_{step:08d}.ckpt"


def diverged_path(path: Path) -> Path:
    """Where the state of `path` goes if its weights are not finite: no function here finds it."""
    return path.with_name(f"{path.stem}.diverged.ckpt")


def set_aside_after(folder: Path, step: int) -> None:
    """Keep no function here from finding the full states up to `step` first: the newest of those
    after it, which a rollback has left, gets the name of a diverged one, and the others go.
    """
    left = [path for saved, path in step_files(folder) if saved > step]
    for old in [*folder.glob(diverged_path(Path("*")).name), *left[1:]] if left else []:
        with contextlib.suppress(OSError):  # open in another program, on Windows
            old.unlink()
    for newest in left[:1]:
        with contextlib.suppress(OSError):
            newest.replace(diverged_path(newest))


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """The full states in `folder` with their steps, newest first.

    The order is that of the names: copying changes the dates.
    """
    found = ((STEP_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.ckpt"))
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """`torch.save` to `target`, completely or not at all.

    Raises the OSError of the operating system, which torch's writer hides in a RuntimeError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def check_readable(checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value in `checkpoint` that `read_checkpoint` would refuse, and
    the whole file with it: callbacks of the user's own bring any.
    """
    for place, value in _refused(checkpoint, "checkpoint"):
        kind = type(value)
        raise ValueError(
            tr(
                "{place} is a {kind}, with which no checkpoint could be read again: a callback may "
                "save tensors, numbers, text, lists and dicts alone. Convert it in its "
                "state_dict() or on_save_checkpoint(): float(x), x.tolist(), list(x) or str(x)",
                place=place,
                kind=f"{kind.__module__}.{kind.__qualname__}",
            )
        )


def _refused(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The values within `value`, and their places, that torch.load refuses with weights_only."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            inside = f"{place}[{key!r}]"
            yield from _refused(key, inside)
            yield from _refused(item, inside)
    elif kind in (list, tuple):
        for number, item in enumerate(value):
            yield from _refused(item, f"{place}[{number}]")
    elif kind not in PLAIN and not _can_be_read(value):
        yield place, value


def _can_be_read(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # pickling runs the code of any class
        return False
    return True


def verify(path: Path) -> dict[str, Any]:
    """`read_checkpoint` after checking the CRC-32 of every part of the file, which torch.load
    omits, and that the weights are finite.

    Raises ValueError if the file is not complete, or the training that wrote it had diverged.
    """
    if path.is_file():
        try:
            with zipfile.ZipFile(path) as file:
                broken = file.testzip()
        except Exception as error:  # damaged bytes raise a dozen kinds here, too
            message = tr("{path}: not a complete checkpoint ({reason})", path=path, reason=error)
            raise ValueError(message) from None
        if broken:
            raise ValueError(
                tr(
                    "{path}: not a complete checkpoint (the checksum of its part {part} is wrong)",
                    path=path,
                    part=broken,
                )
            )
    checkpoint = read_checkpoint(path)
    check_finite(checkpoint["state_dict"], path)
    return checkpoint


def is_complete(path: Path) -> bool:
    """Whether `verify` accepts the file."""
    try:
        verify(path)
    except ValueError:
        return False
    return True


def valid_steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The complete full states in `folder`, newest first; a warning names each one that is not."""
    for step, path in step_files(folder):
        try:
            verify(path)
        except ValueError as error:
            log.warning(tr("{reason}; trying the previous one", reason=error))
            continue
        yield step, path


def load_resumable(path: Path) -> dict[str, Any]:
    """The verified checkpoint at `path`.

    Raises ValueError if it has weights only.
    """
    checkpoint = verify(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            tr(
                "{path} has weights only, so training cannot resume from it exactly: use "
                "ckpt_path=last, or start a new run from these weights with init_from={path}",
                path=path,
            )
        )
    return checkpoint
