"""Find text files by path, folder, glob or URL, and open them as byte streams."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from azllm_lightning.cli.messages import tr, trn

FORMATS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DIGEST_BYTES = 100_000_000
"""Local text up to this size is known by its content, larger text by size and time."""

_BUFFER_BYTES = 1 << 20
_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")


@dataclass(frozen=True)
class TextFile:
    """A file of text: `format` is one of FORMATS, `compression` is named as in pyarrow."""

    filesystem: Any
    path: str
    name: str
    format: str
    compression: str | None
    is_local: bool

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The uncompressed bytes as a stream."""
        import pyarrow as pa

        with self.filesystem.open(self.path, "rb") as raw:
            if self.compression is None:
                yield raw
            else:
                with pa.CompressedInputStream(
                    pa.PythonFile(raw, mode="r"), self.compression
                ) as stream:
                    yield io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER_BYTES)

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turn errors of libraries about a damaged or unreachable file into a ValueError."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, EOFError) as error:
            raise _damaged(self.path, error) from error
        except ValueError:
            raise
        except Exception as error:
            if not self.is_local:
                raise _unreachable(self.path, error) from error
            # without errno it comes from a decompressor, not from the operating system
            if isinstance(error, OSError) and error.errno is None:
                raise _damaged(self.path, error) from error
            raise

    def stamp(self) -> list[Any]:
        """Values that change when the file does: name, size, and time or tag if known."""
        info = self.filesystem.info(self.path)
        tags = [
            str(info[key])
            for key in ("mtime", "LastModified", "ETag", "created")
            if info.get(key) is not None
        ]
        return [self.name, info.get("size"), *tags[:1]]

    def digest(self) -> list[Any]:
        """The name and a hash of the bytes, which stay when the file is only touched or copied."""
        digest = hashlib.blake2b(digest_size=16)
        with self.filesystem.open(self.path, "rb") as file:
            while chunk := file.read(_BUFFER_BYTES):
                digest.update(chunk)
        return [self.name, digest.hexdigest()]


def find_files(given_paths: Sequence[str], setting: str) -> list[TextFile]:
    """The files at `given_paths`, sorted within each path; folders are searched recursively.

    Raises ValueError, naming `setting` ("data.path"), for a path that cannot be reached, has no
    files, or has none of a supported type.
    """
    return [file for given in given_paths for file in _expand(given, f"{setting}={given}")]


def stamps(given_paths: Sequence[str], setting: str) -> list[Any]:
    """Values that change when the text at `given_paths` does.

    A hub URL with a pinned commit never changes, so that it needs no network. Local files are
    known by their content if they are small enough to read them at every start.
    """
    return [
        given if _PINNED.match(given) else _stamps(find_files([given], setting))
        for given in given_paths
    ]


def _stamps(files: list[TextFile]) -> list[list[Any]]:
    local = [file for file in files if file.is_local]
    is_small = sum(file.filesystem.size(file.path) or 0 for file in local) <= DIGEST_BYTES
    values = []
    for file in files:
        try:
            values.append(file.digest() if file.is_local and is_small else file.stamp())
        except OSError:  # it cannot be read, which the reader reports with its name
            values.append(file.stamp())
    return values


def _expand(given: str, place: str) -> list[TextFile]:
    if not given.strip():
        raise ValueError(
            tr("{place}: empty path; give a file, a folder, a glob or a URL", place=place)
        )
    filesystem, paths, is_local = _list_paths(given, place)
    if not paths:
        raise ValueError(_no_files(filesystem, given, place))
    files = [_text_file(filesystem, path, is_local) for path in sorted(paths)]
    supported = [file for file in files if file is not None]
    if not supported:
        raise ValueError(
            trn(
                "{place}: unsupported type; supported are {formats}, also with {compressions} "
                "(convert a PDF with pdftotext)",
                "{place}: none of {count:,} files has a supported type; supported are {formats}, "
                "also with {compressions} (convert a PDF with pdftotext)",
                len(files),
                place=place,
                formats=" ".join(FORMATS),
                compressions=" ".join(COMPRESSIONS),
            )
        )
    return supported


def _list_paths(given: str, place: str) -> tuple[Any, list[str], bool]:
    """The file system of `given`, the paths of its files there, and whether it is local."""
    from fsspec.core import has_magic, url_to_fs

    is_local = True
    try:
        filesystem, path = url_to_fs(given)
        is_local = "file" in _protocols(filesystem)
        if is_local and filesystem.exists(path):
            paths = filesystem.find(path) if filesystem.isdir(path) else [path]
        elif has_magic(path):
            paths = filesystem.glob(path)
        else:
            paths = [] if is_local else filesystem.find(path)  # `find` of a file is the file
    except ImportError as error:
        raise ValueError(
            tr("{place}: needs a package that is not installed ({error})", place=place, error=error)
        ) from error
    except Exception as error:
        if is_local:
            raise ValueError(
                tr("{place}: cannot be opened ({error})", place=place, error=error)
            ) from error
        raise _unreachable(place, error) from error
    return filesystem, paths, is_local


def _no_files(filesystem: Any, given: str, place: str) -> str:
    from fsspec.core import has_magic

    if "file" in _protocols(filesystem) and filesystem.isdir(given):
        return tr("{place}: the folder is empty", place=place)
    if has_magic(given):
        return tr("{place}: no file matches", place=place)
    return tr("{place}: no such file", place=place)


def _text_file(filesystem: Any, path: str, is_local: bool) -> TextFile | None:
    name = PurePosixPath(path).name
    lower = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(lower.suffix)
    file_format = PurePosixPath(lower.stem).suffix if compression else lower.suffix
    if file_format not in FORMATS or name.startswith("."):
        return None
    return TextFile(filesystem, path, name, file_format, compression, is_local)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(
        tr("{path}: damaged, or not of the type in its name ({error})", path=path, error=error)
    )


def _unreachable(place: str, error: Exception) -> ValueError:
    return ValueError(
        tr(
            "{place}: could not be reached ({error}); check the address and your connection, "
            "or use local files: data=text data.path=FILE_OR_FOLDER",
            place=place,
            error=str(error) or type(error).__name__,
        )
    )
