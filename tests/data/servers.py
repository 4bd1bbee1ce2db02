"""A web server for the tests of downloads, with the weaknesses that real ones have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class WebSite:
    """Serves `files` (path to content); what the server cannot do is set by the other fields."""

    files: dict[str, bytes] = field(default_factory=dict)
    knows_ranges: bool = True
    has_tags: bool = True
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which the connection breaks, for one answer after the other."""
    failures: list[int] = field(default_factory=list)
    """Status codes of the first answers."""
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    extra_length: int = 0
    """How much longer the announced length is than the content."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range) of each request."""
    authorizations: list[str | None] = field(default_factory=list)
    """The Authorization of each request."""
    sent: int = 0
    """Bytes of all answers."""
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[WebSite]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        self.authorizations.append(handler.headers.get("Authorization"))
        if self.failures:
            handler.send_error(self.failures.pop(0))
            return
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[path])
            handler.end_headers()
            return
        if path not in self.files:
            handler.send_error(404)
            return
        self._send(handler, self.files[path], wanted)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, wanted: str | None) -> None:
        tag = f'"{hashlib.sha1(body).hexdigest()}"'
        start = 0
        if self.has_tags and handler.headers.get("If-None-Match") == tag:
            handler.send_response(304)
            handler.end_headers()
            return
        is_same = handler.headers.get("If-Range", tag) == tag
        if wanted and self.knows_ranges and is_same:
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if start >= len(body) + self.extra_length:
                handler.send_error(416)
                return
            handler.send_response(206)
            size = len(body) + self.extra_length
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        if self.has_tags:
            handler.send_header("ETag", tag)
        handler.send_header("Content-Length", str(len(body) - start + self.extra_length))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        end = start + self.breaks_after.pop(0) if self.breaks_after else len(body)
        if handler.command == "GET":
            with suppress(ConnectionError):  # of a client that has seen enough
                handler.wfile.write(body[start:end])
            self.sent += len(body[start:end])
        handler.close_connection = True


@dataclass
class HubSite(WebSite):
    """Serves `files` as the dataset u/d of a hub, in the layout of huggingface.co."""

    commit: str = "0123456789abcdef0123456789abcdef01234567"
    refusal: tuple[int, str] | None = None
    """Status and X-Error-Code with which files are refused: (403, "GatedRepo")."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, _ = handler.path.partition("?")
        tree = re.match(r"/api/datasets/u/d/tree/[^/]+/?(.*)", path)
        resolved = re.match(r"/datasets/u/d/resolve/[^/]+/(.*)", path)
        if resolved and self.refusal:
            code, name = self.refusal
            handler.send_response(code)
            handler.send_header("X-Error-Code", name)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif tree:
            folder = unquote(tree[1])
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040}"}
                for name, data in self.files.items()
                if name.startswith(folder and f"{folder}/")
            ]
            if rows:
                self._send_json(handler, rows)
            else:
                handler.send_response(404)
                handler.send_header("X-Error-Code", "EntryNotFound")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
        elif path.startswith("/api/datasets/u/d"):
            self._send_json(handler, {"id": "u/d", "sha": self.commit})
        elif resolved and resolved[1] in self.files:
            self.headers = {"X-Repo-Commit": self.commit}
            self.requests.append((path, handler.headers.get("Range")))
            self._send(handler, self.files[resolved[1]], handler.headers.get("Range"))
        else:
            handler.send_error(404)

    def _send_json(self, handler: BaseHTTPRequestHandler, value: Any) -> None:
        body = json.dumps(value).encode("utf-8")
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)
