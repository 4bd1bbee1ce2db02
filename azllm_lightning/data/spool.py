"""Documents on disk, grouped by split and source, between reading and tokenizing."""

from __future__ import annotations

import shutil
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from azllm_lightning.data.corpus import Document

_LENGTH = struct.Struct("<I")
_BUFFER_BYTES = 1 << 18


class Spool:
    """Accepts documents in any order and returns them source by source.

    The text is read only once, which matters if it comes from a URL, and each source becomes one
    contiguous span of a split. Leaving the context removes `folder`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._paths: dict[tuple[str, str], Path] = {}
        self._reading: BinaryIO | None = None
        self._buffers: defaultdict[tuple[str, str], bytearray] = defaultdict(bytearray)
        self.text_bytes: defaultdict[str, int] = defaultdict(int)
        """UTF-8 bytes per split."""

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        # Windows cannot remove a file that a stopped reader left open.
        if self._reading is not None:
            self._reading.close()
        shutil.rmtree(self._folder)

    def add(self, document: Document) -> int:
        """Store a document; returns its size in UTF-8 bytes."""
        data = document.text.encode("utf-8")
        key = (document.split, document.source)
        buffer = self._buffers[key]
        buffer += _LENGTH.pack(len(data)) + data
        self.text_bytes[document.split] += len(data)
        if len(buffer) >= _BUFFER_BYTES:
            self._flush(key)
        return len(data)

    def texts(self, split: str) -> Iterator[tuple[str, str]]:
        """(source, text) of each document of `split`, sources in order of first appearance."""
        for key in list(self._buffers):
            self._flush(key)
            if key[0] == split:
                with self._paths[key].open("rb") as self._reading:
                    file = self._reading
                    while head := file.read(_LENGTH.size):
                        yield key[1], file.read(*_LENGTH.unpack(head)).decode("utf-8")

    def _flush(self, key: tuple[str, str]) -> None:
        path = self._paths.setdefault(key, self._folder / f"{len(self._paths):05d}")
        # opened each time, so that hundreds of sources do not need hundreds of open files
        with path.open("ab") as file:
            file.write(self._buffers[key])
        self._buffers[key].clear()
