"""Files that are written completely or not at all, whatever interrupts the write."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from azllm_lightning.config.local_paths import escape_surrogates
from azllm_lightning.disk.sync import sync, sync_folder

LEFTOVER = re.compile(
    r"\.(?P<name>.+\.(?:ckpt|json|yaml|html|md|csv)|tracking_id|events\.out\.tfevents\..+?)"
    r"(?P<aside>\.old)?\.\d+\.tmp"
)
"""The names of temporary files of `replacing` in a run folder."""

RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses between attempts to rename a file; Windows refuses that while another program has it, or
what it replaces, open.
"""


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name of `target` when the block ends without an error.

    The bytes go to a temporary file in the same folder, reach the disk, and are renamed; after a
    crash the name is absent, the old file, or the new file. An interrupted write may leave the
    temporary file, which `sweep` removes.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            sync(file)
        _take_name(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)  # the new name itself must reach the disk


def _take_name(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`, also where no file can be renamed onto another."""
    for seconds in RETRY_SECONDS:
        try:
            temporary.replace(target)
            return
        except FileNotFoundError:
            raise
        except PermissionError:  # of the target, or of a scanner that has the new file open
            time.sleep(seconds)
        except OSError:
            if not target.is_file():
                raise
            break  # the file system cannot do it (some FUSE mounts), and will not later
    if not target.is_file():
        temporary.replace(target)
        return
    # An odd mount, or a reader that does not let go: put the old file aside, if that is allowed.
    aside = target.with_name(f".{target.name}.old.{os.getpid()}.tmp")
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    with contextlib.suppress(OSError):
        aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as indented JSON, with non-ASCII characters unescaped."""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    write_text(path, escape_surrogates(text) + "\n")


def sweep(folder: Path) -> None:
    """Remove the temporary files of interrupted writes; only the holder of the run's lock may do
    so.
    """
    for leftover in folder.glob(".*.tmp"):
        match = LEFTOVER.fullmatch(leftover.name)  # no other file that happens to end so
        if match is None or not (leftover.is_file() or leftover.is_symlink()):
            continue
        with contextlib.suppress(OSError):  # open in another program, on Windows
            if match["aside"] and not (folder / match["name"]).exists():
                leftover.rename(folder / match["name"])
            else:
                leftover.unlink()
