"""The file that a verb writes to, checked before the work: never one of another program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from azllm_lightning.cli.messages import tr


def own_file(out: str, verb: str, is_own: Callable[[Path], bool]) -> Path:
    """`out` as a path that `verb` may write to.

    Raises ValueError if it has no folder, or if it is something other than an earlier file of
    `verb`, which `is_own` recognizes; OSError if the folder cannot be written.
    """
    path = Path(out)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(
            tr("out={path}: there is no folder {folder}", path=out, folder=path.parent)
        )
    # Not opened unless it is a file: a pipe would keep its reader waiting.
    if path.exists() and not (path.is_file() and is_own(path)):
        raise ValueError(
            tr("out={path} exists and is not a file of {verb}; name another", path=out, verb=verb)
        )
    if not os.access(folder, os.W_OK):
        raise OSError(tr("out={path}: the folder cannot be written", path=out))
    return path


def has_keys(path: Path, *keys: str) -> bool:
    """Whether the file is a JSON object with these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and set(keys) <= values.keys()
