"""Where text lies: paths, folders, globs and URLs become files, and files become byte streams."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

FORMATS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_BUFFER_BYTES = 1 << 20
_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")


@dataclass(frozen=True)
class TextFile:
    """One file of text: `format` is one of FORMATS, `compression` is as pyarrow names it."""

    filesystem: Any
    path: str
    name: str
    format: str
    compression: str | None
    is_local: bool

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The uncompressed bytes, read in pieces."""
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
    def telling(self) -> Iterator[None]:
        """Turn what a library says of a broken or unreachable file into a ValueError that names the file."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, EOFError) as error:
            raise ValueError(
                f"{self.path} is broken, or not what its ending says ({error})"
            ) from error
        except ValueError:
            raise
        except Exception as error:
            if not self.is_local:
                raise _unreachable(self.path, error) from error
            if (
                isinstance(error, OSError) and error.errno is None
            ):  # a decompressor's complaint, not the system's
                raise ValueError(
                    f"{self.path} is broken, or not what its ending says ({error})"
                ) from error
            raise

    def stamp(self) -> list[Any]:
        """What changes when the file does: name, size and time or tag, as far as its file system knows them."""
        info = self.filesystem.info(self.path)
        tags = [
            str(info[key])
            for key in ("mtime", "LastModified", "ETag", "created")
            if info.get(key) is not None
        ]
        return [self.name, info.get("size"), *tags[:1]]


def find_files(given_paths: Sequence[str], setting: str) -> list[TextFile]:
    """The files that `given_paths` stand for, each path's sorted; a folder is searched to its depth.

    Raises ValueError, naming `setting` ("data.path"), for a path that leads to no file, to none that can be read
    as text, or that cannot be reached.
    """
    return [file for given in given_paths for file in _expand(given, f"{setting}={given}")]


def stamps(given_paths: Sequence[str], setting: str) -> list[Any]:
    """What changes when the text behind `given_paths` does; a hub URL with a pinned commit never does, unasked."""
    return [
        given if _PINNED.match(given) else [file.stamp() for file in find_files([given], setting)]
        for given in given_paths
    ]


def _expand(given: str, place: str) -> list[TextFile]:
    from fsspec.core import has_magic, url_to_fs

    if not given.strip():
        raise ValueError(f"{place} is empty; give a file, a folder, a glob or a URL")
    is_local = True
    try:
        filesystem, path = url_to_fs(given)
        is_local = "file" in _protocols(filesystem)
        if is_local and filesystem.exists(path):
            found = filesystem.find(path) if filesystem.isdir(path) else [path]
        elif has_magic(path):
            found = filesystem.glob(path)
        elif is_local:
            found = []
        else:
            found = filesystem.find(path)  # of a file: the file
    except Exception as error:
        if isinstance(error, ImportError):
            raise ValueError(f"{place} needs a package that is not installed ({error})") from error
        if is_local:
            raise ValueError(f"{place} cannot be opened ({error})") from error
        raise _unreachable(place, error) from error
    if not found:
        raise ValueError(f"{place} leads to no file")
    files = [
        file
        for file in (_text_file(filesystem, path, is_local) for path in sorted(found))
        if file is not None
    ]
    if not files:
        raise ValueError(
            f"{place} leads to {len(found)} files, none of which ends in {', '.join(FORMATS)} "
            f"(alone or with {' or '.join(COMPRESSIONS)})"
        )
    return files


def _text_file(filesystem: Any, path: str, is_local: bool) -> TextFile | None:
    name = PurePosixPath(path).name
    stem, suffix = PurePosixPath(name.lower()), PurePosixPath(name.lower()).suffix
    compression = COMPRESSIONS.get(suffix)
    form = PurePosixPath(stem.stem).suffix if compression else suffix
    if form not in FORMATS or name.startswith("."):
        return None
    return TextFile(filesystem, path, name, form, compression, is_local)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _unreachable(place: str, error: Exception) -> ValueError:
    return ValueError(
        f"{place} could not be reached ({error or type(error).__name__}); check the address and the connection, "
        "or give local files: data=text data.path=FILE_OR_FOLDER"
    )
