"""Files that are written completely or not at all, whatever interrupts the write."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from azllm_lightning.config.local_paths import escape_surrogates


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
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the new name itself must reach the disk; Windows cannot sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
        leftover.unlink(missing_ok=True)
