"""Make writes reach the disk, on file systems that can say when they have."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system answers to an operation that it does not have."""


def sync(file: IO[Any]) -> None:
    """Flush `file` to the disk; on a file system without fsync, to the operating system.

    Raises OSError if the data could not be written.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` reach the disk, where the system can do that.

    Its failure is no error: the files themselves are complete. Windows cannot sync a folder, and
    neither can many network and FUSE file systems.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
