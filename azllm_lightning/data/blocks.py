"""Blocks of documents: what a worker process cleans or tokenizes at once, and what an interrupted
preparation keeps.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from azllm_lightning.data.cleaning import (
    EOT,
    clean,
    cut,
    has_lost_letters,
    is_garbled,
    is_mostly_cyrillic,
    split_at_markers,
)

BLOCK_CHARS = 1 << 22
"""A block has this many characters or slightly more."""

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Position:
    """A place between two texts of the input: after `texts` texts of file number `file` of
    `stream`.

    `counts` is what reading the files before it has counted, `file_bytes` how many bytes of that
    file have been read: at least those of the texts.
    """

    stream: int = 0
    file: int = 0
    texts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    file_bytes: int = 0


class RawBlock(NamedTuple):
    """Texts as they were read, each with its source, and the position after them."""

    texts: list[str]
    sources: list[str]
    end: Position
    is_last: bool
    """Whether the stream ends here."""
    read_bytes: int = 0
    """Bytes of the files that were read for them."""


@dataclass(frozen=True)
class CleanBlock:
    """The N clean documents of a block.

    `text` (bytes,) is their UTF-8, `ends` (N,) where each ends in it, `digests` (N, 16) their
    hashes, and `sources` (N,) indices of `names`. `pieces` (M,) is how many documents each of the M
    raw texts became, and `counts` what was changed in them, by their number (as text, as JSON
    wants it). `read_bytes` of files were read for them.

    The filters add what they need, and leave the rest empty: `other_languages` (N,) has the code of
    a language that is not wanted, else ""; `signatures` (N, 128) are MinHashes; `lines` (L,) the
    hashes of the different lines of each document, `line_counts` (N,) their numbers.
    """

    text: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    sources: npt.NDArray[np.int64]
    pieces: npt.NDArray[np.int64]
    names: list[str]
    counts: dict[str, dict[str, int]]
    end: Position
    is_last: bool
    read_bytes: int = 0
    other_languages: npt.NDArray[np.str_] = field(default_factory=lambda: np.empty(0, "U3"))
    signatures: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty((0, 1), np.uint32))
    lines: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    line_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The UTF-8 bytes of each document (N,)."""
        return np.diff(self.ends, prepend=0)

    def document(self, index: int) -> str:
        """The text of one document."""
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8")


def clean_block(raw: RawBlock, max_document_bytes: int) -> CleanBlock:
    """Clean the texts of a block, and split the long ones; a pure function."""
    counts: dict[str, dict[str, int]] = {}
    pieces: list[list[str]] = []
    of_text: Counter[str] = Counter()
    for number, text in enumerate(raw.texts):
        pieces.append(_documents(text, max_document_bytes, of_text))
        if of_text:
            counts[str(number)] = dict(of_text)
            of_text.clear()
    numbers = np.array([len(of_text) for of_text in pieces], np.int64)
    names = list(dict.fromkeys(raw.sources))
    index = {name: number for number, name in enumerate(names)}
    sources = np.array([index[source] for source in raw.sources], np.int64)
    block = CleanBlock(
        text=np.empty(0, np.uint8),
        ends=np.empty(0, np.int64),
        digests=np.empty((0, DIGEST_BYTES), np.uint8),
        sources=np.repeat(sources, numbers),
        pieces=numbers,
        names=names,
        counts=counts,
        end=raw.end,
        is_last=raw.is_last,
        read_bytes=raw.read_bytes,
    )
    return with_documents(block, [piece for of_text in pieces for piece in of_text])


def with_documents(block: CleanBlock, texts: Iterable[str]) -> CleanBlock:
    """`block` with these documents; their `sources` and `pieces` are the caller's."""
    documents = [text.encode("utf-8") for text in texts]
    digests = b"".join(map(_digest, documents))
    return replace(
        block,
        text=np.frombuffer(b"".join(documents), np.uint8),
        ends=np.cumsum([len(data) for data in documents], dtype=np.int64),
        digests=np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
    )


def _digest(document: bytes) -> bytes:
    """What tells duplicates, and puts a document into a split: its words, whatever the spaces and
    line breaks between them, which differ between two copies of a book.
    """
    return blake2b(b" ".join(document.split()), digest_size=DIGEST_BYTES).digest()


def _documents(text: str, max_bytes: int, counts: Counter[str]) -> list[str]:
    """The clean documents that `text` is made of."""
    found: list[str] = []
    if is_garbled(text):
        counts["garbled_documents"] += 1
    if has_lost_letters(text):
        counts["documents_with_lost_letters"] += 1
    documents = split_at_markers(clean(text, counts))
    if len(documents) > 1:
        counts["end_markers"] += len(documents) - 1
    for document in documents:
        if EOT in document:
            counts["kept_markers"] += document.count(EOT)
        pieces = cut(document, max_bytes)
        if len(pieces) > 1:
            counts["cut_documents"] += 1
        if not pieces and len(documents) == 1:
            counts["empty_documents"] += 1
        if is_mostly_cyrillic(document):
            counts["cyrillic_documents"] += 1
        found += pieces
    return found


def in_validation(digests: npt.NDArray[np.uint8], val_fraction: float) -> npt.NDArray[np.bool_]:
    """Whether each document (N, 16) is for validation, if its digest decides.

    The split of a document depends on nothing but its words and data.val_fraction.
    """
    tails = np.ascontiguousarray(digests[:, -8:]).view(">u8")[:, 0]
    return tails < np.uint64(math.ceil(val_fraction * 2**64))


_FILTERS = ("other_languages", "signatures", "lines", "line_counts")
_ARRAYS = ("text", "ends", "digests", "sources", "pieces", *_FILTERS)


def write_block(block: CleanBlock, path: Path) -> None:
    """Write `block` to `path`, with a checksum for each array.

    A kill leaves a complete file or none. Nothing is forced onto the disk, so that a power cut may
    leave a damaged one, which is not read.
    """
    header = {
        "names": block.names,
        "counts": block.counts,
        "end": asdict(block.end),
        "is_last": block.is_last,
        "read_bytes": block.read_bytes,
    }
    write_arrays(path, header, {name: getattr(block, name) for name in _ARRAYS})


def read_block(path: Path, with_text: bool = True) -> CleanBlock | None:
    """The block in the file `path`, or None if that is missing or damaged.

    Without its text, that is checked all the same.
    """
    content = read_arrays(path, _ARRAYS if with_text else _ARRAYS[1:], check_all=not with_text)
    if content is None:
        return None
    header, arrays = content
    text = arrays.pop("text", np.empty(0, np.uint8))
    end = Position(**header["end"])
    fields: dict[str, Any] = {**arrays, **header, "end": end}
    return CleanBlock(text=text, **fields)


def write_arrays(path: Path, header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays`, and a `header` that JSON can hold, to `path` as `write_block` does."""
    encoded = np.frombuffer(json.dumps(header).encode("utf-8"), np.uint8)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, header=encoded, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def read_arrays(
    path: Path, names: Iterable[str], check_all: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The header of `path` and its arrays of these `names`; None as for `read_block`.

    With `check_all`, also None if another array is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if check_all and file.zip.testzip() is not None:
                return None
            header = json.loads(file["header"].tobytes())
            return header, {name: file[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
