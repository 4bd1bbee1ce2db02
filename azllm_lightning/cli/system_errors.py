"""What an error of the operating system means, in words instead of numbers."""

from __future__ import annotations

import errno

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import with_near_path


def system_reason(error: BaseException) -> str:
    """Why the system refused, without "[Errno 2]" and the path, which the message around it has."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    reasons = {
        errno.ENOENT: tr("no such file or folder"),
        errno.EEXIST: tr("there is a file in the place of a folder"),
        errno.EISDIR: tr("a folder, not a file"),
        errno.ENOTDIR: tr("a part of its path is a file, not a folder"),
        errno.EACCES: tr("no permission"),
        errno.EPERM: tr("no permission"),
        errno.ENOSPC: tr("the disk is full"),
        errno.EROFS: tr("the disk is read-only"),
        errno.EADDRINUSE: tr("in use already"),
        errno.EADDRNOTAVAIL: tr("not an address of this machine"),
    }
    return reasons.get(error.errno) or error.strerror or type(error).__name__


def explained(error: BaseException) -> str:
    """The message of an error; one of the system has the file and the reason, in words."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return system_reason(error).strip()
    path = error.filename if isinstance(error.filename, str) else repr(error.filename)
    message = tr("{path}: {reason}", path=path, reason=system_reason(error))
    return with_near_path(message, path) if error.errno == errno.ENOENT else message
