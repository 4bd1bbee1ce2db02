"""Token shards: files of 16-bit tokens, and the manifest that describes and verifies them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.local_paths import escape_surrogates
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.disk.sync import sync

VERSION = 1
MANIFEST = "manifest.json"
SHARD_TOKENS = 100_000_000
CHUNK_TOKENS = 1 << 20
"""Tokens of a split that are read at once where all of them are gone through."""

SPLITS = ("train", "val")
DTYPE = np.dtype("<u2")  # nanoGPT's uint16, little-endian on every machine

VERIFIED = "verified.json"
"""The record of the files whose content has been checked."""

_HASH_BYTES = 1 << 20
_SAMPLE_PIECES = 16
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class ShardFile:
    """One file of tokens: `tokens` is its length, `sha256` the hex digest of its bytes."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One split: how many documents, UTF-8 bytes, and tokens (including end-of-text) it has."""

    documents: int
    text_bytes: int
    tokens: int
    files: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Span:
    """Tokens [`start`, `end`) of `split` are from `source`."""

    source: str
    split: str
    start: int
    end: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards contains, and what it was made from.

    `tokenizer` is the fingerprint of the tokenizer, `cleaning` counts what was dropped or repaired,
    and `made_from` has the settings that decided the content.
    """

    version: int
    tokenizer: str
    vocab_size: int
    splits: dict[str, Split]
    spans: tuple[Span, ...]
    cleaning: dict[str, int]
    made_from: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """A digest of the training shards and the tokenizer: what a run was trained on."""
        return self._digest("train")

    @property
    def validation(self) -> str:
        """A digest of the validation shards and the tokenizer."""
        return self._digest("val")

    def _digest(self, split: str) -> str:
        parts = [self.tokenizer, *(file.sha256 for file in self.splits[split].files)]
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        with (folder / MANIFEST).open("w", encoding="utf-8", newline="\n") as file:
            file.write(escape_surrogates(text) + "\n")
            sync(file)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of `folder`; ValueError if it is missing, broken or of another version."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["version"]
            if version == VERSION:
                splits = {name: _split(split) for name, split in values["splits"].items()}
                spans = tuple(Span(**span) for span in values["spans"])
                return cls(**{**values, "splits": splits, "spans": spans})
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                tr(
                    "{folder}: no {manifest}, so this is not (complete) prepared data; to prepare "
                    "text in a new folder: "
                    "python -m azllm_lightning.prepare data=text data.path=TEXT data.dir=FOLDER",
                    folder=folder,
                    manifest=MANIFEST,
                )
            ) from None
        except (
            KeyError,
            TypeError,
            AttributeError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise _damaged(
                tr("{path} is not a complete manifest ({error!r})", path=path, error=error)
            ) from error
        raise _damaged(
            tr(
                "{path} has version {found}, not {expected}",
                path=path,
                found=version,
                expected=VERSION,
            )
        )


def _split(values: dict[str, Any]) -> Split:
    return Split(**{**values, "files": tuple(ShardFile(**file) for file in values["files"])})


def _damaged(problem: str) -> ValueError:
    return ValueError(
        tr("{problem}: delete the folder and prepare the text again", problem=problem)
    )


class ShardWriter:
    """Appends documents of a split to numbered files of `shard_tokens` tokens."""

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._files: list[ShardFile] = []
        self._file: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._file_tokens = 0
        self._documents = 0
        self._text_bytes = 0
        self.tokens = 0

    def write(self, tokens: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append documents as integer `tokens`, each with its end-of-text token."""
        self.tokens += len(tokens)
        self._documents += documents
        self._text_bytes += text_bytes
        while len(tokens):
            if self._file is None:
                self._file = (self._folder / self._name).open("wb")
            room = self._shard_tokens - self._file_tokens
            data = tokens[:room].astype(DTYPE).tobytes()
            self._file.write(data)
            self._sha256.update(data)
            self._file_tokens += len(tokens[:room])
            tokens = tokens[room:]
            if self._file_tokens == self._shard_tokens:
                self._finish_file()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> Split:
        """Finish the last file; returns what was written."""
        self._finish_file()
        return Split(self._documents, self._text_bytes, self.tokens, tuple(self._files))

    @property
    def _name(self) -> str:
        return f"{self._split}_{len(self._files):05d}.bin"

    def _finish_file(self) -> None:
        if self._file is None:
            return
        # the rename that finishes a folder must not reach the disk before its content
        sync(self._file)
        self._file.close()
        self._files.append(ShardFile(self._name, self._file_tokens, self._sha256.hexdigest()))
        self._file = None
        self._sha256 = hashlib.sha256()
        self._file_tokens = 0


class TokenShards:
    """The tokens of one split as one array on disk; a pickled copy opens its own files."""

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self._files = manifest.splits[split].files
        self._ends = np.cumsum([file.tokens for file in self._files], dtype=np.int64)
        self._maps: list[np.ndarray] | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        tokenizer: Tokenizer | None = None,
        verify: str = "once",
    ) -> TokenShards:
        """The `split` ("train" or "val") of the prepared `folder`.

        With `verify` "once", the files are read and compared with their checksums the first time,
        and later only if their size, their time or a sample of their content differs from then;
        with "always", each time. Raises ValueError for a
        missing or broken manifest, for files that do not match it, for ids outside the vocabulary,
        and for shards written with another tokenizer than `tokenizer`.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if split not in manifest.splits:
            raise ValueError(
                tr(
                    "{folder}: no split '{split}'; the splits are {names}",
                    folder=folder,
                    split=split,
                    names=", ".join(manifest.splits),
                )
            )
        if tokenizer is not None and tokenizer.fingerprint != manifest.tokenizer:
            raise ValueError(
                tr(
                    "{folder} was prepared with a different tokenizer ({theirs}) from the given "
                    "one ({given}); use {path}, or prepare the text again",
                    folder=folder,
                    theirs=manifest.tokenizer[:12],
                    given=tokenizer.fingerprint[:12],
                    path=folder / "tokenizer.json",
                )
            )
        _check_files(folder, manifest.splits[split].files, manifest.vocab_size, verify == "always")
        return cls(folder, split, manifest)

    @property
    def fingerprint(self) -> str:
        """sha256 over the digests of the split's files, in order."""
        return hashlib.sha256(
            "".join(file.sha256 for file in self._files).encode("ascii")
        ).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """A copy of tokens [start, start + length) as uint16; IndexError outside the split."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)} in {self.folder}")
        if self._maps is None:
            self._maps = [
                np.memmap(self.folder / file.name, dtype=DTYPE, mode="r") for file in self._files
            ]
        pieces: list[np.ndarray] = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            offset = start - (int(self._ends[index - 1]) if index else 0)
            pieces.append(self._maps[index][offset : offset + length])
            start += len(pieces[-1])
            length -= len(pieces[-1])
            index += 1
        if not pieces:
            return np.empty(0, dtype=np.uint16)
        return np.concatenate(pieces).astype(np.uint16)

    def chunks(self) -> Iterator[np.ndarray]:
        """All tokens as uint16, at most CHUNK_TOKENS of them at once."""
        for start in range(0, len(self), CHUNK_TOKENS):
            yield self.read(start, min(CHUNK_TOKENS, len(self) - start))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}


def _check_files(
    folder: Path, files: Sequence[ShardFile], vocab_size: int, is_thorough: bool
) -> None:
    """Check the content of `files`, unless the folder's record says that this has been done."""
    record_path = folder / VERIFIED
    record = _read_record(record_path)
    before = dict(record)
    for file in files:
        path = folder / file.name
        _check_size(path, file)
        if is_thorough or record.get(file.name) != _traits(path, file, vocab_size):
            _check_content(path, file, vocab_size)
            record[file.name] = _traits(path, file, vocab_size)
    if record != before:
        # Without the record (a read-only folder), the files are checked at each start.
        with contextlib.suppress(OSError):
            temporary = record_path.with_name(f".{VERIFIED}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
            temporary.replace(record_path)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _traits(path: Path, file: ShardFile, vocab_size: int) -> dict[str, Any]:
    """What is compared at each start instead of all the content: a megabyte at most is read."""
    stat = path.stat()
    sample = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in range(_SAMPLE_PIECES):
            stream.seek(piece * max(0, stat.st_size - SAMPLE_BYTES) // (_SAMPLE_PIECES - 1))
            sample.update(stream.read(SAMPLE_BYTES))
    return {
        "sha256": file.sha256,
        "vocab_size": vocab_size,
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "sample_sha256": sample.hexdigest(),
    }


def _check_size(path: Path, expected: ShardFile) -> None:
    if not path.is_file():
        raise _damaged(tr("{path} is missing, but the manifest lists it", path=path))
    size = path.stat().st_size
    expected_size = expected.tokens * DTYPE.itemsize
    if size != expected_size:
        raise _damaged(
            tr(
                "{path} has {size:,} bytes, but the manifest says {expected:,}",
                path=path,
                size=size,
                expected=expected_size,
            )
        )


def _check_content(path: Path, expected: ShardFile, vocab_size: int) -> None:
    """Check a file's checksum and its ids."""
    sha256 = hashlib.sha256()
    highest = 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            sha256.update(chunk)
            highest = max(highest, int(np.frombuffer(chunk, dtype=DTYPE).max()))
    if sha256.hexdigest() != expected.sha256:
        raise _damaged(tr("{path} does not match its checksum in the manifest", path=path))
    if highest >= vocab_size:
        raise _damaged(
            tr(
                "{path} contains token id {id}, but the vocabulary ends at {last}",
                path=path,
                id=highest,
                last=vocab_size - 1,
            )
        )
