"""A folder that appears complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of a disk that is full, a file that is too large for it, and a quota."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; it is renamed to `out` on success, else removed.

    Raises ValueError if `out` exists, and OSError if it cannot be written.
    """
    if out.exists():
        raise ValueError(
            tr("out={out} already exists: remove it or choose another folder", out=out)
        )
    made = False
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        made = True
        yield temporary
        _set_usual_modes(temporary)
        temporary.rename(out)
    except BaseException as error:
        if made:  # else it is not ours
            shutil.rmtree(temporary, ignore_errors=True)
        # torch's writer raises a RuntimeError that hides the system's error.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(_message(out, cause)) from error
        raise


def _message(out: Path, error: OSError) -> str:
    """What to do about an error; one without a number is of a library, whose disk may be full."""
    reason = system_reason(error)
    if error.errno in (None, *NO_ROOM):
        return tr(
            "out={out} cannot be written ({error}): free some disk space or choose another folder",
            out=out,
            error=reason,
        )
    return tr("out={out} cannot be written ({error}): choose another folder", out=out, error=reason)


def _set_usual_modes(folder: Path) -> None:
    """Give all files the mode that open() gives: safetensors lets only their owner read them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
