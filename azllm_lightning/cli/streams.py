"""Standard output and error that outlive the terminal or the pipe that they lead to."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import sys
from typing import Any

NAMES = "azllm.names"
"""An error handler for writing text: names of files in an old encoding are shown as letters."""


def one_row(text: str) -> str:
    """`text` with spaces for line breaks and other control characters, which a terminal obeys."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text)


def _shown_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for letters that cannot be written, and where to go on.

    Python keeps the bytes of a name that is not UTF-8 as lone surrogates. Several in a row are read
    as Cyrillic, a single one between Latin letters as Turkish.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    if not all(0xDC80 <= ord(letter) <= 0xDCFF for letter in letters):
        return "?" * len(letters), error.end
    raw = bytes(ord(letter) - 0xDC00 for letter in letters)
    text = raw.decode("cp1251" if len(raw) > 1 else "cp1254", "replace")
    return text.encode(error.encoding, "replace"), error.end


codecs.register_error(NAMES, _shown_names)


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

    def write(self, data: Any, /) -> int:
        """Write `data`, or drop it if the file is broken; returns the number of bytes."""
        if not self.is_broken:
            try:
                return super().write(data) or 0  # None only if the descriptor does not block
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
            stream.reconfigure(encoding="utf-8", errors=NAMES)
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    file = LastingFile(raw.fileno(), is_result)
    return io.TextIOWrapper(
        file if buffer is raw else io.BufferedWriter(file),
        encoding="utf-8",
        errors=NAMES,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
