"""Download a file from a web server once, however often the connection breaks."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from hashlib import blake2b
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, cast

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.data.cache import cache_folder
from azllm_lightning.data.folders import format_of
from azllm_lightning.data.progress import Progress
from azllm_lightning.disk.lock import Lock
from azllm_lightning.disk.sync import sync

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait after each failure in a row; one more failure than these ends the download."""

TIMEOUT = 60.0
"""Seconds without an answer or a byte that count as a failure."""

ASK_AGAIN = 60.0
"""Seconds for which a process does not ask again: a command looks for its text several times."""

_CHUNK_BYTES = 1 << 20
_LONGEST_WAIT = 60.0
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_TYPES = {
    "text/plain": ".txt",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
}


@dataclass(frozen=True)
class Download:
    """A complete file in the cache. `version` changes when the file on the server does."""

    path: Path
    name: str
    version: str


@dataclass
class _State:
    """What the server said about a file; stored next to its bytes."""

    url: str
    name: str
    etag: str | None
    modified: str | None
    size: int | None

    @property
    def version(self) -> str:
        return self.etag or self.modified or str(self.size)

    def is_same(self, other: _State) -> bool:
        """Whether two answers are about the same bytes, as far as the server lets us know."""
        return self.version == other.version and self.size == other.size


_found: dict[Path, tuple[float, Download]] = {}
"""When, by time.monotonic(), each folder last received its file in this process, and that file."""


class UnsupportedTypeError(Exception):
    """A file on a server has a `name` of no type that is read; `data` is its first megabyte."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(name)
        self.name = name
        self.data = data


class _BrokenError(Exception):
    """The connection failed, as its text says."""


def is_web(address: str) -> bool:
    """Whether `address` is that of a web server."""
    return address.lower().startswith(("http://", "https://"))


def fetch(url: str) -> Download:
    """The file at `url`, from the cache if the server says that it has not changed.

    A broken download continues where it broke if the server knows ranges, in a later process too.
    Without a connection, a copy from before is used. Raises ValueError if the file cannot be had,
    or cannot be written into the cache, and UnsupportedTypeError before the file is received.
    """
    folder = cache_folder() / "downloads" / blake2b(url.encode("utf-8"), digest_size=10).hexdigest()
    when, known = _found.get(folder, (-math.inf, None))
    if known is not None and time.monotonic() - when < ASK_AGAIN and known.path.is_file():
        return known
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / "lock")
        lock.wait(tr("another process downloads {url}: waiting", url=shown(url)))
        try:
            download = _Transfer(url, folder).run()
            _found[folder] = time.monotonic(), download
            return download
        finally:
            lock.release()
    except OSError as error:  # of this machine: what fails on the way is a _BrokenError
        raise not_kept(shown(url), folder, error, "$AZLLM_DATA_DIR") from error


class _Transfer:
    """One file on its way from `url` into `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._file = folder / "file"  # a folder, so that no name on the server can be one of ours
        self._partial = folder / "partial"
        self._partial_state = folder / "partial.json"
        self._complete_state = folder / "complete.json"
        self._has_started = False

    def run(self) -> Download:
        failures = 0
        most = self._received()
        while True:
            try:
                return self._try()
            except urllib.error.HTTPError as error:
                if error.code not in _TEMPORARY:
                    raise unreachable(shown(self._url), _status(error), error.code) from error
                reason = _status(error)
                wait = _asked_to_wait(error.headers)
            except _BrokenError as error:
                reason = str(error)
                wait = None
            failures = 1 if self._received() > most else failures + 1
            most = max(most, self._received())
            if failures > len(PAUSES):
                return self._kept_copy(reason)
            pause = PAUSES[failures - 1] if wait is None else wait
            log.warning(
                tr(
                    "{url}: {reason}; trying again in {pause:.0f} s",
                    url=shown(self._url),
                    reason=reason,
                    pause=pause,
                )
            )
            time.sleep(pause)

    def _received(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _kept_copy(self, reason: str) -> Download:
        """The copy from before; ValueError with the `reason` if there is none."""
        kept = self._complete()
        if kept is None:
            raise unreachable(shown(self._url), reason)
        log.warning(
            tr("{url}: {reason}; using the copy from before", url=shown(self._url), reason=reason)
        )
        return self._download(kept)

    def _complete(self) -> _State | None:
        kept = _read_state(self._complete_state)
        if kept is None or _is_unsupported(kept.name):
            return None
        path = self._file / kept.name
        is_whole = path.is_file() and path.stat().st_size == kept.size
        return kept if is_whole else None

    def _download(self, state: _State) -> Download:
        return Download(self._file / state.name, state.name, state.version)

    def _try(self) -> Download:
        """Ask once; _BrokenError if the connection breaks, OSError if a file cannot be written."""
        kept = self._complete()
        partial = _read_state(self._partial_state) if self._received() else None
        if partial and not (partial.etag or partial.modified or self._has_started):
            partial = None  # of a process before, and perhaps of another version of the file
        headers = {}
        if partial is not None and (kept is None or not partial.is_same(kept)):
            headers = _the_rest(partial, self._received())
        elif kept is not None:
            headers = _unless_same(kept)
        try:
            response = _open(self._url, headers)
        except urllib.error.HTTPError as error:
            if error.code == 304 and kept is not None:
                return self._download(kept)
            if error.code == 416 and partial and self._received() == partial.size:
                return self._finish(partial, self._received())
            if error.code == 416:  # the file has become shorter
                self._partial.unlink(missing_ok=True)
                raise _BrokenError(_status(error)) from error
            raise
        with response:
            start = self._received() if response.status == 206 else 0
            state = _state(self._url, response, start)
            if start and (partial is None or not state.is_same(partial)):
                self._partial.unlink()
                raise _BrokenError(tr("the file has changed during the download"))
            if kept is not None and kept.size is not None and state.is_same(kept):
                return self._download(kept)
            return self._receive(response, state, start)

    def _receive(self, response: HTTPResponse, state: _State, start: int) -> Download:
        """Append the body to the first `start` bytes, and put the file in its place.

        Raises UnsupportedTypeError instead for a file that would not be read.
        """
        if _is_unsupported(state.name):
            raise UnsupportedTypeError(state.name, _next_chunk(response))
        _write_state(self._partial_state, state)
        self._has_started = True
        done = start
        with (
            self._partial.open("ab" if start else "wb") as file,
            Progress(tr("downloading {name}", name=state.name), state.size) as progress,
        ):
            progress.skip(start)
            while chunk := _next_chunk(response):
                file.write(chunk)
                done += len(chunk)
                progress.add(len(chunk))
            sync(file)
        if state.size is not None and done < state.size:
            raise _BrokenError(
                tr(
                    "the connection broke after {done:,} of {size:,} bytes",
                    done=done,
                    size=state.size,
                )
            )
        return self._finish(state, done)

    def _finish(self, state: _State, size: int) -> Download:
        """Put a complete file of `size` bytes in its place."""
        self._complete_state.unlink(missing_ok=True)
        self._file.mkdir(exist_ok=True)
        self._partial.replace(self._file / state.name)
        state.size = size
        _write_state(self._complete_state, state)
        self._partial_state.unlink(missing_ok=True)
        return self._download(state)


def _open(url: str, headers: Mapping[str, str]) -> HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    sent = {"User-Agent": "azllm-lightning", "Accept-Encoding": "identity", **headers}
    if parts.username is not None:
        user = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        sent["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    address = urllib.parse.urlunsplit(
        (
            parts.scheme,
            host if host.isascii() else host.encode("idna").decode("ascii"),
            urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~"),
            urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?"),
            "",
        )
    )
    request = urllib.request.Request(address, headers=sent)
    opener = urllib.request.build_opener(_Redirects)
    with _connection():
        return cast(HTTPResponse, opener.open(request, timeout=TIMEOUT))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a password is for the server that it was given for, and no other."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> Any:
        request = super().redirect_request(req, *answer)
        if request is not None and _server(request.full_url) != _server(req.full_url):
            request.remove_header("Authorization")
        return request


def _server(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _next_chunk(response: HTTPResponse) -> bytes:
    with _connection():
        return response.read(_CHUNK_BYTES)


@contextmanager
def _connection() -> Iterator[None]:
    """Raise _BrokenError for what fails on the way, so that it is no error of this machine."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", "")) or str(error) or type(error).__name__
        raise _BrokenError(reason) from error


def _unless_same(kept: _State) -> dict[str, str]:
    if kept.etag:
        return {"If-None-Match": kept.etag}
    return {"If-Modified-Since": kept.modified} if kept.modified else {}


def _the_rest(partial: _State, received: int) -> dict[str, str]:
    """Ask for the bytes after `received`, or for all if the file is no longer the same."""
    headers = {"Range": f"bytes={received}-"}
    if partial.etag and not partial.etag.startswith("W/"):
        headers["If-Range"] = partial.etag
    elif partial.modified:
        headers["If-Range"] = partial.modified
    return headers


def _state(url: str, response: HTTPResponse, start: int) -> _State:
    headers = response.headers
    size = headers.get("Content-Length")
    total = int(size) + start if size and size.isdecimal() else None
    given = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
    if start:
        if given is None or int(given[1]) != start:
            raise _BrokenError(tr("the server sent another part of the file than asked for"))
        total = total if given[2] == "*" else int(given[2])
    return _State(
        url=shown(url),
        name=_name(url, response.url, headers),
        etag=headers.get("ETag"),
        modified=headers.get("Last-Modified"),
        size=total,
    )


def _name(url: str, final_url: str, headers: Message) -> str:
    """A file name with the ending that says what the file is."""
    names = [_last_part(url), headers.get_filename() or "", _last_part(final_url)]
    names = [re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name).strip(". ")[-120:] for name in names]
    known = next((name for name in names if format_of(name) is not None), None)
    if known is not None:
        return known
    named = next((name for name in names if PurePosixPath(name).suffix), names[0])
    # without a header, get_content_type() is text/plain
    kind = headers.get_content_type() if "Content-Type" in headers else ""
    return f"{named or 'text'}{_TYPES.get(kind, '')}"


def _is_unsupported(name: str) -> bool:
    return bool(PurePosixPath(name).suffix) and format_of(name) is None


def _last_part(url: str) -> str:
    return PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name


def _status(error: urllib.error.HTTPError) -> str:
    return f"HTTP {error.code} {error.reason}"


def _asked_to_wait(headers: Message) -> float | None:
    seconds = headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isdecimal() else None


def _read_state(path: Path) -> _State | None:
    try:
        return _State(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_state(path: Path, state: _State) -> None:
    path.write_text(json.dumps(asdict(state), ensure_ascii=False), encoding="utf-8")


def shown(url: str) -> str:
    """`url` without a password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def not_kept(place: str, folder: Path, error: OSError, setting: str) -> ValueError:
    """The error that what is at `place` cannot be written into `folder`; `setting` moves that."""
    return ValueError(
        tr(
            "{place}: cannot be written into {folder} ({error}): free some disk space, or choose "
            "another folder with {setting}",
            place=place,
            folder=folder,
            error=system_reason(error),
            setting=setting,
        )
    )


def unreachable(place: str, reason: str, status: int | None = None) -> ValueError:
    """The error that what is at `place` cannot be had, for a `reason`; `status` is that of HTTP."""
    if status in (401, 403):
        return ValueError(
            tr(
                "{place}: the server wants a login, or consent to its terms ({error}): accept them "
                "on its page, and read it as hf:// after `hf auth login`, or download the file in "
                "a browser and give its path: data=text data.path=FILE",
                place=place,
                error=reason,
            )
        )
    return ValueError(
        tr(
            "{place}: could not be reached ({error}); check the address and your connection, "
            "or use local files: data=text data.path=FILE_OR_FOLDER",
            place=place,
            error=reason,
        )
    )
