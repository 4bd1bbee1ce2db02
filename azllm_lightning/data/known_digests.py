"""Digests of local files, remembered as long as the files stay as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from azllm_lightning.data.cache import cache_folder

SMALLEST = 1_000_000
"""Smaller files are read each time, which takes no longer."""

SETTLED_SECONDS = 10.0
"""Only a file that has not changed for so long is remembered: the time of a file system may have
steps of seconds, within which a file can change without a trace, or another clock than ours."""

_RECORD = "digests.json"
MOST = 1000
"""Files that are remembered."""
_CHUNK_BYTES = 1 << 20


def file_digest(path: str) -> str:
    """A hash of the content of a file.

    It is remembered in the cache with the file's device, inode, size and times: on Unix, the time
    of a change that nobody can set, so that no writing remains unnoticed. Raises OSError.
    """
    place = str(Path(path).absolute())
    before = _state(place)
    record = _read() if before[2] >= SMALLEST else {}
    if record.get(place, [])[:-1] == before:
        return str(record[place][-1])
    digest = hashlib.blake2b(digest_size=16)
    with Path(place).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    age = time.time() - max(before[3:]) / 1e9
    if before[2] >= SMALLEST and age >= SETTLED_SECONDS and before == _state(place):
        _write({**_read(), place: [*before, digest.hexdigest()]})
    return digest.hexdigest()


def _state(path: str) -> list[int]:
    found = os.stat(path)  # noqa: PTH116
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read() -> dict[str, list[int | str]]:
    try:
        record = json.loads((cache_folder() / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(record: dict[str, list[int | str]]) -> None:
    """Write the newest entries; where the cache cannot be written, nothing is remembered."""
    newest = dict(list(record.items())[-MOST:])
    path = cache_folder() / _RECORD
    temporary = path.with_name(f".{_RECORD}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(newest), encoding="utf-8")
        temporary.replace(path)
