"""Find text files by path, folder, glob or URL, and open them as byte streams."""

from __future__ import annotations

import errno
import io
import lzma
import math
import os
import re
import stat
import time
import urllib.parse
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.misspelled import searched_folder, with_near_path
from azllm_lightning.data.content import (
    HEAD_BYTES,
    WEB_PAGE,
    beginning,
    decompressed,
    why_not_text,
)
from azllm_lightning.data.downloads import (
    Download,
    UnsupportedTypeError,
    fetch,
    is_web,
    not_kept,
    shown,
    unreachable,
)
from azllm_lightning.data.folders import (
    COMPRESSIONS,
    FORMATS,
    METADATA,
    Skipped,
    format_of,
    special_kind,
    supported_files,
    why_skipped,
)
from azllm_lightning.data.known_digests import file_digest

DIGEST_BYTES = 100_000_000
"""Local text up to this size is known by its content, larger text by size and time."""

MAX_SOURCES = 256
"""Of more files, none is a source by itself."""

_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")
_MAX_PROBLEMS = 5
_PARQUET = b"PAR1"
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class TimeUp(Exception):
    """The deadline of a Meter has passed."""


@dataclass
class Meter:
    """How many bytes of a file have been read; at `deadline`, by time.monotonic(), a text file ends
    with TimeUp.
    """

    num_bytes: int = 0
    deadline: float = math.inf


class _Metered(io.RawIOBase):
    """`raw`, read from its start to its end, with `meter` counting."""

    def __init__(self, raw: BinaryIO, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if time.monotonic() > self._meter.deadline:
            raise TimeUp
        chunk = self._raw.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._meter.num_bytes += len(chunk)
        return len(chunk)


@dataclass(frozen=True)
class TextFile:
    """A file of text: `format` is one of FORMATS, `address` is what messages call it.

    `is_given` says whether its own path was given, not that of a folder, or a glob.
    """

    filesystem: Any
    path: str
    name: str
    format: str
    address: str
    is_local: bool
    is_given: bool
    version: str | None = None

    def size(self) -> int:
        """Its bytes as it is stored; 0 if they are unknown."""
        try:
            return int(self.filesystem.size(self.path) or 0)
        except (OSError, ValueError, NotImplementedError):
            return 0

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes as they are."""
        with self.filesystem.open(self.path, "rb") as raw:
            yield raw

    @contextmanager
    def open_text(self, meter: Meter | None = None) -> Iterator[BinaryIO]:
        """The uncompressed bytes; a file of the hub is downloaded to the hub's cache first.

        `meter` counts the bytes that are read, before they are uncompressed.
        """
        with self._open_local_copy() as raw:
            metered = raw if meter is None else cast(BinaryIO, _Metered(raw, meter))
            with decompressed(metered) as stream:
                yield stream

    def _open_local_copy(self) -> Any:
        if "hf" in _protocols(self.filesystem):
            from huggingface_hub import constants, hf_hub_download

            found = self.filesystem.resolve_path(self.path)
            if hasattr(found, "repo_id"):
                try:
                    copy = hf_hub_download(
                        found.repo_id,
                        found.path_in_repo,
                        repo_type=found.repo_type,
                        revision=found.revision,
                        endpoint=self.filesystem.endpoint,
                        token=self.filesystem.token,
                    )
                except OSError as error:
                    if error.errno not in _CANNOT_WRITE:  # of the connection
                        raise
                    cache = Path(constants.HF_HUB_CACHE)
                    raise not_kept(self.address, cache, error, "$HF_HOME") from error
                return Path(copy).open("rb")
        return self.filesystem.open(self.path, "rb")

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turn errors of libraries about a damaged or unreachable file into a ValueError."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, EOFError, zlib.error, lzma.LZMAError) as error:
            raise _damaged(self.address, error) from error
        except (ValueError, TimeUp):
            raise
        except MemoryError as error:
            raise ValueError(
                tr("{path}: needs more memory than there is", path=self.address)
            ) from error
        except Exception as error:
            if not self.is_local:
                raise _unreachable(self.address, error) from error
            # without errno it comes from a decompressor, not from the operating system
            if isinstance(error, OSError) and error.errno is None:
                raise _damaged(self.address, error) from error
            if type(error).__name__ == "ZstdError":
                raise _damaged(self.address, error) from error
            raise

    def stamp(self) -> list[Any]:
        """Values that change when the file does: its size, and time or tag if known."""
        info = self.filesystem.info(self.path)
        tags = [
            str(info[key])
            for key in ("mtime", "LastModified", "ETag", "blob_id", "created")
            if info.get(key) is not None
        ]
        if self.version is not None:
            tags = [self.version]
        return [info.get("size"), *tags[:1]]


@dataclass(frozen=True)
class Found:
    """The files at one of the given paths, and what is not read there."""

    place: str
    files: list[TextFile]
    skipped: Skipped = field(default_factory=Skipped)


def find_files(given_paths: Sequence[str], setting: str) -> list[TextFile]:
    """The files at `given_paths`, sorted within each path; folders are searched recursively.

    Files on web servers are downloaded. Raises ValueError, naming `setting` ("data.path"), for a
    path that cannot be reached, has no files, or has none of a supported type.
    """
    return [file for found in search(given_paths, setting) for file in found.files]


def search(given_paths: Sequence[str], setting: str) -> list[Found]:
    """As `find_files`, path by path, with what is skipped."""
    return [_expand(given, f"{setting}={shown(given)}") for given in given_paths]


def stamps(given_paths: Sequence[str], setting: str) -> list[Any]:
    """Values that change when the text at `given_paths` does.

    A hub URL with a pinned commit never changes, so that it needs no network. Local files are
    known by their content if they are small enough to read them whenever they may have changed.
    """
    found = {
        given: find_files([given], setting) for given in given_paths if not _PINNED.match(given)
    }
    files = [file for each in found.values() for file in each]
    names = {}
    if len(files) <= MAX_SOURCES:  # then folders are names of sources, too
        named = zip(files, source_names(files), strict=True)
        names = {file.address: name for file, name in named if "/" in name}
    return [_stamps(found[given], names) if given in found else given for given in given_paths]


def source_names(files: Sequence[TextFile]) -> list[str]:
    """What each file is called as a source: its name, after the folders in which files of the same
    name differ.
    """
    places: dict[str, set[str]] = {}
    for file in files:
        places.setdefault(file.name, set()).add(file.address)
    shared = {name: _shared_parts(addresses) for name, addresses in places.items()}
    return ["/".join(file.address.split("/")[shared[file.name] :]) for file in files]


def _shared_parts(addresses: Collection[str]) -> int:
    """How many of their parts `addresses` begin with alike; -1 for one, of which the last stays."""
    parts = [address.split("/") for address in addresses]
    return len(os.path.commonprefix(parts)) if len(parts) > 1 else -1


def _stamps(files: list[TextFile], names: Mapping[str, str]) -> list[list[Any]]:
    local = [file for file in files if file.is_local]
    is_small = sum(file.size() for file in local) <= DIGEST_BYTES
    values = []
    for file in files:
        try:
            by_content = is_small and file.is_local and file.version is None
            # a hash stays when the file is only touched or copied
            value = [file_digest(file.path)] if by_content else file.stamp()
        except OSError:  # it cannot be read, which the reader reports with its name
            value = file.stamp()
        values.append([names.get(file.address, file.name), *value])
    return values


def check_contents(files: Sequence[TextFile]) -> None:
    """Raise ValueError if local files are not text, such as web pages; all are looked at first."""
    problems = []
    for file in files:
        reason = _why_not_read(file) if file.is_local else None
        if reason:
            problems.append(f"{file.address}: {reason}")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        if more > 0:
            problems[_MAX_PROBLEMS:] = [
                trn("and {count:,} other file", "and {count:,} other files", more)
            ]
        raise ValueError("\n".join(problems))


def _head(file: TextFile) -> bytes:
    with file.explained_errors(), file.open_text() as stream:
        return stream.read(HEAD_BYTES)


def _why_not_read(file: TextFile) -> str | None:
    head = _head(file)
    with file.explained_errors():
        if file.format != ".parquet" or not head.startswith(_PARQUET):
            return why_not_text(head)
        with file.open() as raw:  # whatever the name says: servers pack and unpack files
            is_packed = raw.read(len(_PARQUET)) != _PARQUET
    return tr("a compressed Parquet file; unpack it") if is_packed else None


def _expand(given: str, place: str) -> Found:
    if not given.strip():
        raise ValueError(
            tr("{place}: empty path; give a file, a folder, a glob or a URL", place=place)
        )
    if is_web(given):
        return _web(given, place)
    filesystem, path, paths = _list_paths(given, place, skipped := Skipped())
    if not paths and not skipped:
        raise ValueError(_no_files(filesystem, given, place))
    is_local = "file" in _protocols(filesystem)
    is_given = paths == [path]
    files = []
    for path in sorted(paths):
        name = PurePosixPath(path).name
        file_format = format_of(name)
        if is_local and is_given and not PurePosixPath(name).suffix:
            file_format = ".txt"
        if file_format is None or (not is_given and (name in METADATA or name.startswith("."))):
            skipped.add(PurePosixPath(name).suffix or tr("without an ending"), path)
            continue
        address = path if is_local else filesystem.unstrip_protocol(path)
        files.append(TextFile(filesystem, path, name, file_format, address, is_local, is_given))
    if not files:
        if is_given and is_local:
            file = TextFile(filesystem, path, name, ".txt", path, is_local, is_given)
            raise ValueError(f"{place}: {_why_unsupported(file)}")
        raise ValueError(_none_supported(place, skipped))
    return Found(place, files, skipped)


def _why_unsupported(file: TextFile) -> str:
    return why_not_text(_head(file)) or tr(
        "unsupported type; supported are {formats}, also with {compressions}",
        formats=" ".join(FORMATS),
        compressions=" ".join(COMPRESSIONS),
    )


def _none_supported(place: str, skipped: Skipped) -> str:
    return tr(
        "{place}: no file of a supported type; supported are {formats}, also with {compressions} "
        "(convert a PDF with pdftotext). Skipped: {skipped}",
        place=place,
        formats=" ".join(FORMATS),
        compressions=" ".join(COMPRESSIONS),
        skipped=skipped.describe(),
    )


def _list_paths(given: str, place: str, skipped: Skipped) -> tuple[Any, str, list[str]]:
    """The file system of `given`, its path there, and the paths of its files."""
    from fsspec.core import has_magic, url_to_fs

    is_local = True
    try:
        filesystem, path = url_to_fs(given)
        is_local = "file" in _protocols(filesystem)
        if is_local and (Path(path).is_symlink() or filesystem.exists(path)):
            paths = _local_paths(path, place, skipped)
        elif has_magic(path):
            paths = filesystem.glob(path)
            if is_local:
                paths = [each for each in paths if _is_readable(each, skipped)]
        else:
            paths = [] if is_local else filesystem.find(path)  # `find` of a file is the file
    except ImportError as error:
        raise ValueError(
            tr("{place}: needs a package that is not installed ({error})", place=place, error=error)
        ) from error
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        if is_local:
            raise ValueError(
                tr("{place}: cannot be opened ({error})", place=place, error=error)
            ) from error
        raise _unreachable(place, error) from error
    return filesystem, path, paths


class _Refused(ValueError):
    """A given path that is no file of text; the message is complete."""


def _local_paths(path: str, place: str, skipped: Skipped) -> list[str]:
    """The files of a local folder, or the file itself; _Refused for what cannot be read twice."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise _Refused(tr("{place}: a link to a file that does not exist", place=place)) from None
    if stat.S_ISDIR(mode):
        return [Path(each).as_posix() for each in supported_files(path, skipped)]
    if not stat.S_ISREG(mode):
        raise _Refused(
            tr(
                "{place}: a {kind}, which cannot be read more than once; save its text in a file",
                place=place,
                kind=special_kind(mode),
            )
        )
    return [path]


def _is_readable(path: str, skipped: Skipped) -> bool:
    """Whether a file that matches a glob is read; else it is counted."""
    reason = why_skipped(path, PurePosixPath(path).name)
    if reason is None:
        reason = tr("folder that matches the glob")
    if reason:
        skipped.add(reason, path)
    return not reason


def _web(given: str, place: str) -> Found:
    """The file at the address of a web server, or those that a page of links leads to."""
    path = urllib.parse.urlsplit(given).path
    if "*" not in path:
        file = _web_file(given, place)
        if file is not None:
            return Found(place, [file])
    skipped = Skipped()
    files = []
    for address in _links(given, place):
        name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
        if format_of(name) is None or name in METADATA:
            skipped.add(PurePosixPath(name).suffix or tr("without an ending"), name)
        else:
            files.append(_downloaded(_fetch(address, place), address, False))
    if files:
        return Found(place, files, skipped)
    if "*" in path:
        raise ValueError(tr("{place}: no file matches", place=place))
    raise ValueError(f"{place}: {WEB_PAGE.message()}")


def _web_file(given: str, place: str) -> TextFile | None:
    """The file at the address of a web server; None if a web page is there.

    Raises ValueError for one that is not text.
    """
    skipped = Skipped()
    try:
        file = _downloaded(_fetch(given, place), given, True)
    except UnsupportedTypeError as error:
        skipped.add(PurePosixPath(error.name).suffix, error.name)
        head = beginning(error.data)
    else:
        if format_of(file.name) is not None:
            return file
        head = _head(file)
    if WEB_PAGE.begins(head):
        return None
    reason = why_not_text(head)
    if reason is not None:
        raise ValueError(f"{place}: {reason}")
    if skipped:
        raise ValueError(_none_supported(place, skipped))
    return file


def _fetch(address: str, place: str) -> Download:
    try:
        return fetch(address)
    except ValueError as error:
        raise ValueError(f"{place.partition('=')[0]}={error}") from error


def _links(given: str, place: str) -> list[str]:
    """The files that a web page at `given` has links to; those that match if it is a glob."""
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(given)
        found = filesystem.glob(path) if "*" in given else filesystem.find(path)
    except ImportError:
        return []  # fsspec lists pages by aiohttp, which is not always there
    except Exception as error:
        raise _unreachable(place, error) from error
    return sorted(each for each in found if each.rstrip("/") != given.rstrip("/"))


def _downloaded(download: Download, address: str, is_given: bool) -> TextFile:
    from fsspec.implementations.local import LocalFileSystem

    return TextFile(
        LocalFileSystem(),
        str(download.path),
        download.name,
        format_of(download.name) or ".txt",
        shown(address),
        True,
        is_given,
        download.version,
    )


def _no_files(filesystem: Any, given: str, place: str) -> str:
    from fsspec.core import has_magic

    if "file" in _protocols(filesystem) and filesystem.isdir(given):
        return tr("{place}: the folder is empty", place=place)
    if has_magic(given):
        return tr("{place}: no file matches", place=place)
    if "file" not in _protocols(filesystem):
        return tr("{place}: no such file", place=place)
    folder = searched_folder(given)
    message = tr("{place}: no such file in {folder}", place=place, folder=folder)
    return with_near_path(message, given, _may_be_text)


def _may_be_text(path: Path) -> bool:
    if not path.is_file():
        return path.is_dir()
    has_format = not path.suffix or format_of(path.name) is not None
    return has_format and path.name not in METADATA


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(
        tr("{path}: damaged, or not of the type in its name ({error})", path=path, error=error)
    )


def _unreachable(place: str, error: Exception) -> ValueError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return unreachable(place, str(error) or type(error).__name__, status)
