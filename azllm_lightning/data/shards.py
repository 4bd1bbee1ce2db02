"""Token shards: 16-bit token files and the manifest that vouches for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from azllm_lightning.data.tokenizer import Tokenizer

VERSION = 1
MANIFEST = "manifest.json"
SHARD_TOKENS = 100_000_000
SPLITS = ("train", "val")
DTYPE = np.dtype("<u2")  # nanoGPT's uint16, spelt little-endian for every machine

_HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardFile:
    """One token file: `tokens` is its length, `sha256` the hex digest of its bytes."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One split: `documents` and the `text_bytes` of their UTF-8, and `tokens`, end-of-text tokens included."""

    documents: int
    text_bytes: int
    tokens: int
    files: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` (exclusive) of `split` come from `source`."""

    source: str
    split: str
    start: int
    end: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, and what it was made from.

    `tokenizer` is the fingerprint of the tokenizer, `cleaning` counts what was dropped or repaired, and
    `made_from` keeps the settings that decided the content.
    """

    version: int
    tokenizer: str
    vocab_size: int
    splits: dict[str, Split]
    spans: tuple[Span, ...]
    cleaning: dict[str, int]
    made_from: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        with (folder / MANIFEST).open("w", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of `folder`; ValueError if it is missing, broken or of another version."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["version"] != VERSION:
                raise ValueError(
                    f"{path} has version {values['version']}, not {VERSION}: {_PREPARE_AGAIN}"
                )
            splits = {
                name: Split(
                    **{**split, "files": tuple(ShardFile(**file) for file in split["files"])}
                )
                for name, split in values["splits"].items()
            }
            return cls(
                **{
                    **values,
                    "splits": splits,
                    "spans": tuple(Span(**span) for span in values["spans"]),
                }
            )
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{folder} has no {MANIFEST}: it was not prepared by azllm-lightning, or not to the end; "
                f"python -m azllm_lightning.prepare data.path=TEXT data.dir={folder} writes it where nothing stands yet"
            ) from None
        except (
            KeyError,
            TypeError,
            AttributeError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(
                f"{path} is not a whole manifest ({error!r}): {_PREPARE_AGAIN}"
            ) from error


_PREPARE_AGAIN = "delete the folder and prepare it again"


class ShardWriter:
    """Appends the documents of one split to numbered files, a new one every `shard_tokens` tokens or a little more."""

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._files: list[ShardFile] = []
        self._file: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._file_tokens = 0
        self._documents = self._text_bytes = self.tokens = 0

    def write(self, tokens: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append whole documents, each with its end-of-text token: `tokens` is an array of ids, any integer type."""
        if self._file is None:
            self._file = (self._folder / self._name).open("wb")
        data = tokens.astype(DTYPE).tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self._file_tokens += len(tokens)
        self.tokens += len(tokens)
        self._documents += documents
        self._text_bytes += text_bytes
        if self._file_tokens >= self._shard_tokens:
            self._finish_file()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> Split:
        """Finish the last file and tell what was written."""
        self._finish_file()
        return Split(self._documents, self._text_bytes, self.tokens, tuple(self._files))

    @property
    def _name(self) -> str:
        return f"{self._split}_{len(self._files):05d}.bin"

    def _finish_file(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(
            self._file.fileno()
        )  # the rename that finishes a folder must not overtake its content
        self._file.close()
        self._files.append(ShardFile(self._name, self._file_tokens, self._sha256.hexdigest()))
        self._file, self._sha256, self._file_tokens = None, hashlib.sha256(), 0


class TokenShards:
    """The tokens of one split as one long array on disk; a copy sent to another process opens its own files."""

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self.folder, self.split, self.manifest = folder, split, manifest
        self._files = manifest.splits[split].files
        self._ends = np.cumsum([file.tokens for file in self._files], dtype=np.int64)
        self._maps: list[np.ndarray] | None = None

    @classmethod
    def open(
        cls, folder: str | Path, split: str, tokenizer: Tokenizer | None = None, verify: bool = True
    ) -> TokenShards:
        """The `split` ("train" or "val") of prepared `folder`.

        `verify` reads the files once, to hold them against their digests. Raises ValueError for a missing or broken
        manifest, for files that are not the ones it names, for ids outside the vocabulary, and for shards
        that another tokenizer than `tokenizer` wrote.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if split not in manifest.splits:
            raise ValueError(
                f"{folder} has no split {split!r}, it has {', '.join(manifest.splits)}"
            )
        if tokenizer is not None and tokenizer.fingerprint != manifest.tokenizer:
            raise ValueError(
                f"{folder} was written with another tokenizer ({manifest.tokenizer[:12]}) than the one given "
                f"({tokenizer.fingerprint[:12]}): use {folder / 'tokenizer.json'}, or prepare the text again"
            )
        for file in manifest.splits[split].files:
            _check_file(folder / file.name, file, manifest.vocab_size if verify else None)
        return cls(folder, split, manifest)

    @property
    def fingerprint(self) -> str:
        """sha256 over the digests of the split's files, in order: equal for equal tokens in equal files."""
        return hashlib.sha256(
            "".join(file.sha256 for file in self._files).encode("ascii")
        ).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens `start` to `start + length` as uint16 of shape (length,), a copy; IndexError outside the split."""
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
            start, length, index = start + len(pieces[-1]), length - len(pieces[-1]), index + 1
        return _joined(pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces).astype(np.uint16) if pieces else np.empty(0, dtype=np.uint16)


def _check_file(path: Path, expected: ShardFile, vocab_size: int | None) -> None:
    """Hold a file against its manifest entry: its size, and with `vocab_size` also its digest and its ids."""
    if not path.is_file():
        raise ValueError(f"{path} is missing, though the manifest names it: {_PREPARE_AGAIN}")
    if path.stat().st_size != expected.tokens * DTYPE.itemsize:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, its manifest says {expected.tokens * DTYPE.itemsize}: "
            + _PREPARE_AGAIN
        )
    if vocab_size is None:
        return
    digest, highest = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
            highest = max(highest, int(np.frombuffer(chunk, dtype=DTYPE).max()))
    if digest.hexdigest() != expected.sha256:
        raise ValueError(
            f"{path} is not the file that its manifest names (another sha256): {_PREPARE_AGAIN}"
        )
    if highest >= vocab_size:
        raise ValueError(
            f"{path} holds token id {highest}, but its vocabulary ends at {vocab_size - 1}: {_PREPARE_AGAIN}"
        )
