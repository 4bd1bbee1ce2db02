"""Standard output and error that outlive the terminal or the pipe that they lead to."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any


class OutputClosed(Exception):
    """Nobody reads the standard output any more, as after `| head`."""


class LastingFile(io.FileIO):
    """A file descriptor whose writes are dropped from the first one on that fails.

    A closed ssh connection, a finished `| head` and a full disk under a log then end nothing. With
    `is_result`, the text is what the command is for: the first failure raises OutputClosed, or the
    system's error where that is not about a reader.
    """

    def __init__(self, descriptor: int, is_result: bool = False) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_result = is_result
        self.is_broken = False

    def write(self, data: Any, /) -> Any:
        """Write `data`, or drop it if the file is broken; returns the number of bytes."""
        if not self.is_broken:
            try:
                return super().write(data)
            except OSError as error:
                self.is_broken = True
                if self.is_result:
                    raise _closed(error) from None
        return memoryview(data).nbytes


def _closed(error: OSError) -> Exception:
    return OutputClosed() if isinstance(error, BrokenPipeError) else error


def make_streams_last(has_result: bool) -> None:
    """Let sys.stdout and sys.stderr write UTF-8 and outlive their readers.

    `has_result`: standard output is the result of the command, see `LastingFile`.
    """
    sys.stdout = _lasting(sys.stdout, is_result=has_result)
    sys.stderr = _lasting(sys.stderr, is_result=False)


def _lasting(stream: Any, is_result: bool) -> Any:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # unbuffered, under python -u, they are one
    if type(raw) is not io.FileIO or raw.fileno() not in (1, 2):
        # A console of Windows, which has an encoding of its own, or a notebook's or test's stream.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    file = LastingFile(raw.fileno(), is_result)
    return io.TextIOWrapper(
        file if buffer is raw else io.BufferedWriter(file),
        encoding="utf-8",
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
