"""The disk that runs are saved on: its speed, and what its file system can do."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr

MOST_BYTES = 256 * 2**20
FIRST_BYTES = 16 * 2**20
MOST_SECONDS = 6.0
"""How long writing may take; a slow disk gets a smaller file."""

SHARE_OF_FREE = 20
"""At most one byte in so many free ones is written."""


def measure_disk(logs: Path) -> dict[str, Any]:
    """Write a file as a save does (write, fsync), and try locks, links and renames, in the folder
    `logs`, or in the one that it would be created in. Removes everything that it writes.

    Raises OSError or ValueError if nothing can be written there.
    """
    place = logs if logs.is_dir() else logs.absolute().parent
    if not place.is_dir():
        raise ValueError(tr("there is no folder {folder}", folder=place))
    free = shutil.disk_usage(place).free
    with tempfile.TemporaryDirectory(
        prefix=".azllm-check-", dir=place, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        num_bytes, seconds = _written(folder / "save", free)
        abilities = {key: _works(test, folder) for key, test in TESTS.items()}
    return {
        "folder": str(logs),
        "free_bytes": free,
        "written_bytes": num_bytes,
        "write_seconds": seconds,
        "write_bytes_per_second": num_bytes / seconds,
        **abilities,
    }


def _written(path: Path, free: int) -> tuple[int, float]:
    """(bytes, seconds) of one file written and synced, the largest that there is time for."""
    most = max(1, min(MOST_BYTES, free // SHARE_OF_FREE))
    first = min(most, FIRST_BYTES)
    seconds = _write(path, first)
    size = int(min(most, first * MOST_SECONDS / seconds))
    return (size, _write(path, size)) if size > first else (first, seconds)


def _write(path: Path, num_bytes: int) -> float:
    chunk = os.urandom(1 << 20)  # random: some file systems compress
    started = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, num_bytes, len(chunk)):
            file.write(chunk[: num_bytes - start])
        file.flush()
        os.fsync(file.fileno())
    return max(time.perf_counter() - started, 1e-6)


def _works(test: Callable[[Path], bool], folder: Path) -> bool:
    try:
        return test(folder)
    except (OSError, NotImplementedError):
        return False


def locks_exclude(folder: Path) -> bool:
    """Whether a lock of the operating system on a file keeps a second one out."""
    path = folder / "lock"
    with path.open("w") as first, path.open("w") as second:
        _lock(first.fileno())
        try:
            _lock(second.fileno())
        except OSError:
            return True
    return False


def _lock(number: int) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        locking: Any = msvcrt
        locking.locking(number, locking.LK_NBLCK, 1)


def symbolic_links_work(folder: Path) -> bool:
    """Whether a link can be made and followed."""
    (folder / "target").write_text("1", encoding="utf-8")
    (folder / "link").symlink_to("target")
    return (folder / "link").read_text(encoding="utf-8") == "1"


def hard_links_work(folder: Path) -> bool:
    """Whether a file can have a second name."""
    (folder / "named").write_text("1", encoding="utf-8")
    os.link(folder / "named", folder / "second")
    return (folder / "second").read_text(encoding="utf-8") == "1"


def folder_syncs(folder: Path) -> bool:
    """Whether the names in a folder can be made to reach the disk; Windows never can."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
    return True


def replaces(folder: Path) -> bool:
    """Whether a file can take the name of another that is there already."""
    (folder / "old").write_text("old", encoding="utf-8")
    (folder / "new").write_text("new", encoding="utf-8")
    (folder / "new").replace(folder / "old")
    return (folder / "old").read_text(encoding="utf-8") == "new"


TESTS = {
    "locks": locks_exclude,
    "symbolic_links": symbolic_links_work,
    "hard_links": hard_links_work,
    "folder_sync": folder_syncs,
    "replace": replaces,
}
"""What the file system is tried for, by key of check.json."""
