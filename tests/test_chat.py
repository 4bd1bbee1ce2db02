"""The local page: what it serves and refuses, and that it stops when the browser goes away."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tensorboard_page import BROWSER, Page, browser

from azllm_lightning import load, sample
from azllm_lightning.chat import chat
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.inference import chat_server
from azllm_lightning.inference.chat_server import ChatServer, Model

JSON = {"Content_Type": "application/json"}


@contextmanager
def serving(run: Path, *overrides: str) -> Iterator[ChatServer]:
    """A server of the model of `run` at a free port, in a thread."""
    network, tokenizer = load(run)
    model = Model(network, tokenizer, "best.ckpt", only_tales=True)
    config = compose(["port=0", "max_new_tokens=8", *overrides], "chat")
    with ChatServer(model, config) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: ChatServer, method: str, path: str, body: str = "", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body.encode() or None, names)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.headers), text


def events(text: str) -> list[dict[str, Any]]:
    """The server-sent events of a response."""
    *parts, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_a_prompt_is_continued_as_generate_does(tiny_run: Path) -> None:
    with serving(tiny_run, "seed=3") as server:
        body = json.dumps({"prompt": "Bir gün", "temperature": 0.5, "max_new_tokens": 6})
        status, headers, text = ask(server, "POST", "/generate", body, **JSON)
    assert status == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    start, *pieces, end = events(text)
    assert start == {}
    assert end == {"end": True}
    (expected,) = sample(*load(tiny_run), "Bir gün", 6, temperature=0.5, seed=3)
    assert "Bir gün" + "".join(piece["text"] for piece in pieces) == expected


@pytest.mark.parametrize(("lang", "words"), [("en", "only the end"), ("az", "yalnız sonu")])
def test_a_prompt_that_is_cut_is_told(tiny_run: Path, lang: str, words: str) -> None:
    def asked(prompt: str) -> list[dict[str, Any]]:
        body = json.dumps({"prompt": prompt, "max_new_tokens": 3})
        return events(ask(server, "POST", "/generate", body, **JSON)[2])

    with serving(tiny_run) as server:
        use_language(lang)
        cut, short = asked("Bakı küləyi " * 20), asked("Bakı")
        use_language(None)
    assert cut[1].keys() == {"note"}
    assert words in cut[1]["note"]
    assert cut[2].keys() == {"text"}
    assert [key for event in [*cut[2:], *short] for key in event if key == "note"] == []
    assert "event.note" in chat_server.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("lang", ["en", "az"])
def test_the_page_is_in_the_language_and_runs_only_its_own_script(
    tiny_run: Path, lang: str
) -> None:
    with serving(tiny_run) as server:
        use_language(lang)
        status, headers, page = ask(server, "GET", "/")
        use_language(None)
        missing = ask(server, "GET", "/favicon.ico")[0]
    assert status == 200
    assert missing == 404
    assert f'<html lang="{lang}">' in page
    data = json.loads(page.partition('id="data"')[2].partition(">")[2].partition("</script>")[0])
    assert data["texts"]["send"] == {"en": "Continue", "az": "Davam etdir"}[lang]
    assert data["texts"]["tales"]
    assert data["settings"] == {"temperature": 0.8, "max_new_tokens": 8}
    assert "http://" not in page  # nothing is loaded from elsewhere
    assert "https://" not in page
    policy = headers["Content-Security-Policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert page.count(f'nonce="{nonce}"') == 3
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),  # a name that points here: DNS rebinding
        ({"Host": "evil.example:8765"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, 200),
    ],
)
def test_other_sites_are_refused(tiny_run: Path, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"prompt": "a", "max_new_tokens": 1})
    with serving(tiny_run) as server:
        assert ask(server, "GET", "/", **headers)[0] == status
        assert ask(server, "POST", "/generate", body, **JSON, **headers)[0] == status


@pytest.mark.parametrize("typed", ["Kitab-PC", "kitab-pc.", "KITAB-PC.LOCAL", "kitab-pc"])
def test_the_name_of_the_machine_is_accepted_however_it_is_written(
    tiny_run: Path, typed: str
) -> None:
    plain = typed.lower().removesuffix(".")
    with serving(tiny_run) as server:
        server.config = replace(server.config, host=typed)
        for host in (typed, plain, f"{plain}.", plain.title()):
            assert server.allows(f"{host}:8765"), host
        assert not server.allows(f"{plain}.evil.example:8765")
        assert not server.is_local
        server.config = replace(server.config, host="LocalHost")
        assert server.is_local
        server.config = replace(server.config, host=typed)
        assert ask(server, "GET", "/", Host=plain, Origin=f"http://{plain}")[0] == 200


def test_a_refusal_names_the_hosts_that_are_accepted(tiny_run: Path) -> None:
    with serving(tiny_run) as server:
        server.config = replace(server.config, host="kitab-pc")
        text = ask(server, "GET", "/", Host="evil.example")[2]
        assert text.startswith("refused: ")
        assert "localhost, kitab-pc, or" in text
        assert "evil" not in text


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("POST /generate HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example", 403),
        ("POST /generate HTTP/1.1\r\nHost: localhost", 400),
        ("GET /favicon.ico HTTP/1.1\r\nHost: localhost", 404),
        ("GET / HTTP/1.1\r\nHost: localhost", 200),
    ],
)
def test_a_body_is_never_taken_for_a_request(tiny_run: Path, start: str, status: int) -> None:
    body = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(tiny_run) as server:
        client = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
        with client, client.makefile("rb") as answers:
            client.sendall(f"{start}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            received = answers.read()  # until the server closes
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        ('{"prompt": "a"}', {"Content_Type": "text/plain"}, "only JSON"),  # as another site may
        ("no json", JSON, "only JSON"),
        ("[1]", JSON, "only JSON"),
        ('{"prompt": 1}', JSON, "prompt must be text"),
        ('{"prompt": "a", "temperature": -1}', JSON, "temperature=-1"),
        ('{"prompt": "a", "max_new_tokens": "viele"}', JSON, "max_new_tokens"),
        ('{"prompt": "a", "logs_dir": "/"}', JSON, "unknown settings: logs_dir"),
        ("[" * 900_000, JSON, "only JSON"),
        ("x" * 20_000_000, JSON, "only JSON"),  # all of it is sent before the answer is read
    ],
)
def test_bad_requests_are_refused(
    tiny_run: Path, body: str, headers: dict[str, str], message: str
) -> None:
    with serving(tiny_run) as server:
        status, _, text = ask(server, "POST", "/generate", body, **headers)
    assert status == 400
    assert message in text


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: [x", 403),
        ("GET http://[ HTTP/1.1\r\nHost: localhost", 404),
        ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1", 400),
        ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + "9" * 5000, 400),
        # a body that does not come
        ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", 400),
        ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000", 400),
    ],
)
def test_what_is_no_request_is_answered(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    head: str,
    status: int,
) -> None:
    with serving(tiny_run) as server:
        monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
        client = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
        with client, client.makefile("rb") as answers:
            client.sendall(f"{head}\r\n\r\n".encode())
            received = answers.read()  # until the server closes
    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert "Traceback" not in capfd.readouterr().err


def test_a_text_stops_when_the_browser_goes_away(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def endless(*args: Any, **settings: Any) -> Iterator[list[str]]:
        try:
            yield ["prompt"]
            while True:
                time.sleep(0.002)
                yield ["söz "]
        finally:
            ended.set()

    monkeypatch.setattr(chat_server, "stream", endless)
    with serving(tiny_run) as server:
        body = b'{"prompt": "a"}'
        client = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
        client.sendall(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        received = b""
        while received.count("söz".encode()) < 3:
            received += client.recv(1000)
        # As a browser does that is closed:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert ended.wait(60)
        assert server.generating.acquire(timeout=60)  # the next text can begin


def test_a_browser_that_reads_nothing_does_not_keep_others_waiting(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def written(network: Any, tokenizer: Any, prompts: list[str], *_: Any) -> Iterator[list[str]]:
        yield prompts
        yield ["söz"]
        while prompts == ["endless"]:
            yield ["söz " * 50_000]

    monkeypatch.setattr(chat_server, "stream", written)
    monkeypatch.setattr(chat_server, "WRITE_SECONDS", 0.2, raising=False)
    with serving(tiny_run) as server:
        body = b'{"prompt": "endless"}'
        client = socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
        with client:
            client.sendall(
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert client.recv(1)  # its text has begun, and nothing more is read of it
            text = ask(server, "POST", "/generate", '{"prompt": "a"}', **JSON)[2]
    assert events(text) == [{}, {"text": "söz"}, {"end": True}]
    assert caplog.records == []


def test_a_path_that_is_not_utf_8_is_shown_as_far_as_it_is(tiny_run: Path) -> None:
    with serving(tiny_run) as server:
        server.model = server.model._replace(origin="qovluq\udcff/best.ckpt")
        status, _, page = ask(server, "GET", "/")
    assert status == 200
    assert "qovluq?/best.ckpt" in page


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: close other programs"),
        (RuntimeError("sınıb\n2"), "An error of the program (RuntimeError: sınıb): its terminal"),
    ],
)
def test_an_error_while_a_text_is_written_is_shown(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    message: str,
) -> None:
    def failing(*args: Any, **settings: Any) -> Iterator[list[str]]:
        yield ["prompt"]
        yield ["söz "]
        raise error

    monkeypatch.setattr(chat_server, "stream", failing)
    with serving(tiny_run) as server:
        status, _, text = ask(server, "POST", "/generate", '{"prompt": "a"}', **JSON)
        assert server.generating.acquire(timeout=60)  # the next text can begin
    assert status == 200
    start, piece, last = events(text)
    assert (start, piece) == ({}, {"text": "söz "})
    assert last.keys() == {"error"}
    assert last["error"].startswith(message)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize(("kind", "is_shown"), [(ConnectionResetError, False), (OSError, True)])
def test_only_a_browser_that_went_away_is_no_error(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: type[OSError],
    is_shown: bool,
) -> None:
    def failing(server: ChatServer) -> dict[str, str]:
        raise kind("oxunmur")

    monkeypatch.setattr(ChatServer, "texts", failing)
    with serving(tiny_run) as server, pytest.raises(http.client.RemoteDisconnected):
        ask(server, "GET", "/")
    assert ("oxunmur" in capfd.readouterr().err) == is_shown


def test_it_listens_on_this_machine_only_unless_asked(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose([], "chat").host == "127.0.0.1"
    with serving(tiny_run) as server:
        assert server.is_local
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
        taken = server.server_port
        with pytest.raises(ValueError, match=rf"port={taken} .* choose another port"):
            chat(compose([f"port={taken}"], "chat"))
    with serving(tiny_run, "host=0.0.0.0") as server:
        assert not server.is_local
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
        server.config = replace(server.config, host="192.0.2.1")
        assert server.address == f"http://192.0.2.1:{server.server_port}/"
    for wrong in ("port=70000", "host=", "temperature=-1"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            compose([wrong], "chat")


@pytest.mark.parametrize(
    ("host", "error", "reason"),
    [
        ("no.such.host.invalid", socket.gaierror(-2, "Name or service not known"), "no such host"),
        ("192.0.2.1", OSError(errno.EADDRNOTAVAIL, "Cannot assign"), "not an address of this"),
        ("a..b", UnicodeError("label empty or too long"), "no such host"),
    ],
)
def test_a_host_that_cannot_be_used_is_no_matter_of_the_port(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, host: str, error: Exception, reason: str
) -> None:
    def refuse(server: ChatServer) -> None:
        raise error

    monkeypatch.setattr(ChatServer, "server_bind", refuse)
    message = rf"host={host} cannot be used \(.*{reason}.*\): choose another host$"
    with pytest.raises(ValueError, match=message):
        chat(compose([f"host={host}"], "chat"))
    use_language("az")
    with pytest.raises(ValueError, match="başqa host seçin") as refusal:
        chat(compose([f"host={host}", "lang=az"], "chat"))
    assert str(error.args[-1]) not in str(refusal.value)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize(("host", "is_local"), [("::1", True), ("::", False)])
def test_an_address_of_ipv6(tiny_run: Path, host: str, is_local: bool) -> None:
    with serving(tiny_run, f"host={host}") as server:
        assert server.is_local == is_local
        assert server.address == f"http://[::1]:{server.server_port}/"
        with urllib.request.urlopen(server.address, timeout=60) as answer:
            assert answer.status == 200


def test_the_settings_are_those_of_generate() -> None:
    settings = SamplingConfig.__dataclass_fields__
    ours = compose([], "chat")
    theirs = compose([], "generate")
    assert {name: getattr(ours, name) for name in settings} == {
        name: getattr(theirs, name) for name in settings
    }


def script(page: Page, code: str) -> Any:
    return page.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")


def wait_for(page: Page, code: str, seconds: float = 120) -> Any:
    """The value of `code` in the page, once it is true."""
    end = time.monotonic() + seconds
    while not (value := script(page, code)):
        assert time.monotonic() < end, script(page, "document.body.innerText")
        time.sleep(0.2)
    return value


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the browser is driven through inherited pipes")
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("lang", ["en", "az"])
def test_writing_in_a_real_browser(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    use_language(lang)
    words = {"en": ("Continue", "Stop"), "az": ("Davam etdir", "Dayandır")}[lang]
    with serving(tiny_run, "seed=3") as server, browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=server.address)
        wait_for(page, f"document.getElementById('send')?.textContent === '{words[0]}'")
        type_in = "document.getElementById('prompt').value = 'Bir <b>gün'; "
        submit = "document.getElementById('form').requestSubmit()"
        script(page, type_in + submit)
        wait_for(page, "document.querySelector('.text')?.dataset.done === 'true'")
        (expected,) = sample(*load(tiny_run), "Bir <b>gün", 8, seed=3)
        assert script(page, "document.querySelector('.text').textContent") == expected
        assert script(page, "document.querySelector('.text b').textContent") == "Bir <b>gün"

        # A text that is stopped: the button, and then the model, which is free for the next one.
        script(page, "document.getElementById('max_new_tokens').value = 100000")
        script(page, type_in + submit)
        wait_for(page, f"document.getElementById('send').textContent === '{words[1]}'")
        wait_for(page, "document.querySelectorAll('.text')[1].textContent.length > 12")
        script(page, submit)
        wait_for(page, "document.querySelectorAll('.text')[1].dataset.done === 'stopped'")
        assert server.generating.acquire(timeout=60)
        server.generating.release()

        # A mistake is shown in the page.
        script(page, "document.getElementById('temperature').value = -1")
        script(page, type_in + submit)
        problem = wait_for(page, "document.querySelector('.problem')?.textContent")
        assert "temperature=-1" in problem

        # So is an error of the program, after what was written before it.
        def failing(*args: Any, **settings: Any) -> Iterator[list[str]]:
            yield ["prompt"]
            yield ["söz"]
            raise RuntimeError("sınıb")

        monkeypatch.setattr(chat_server, "stream", failing)
        script(page, "document.getElementById('temperature').value = 1")
        script(page, type_in + submit)
        wait_for(page, "document.querySelectorAll('.problem').length === 2")
        shown = script(page, "document.querySelectorAll('.text')[3].textContent")
        assert shown == "Bir <b>günsöz" + tr(
            "An error of the program ({reason}): its terminal says more.",
            reason="RuntimeError: sınıb",
        )
