"""A local web page that continues texts: the standard library's server, and one page.

Only this machine can reach it by default. A page of another site cannot use it: the Host header has
to be an address or `localhost` (a site that points its own name here is refused, DNS rebinding),
and requests have to be JSON, which a browser sends to another site only with its leave.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import json
import logging
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from azllm_lightning.cli.memory import is_out_of_memory, out_of_memory_message
from azllm_lightning.cli.messages import language, tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.config.verbs import ChatConfig
from azllm_lightning.inference.sampling import cut_message, stream

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("chat_page.html")
WRITE_SECONDS = 180.0
"""How long a browser may read nothing of a text before it is given up: others wait for theirs."""

LARGEST_REQUEST = 1_000_000
"""Bytes of a request that are understood."""

LARGEST_DISCARDED = 50_000_000
"""Bytes of a longer one that are read nevertheless: a browser sees no answer while it sends."""

ADJUSTABLE = ("temperature", "max_new_tokens")
"""The settings that the page can change."""


class Model(NamedTuple):
    """A loaded model, where it is from, and whether it has read tales only."""

    network: GPT
    tokenizer: Tokenizer
    origin: str
    only_tales: bool


class ChatServer(ThreadingHTTPServer):
    """Serves the page at `address`. Texts are generated one at a time.

    Raises ValueError if the address cannot be used.
    """

    daemon_threads = True
    # The port of a server that has just ended; on Windows also that of one that runs.
    allow_reuse_address = sys.platform != "win32"
    allow_reuse_port = False

    def __init__(self, model: Model, config: ChatConfig) -> None:
        self.model = model
        self.config = config
        self.generating = threading.Lock()
        if ":" in config.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((config.host, config.port), _Request)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ValueError(_refusal(config, error)) from None

    def server_bind(self) -> None:
        """Take the port for this server alone."""
        if sys.platform == "win32":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        super().server_bind()

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page."""
        host = self.config.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # of all addresses, one
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if _plain_name(self.config.host) == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.config.host).is_loopback
        except ValueError:
            return False

    def allows(self, host: str | None) -> bool:
        """Whether a request may name this host: an address, localhost, or the name configured."""
        try:
            name = _plain_name(urlsplit(f"//{host or ''}").hostname or "")
            if name in ("localhost", _plain_name(self.config.host)):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show the error, unless it is that a browser went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def texts(self) -> dict[str, str]:
        """What the page says, by the names that it uses."""
        tales = tr(
            "This model has read only short tales: it can begin and continue tales like those, "
            "and nothing else."
        )
        return {
            "title": tr("Write with the model"),
            "about": tr(
                "The model continues your text. It answers no questions, and what it writes may be "
                "false."
            ),
            "tales": tales if self.model.only_tales else "",
            "origin": tr("from {path}", path=self.model.origin),
            "placeholder": tr("The beginning of a text, such as: Bir gün"),
            "send": tr("Continue"),
            "stop": tr("Stop"),
            "temperature": tr("temperature (0: predictable, 1: varied)"),
            "max_new_tokens": tr("length in tokens"),
            "lost": tr("The program does not answer: is it still running?"),
        }

    def events(self, asked: dict[str, Any]) -> Iterator[dict[str, str]]:
        """The text that continues asked["prompt"], with the settings of ADJUSTABLE in `asked`.

        The first event is a "note" if the prompt is too long; the others have pieces of "text".
        Raises ValueError for a setting out of range.
        """
        prompt = asked.pop("prompt", "")
        if not isinstance(prompt, str):
            raise ValueError(tr("prompt must be text"))
        if unknown := asked.keys() - set(ADJUSTABLE):
            raise ValueError(tr("unknown settings: {names}", names=", ".join(sorted(unknown))))
        own = {item.name: getattr(self.config, item.name) for item in fields(SamplingConfig)}
        settings = from_mapping(SamplingConfig, own | asked)
        network, tokenizer = self.model.network, self.model.tokenizer
        steps = stream(network, tokenizer, [prompt], settings)
        next(steps)  # the prompt
        note = cut_message(network, tokenizer, [prompt])
        notes = iter([{"note": note}] if note else [])
        return itertools.chain(notes, ({"text": pieces[0]} for pieces in steps))


class _Request(BaseHTTPRequestHandler):
    """One request of a browser."""

    server: ChatServer
    protocol_version = "HTTP/1.1"
    timeout = 30.0
    """Seconds for which a request may pause."""

    def do_GET(self) -> None:
        """Send the page."""
        self._body()
        if not self._is_allowed():
            return
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        if path != "/":
            self._send(404, "text/plain", "")
            return
        nonce = secrets.token_urlsafe(16)
        data = json.dumps(
            {
                "lang": language(),
                "texts": self.server.texts(),
                "settings": {name: getattr(self.server.config, name) for name in ADJUSTABLE},
            },
            ensure_ascii=False,
        ).replace("<", "\\u003c")
        page = PAGE.read_text(encoding="utf-8")
        page = page.replace("NONCE", nonce).replace("LANG", language()).replace("DATA", data, 1)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, "text/html", page, {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        """Send the text that continues a prompt, as server-sent events."""
        body = self._body()
        if not self._is_allowed():
            return
        try:
            events = self.server.events(self._asked(body))
        except ValueError as error:
            self._send(400, "text/plain", str(error))
            return
        self.connection.settimeout(WRITE_SECONDS)  # a browser may read slowly
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        with self.server.generating, contextlib.suppress(ConnectionError, TimeoutError):
            self._event({})  # so that a browser that left while it waited is noticed
            try:
                for event in events:  # writing fails once the browser is gone, which ends the text
                    self._event(event)
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:
                log.exception(tr("the text was not finished"))
                self._event({"error": _explained(error)})
            else:
                self._event({"end": True})

    def _event(self, values: dict[str, Any]) -> None:
        line = f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
        self.wfile.write(line.encode("utf-8", "replace"))
        self.wfile.flush()

    def _is_allowed(self) -> bool:
        """Whether the request is from a page of this server; else it is refused."""
        host = self.headers.get("Host")
        origin = self.headers.get("Origin")
        if self.server.allows(host) and origin in (None, f"http://{host}"):
            return True
        names = dict.fromkeys(("localhost", self.server.config.host))
        accepted = tr(
            "refused: this page is at {names}, or at an IP address of this machine",
            names=", ".join(names),
        )
        self._send(403, "text/plain", f"{accepted}\n")
        return False

    def _body(self) -> bytes | None:
        """What follows the head of the request; None if it is too long, or does not come."""
        with contextlib.suppress(ValueError, TimeoutError):
            size = int(self.headers.get("Content-Length") or 0)
            if 0 <= size <= LARGEST_REQUEST:
                return self.rfile.read(size)
            for _ in range(0, min(size, LARGEST_DISCARDED), LARGEST_REQUEST):
                size -= len(self.rfile.read(min(size, LARGEST_REQUEST)))
        return None

    def _asked(self, body: bytes | None) -> dict[str, Any]:
        """The JSON of the request. Raises ValueError if it is anything else."""
        is_json = self.headers.get("Content-Type", "").partition(";")[0] == "application/json"
        if self.path == "/generate" and is_json and body is not None:
            with contextlib.suppress(ValueError, RecursionError):
                asked = json.loads(body)
                if isinstance(asked, dict):
                    return asked
        raise ValueError(tr("only JSON of at most 1 MB is accepted, at /generate"))

    def _send(
        self, status: int, kind: str, text: str, headers: dict[str, str] | None = None
    ) -> None:
        content = text.encode("utf-8", "replace")  # a path may have bytes that are not UTF-8
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        # a body that was not read would be taken for the next request
        self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for messages."""


def _refusal(config: ChatConfig, error: Exception) -> str:
    """What to choose where the address cannot be used: another host, or another port."""
    is_unknown = isinstance(error, socket.gaierror | UnicodeError)
    reason = tr("there is no such host") if is_unknown else system_reason(error)
    if is_unknown or (isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL):
        return tr(
            "host={host} cannot be used ({reason}): choose another host",
            host=config.host,
            reason=reason,
        )
    return tr(
        "host={host} port={port} cannot be used ({reason}): choose another port",
        host=config.host,
        port=config.port,
        reason=reason,
    )


def _plain_name(host: str) -> str:
    """The name of a host as it is compared: case means nothing in it, nor does a dot at its end."""
    return host.lower().removesuffix(".")


def _explained(error: Exception) -> str:
    """What the page says about an error of the program."""
    if is_out_of_memory(error):
        return out_of_memory_message(error)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return tr("An error of the program ({reason}): its terminal says more.", reason=reason)
