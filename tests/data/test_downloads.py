"""Text behind a URL: real servers on this machine, with their weaknesses."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from sample_texts import ROWS, TEXTS, jsonl, make_texts, parquet_bytes, read
from servers import HubSite, WebSite

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.files import stamps
from azllm_lightning.data.pipeline import prepared_folder
from azllm_lightning.inference.pair_files import SentencePair, read_pairs

LONG = "\n\n".join(make_texts(3000)).encode("utf-8")
PLAIN = "\n\n".join(TEXTS).encode("utf-8")
CSV = b"text\nbir\niki\n"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azllm_lightning.data.downloads.PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr("azllm_lightning.data.downloads.ASK_AGAIN", 0.0)


@pytest.fixture
def site() -> Iterator[WebSite]:
    with WebSite().running() as running:
        yield running


FILES = {
    "/a.txt": (PLAIN, TEXTS),
    "/a.txt.gz": (gzip.compress(PLAIN), TEXTS),
    "/a.txt.xz": (lzma.compress(PLAIN), TEXTS),
    "/a.txt.bz2": (bz2.compress(PLAIN), TEXTS),
    "/a.jsonl": (jsonl(ROWS), TEXTS),
    "/a.csv": (CSV, ["bir", "iki"]),
    "/a.tsv": (b"id\ttext\n1\tbir, iki\n", ["bir, iki"]),
    "/a.parquet": (parquet_bytes(ROWS), TEXTS),
    "/s\u0259h\u0259r kitab.txt": (PLAIN, TEXTS),
}


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("path", FILES)
def test_each_format_is_read_as_from_a_local_file(
    site: WebSite, path: str, knows_ranges: bool
) -> None:
    content, texts = FILES[path]
    site.knows_ranges = knows_ranges
    quoted = path.replace(" ", "%20").replace("\u0259", "%C9%99")
    site.files = {path: content, quoted: content}
    assert read(f"{site.url}{path}") == texts


@pytest.mark.parametrize("query", ["?download=true", "?raw=true", "?dl=1&x=a/b.pdf", "#page"])
def test_the_ending_is_that_of_the_path(site: WebSite, query: str) -> None:
    site.files = {"/a.txt.gz": gzip.compress(PLAIN)}
    assert read(f"{site.url}/a.txt.gz{query}") == TEXTS


def test_a_name_from_the_headers_or_the_type(site: WebSite) -> None:
    site.files = {"/download/123": CSV, "/raw": PLAIN}
    site.headers = {"Content-Disposition": 'attachment; filename="kitab.csv"'}
    assert read(f"{site.url}/download/123") == ["bir", "iki"]
    site.headers = {"Content-Type": "text/plain; charset=utf-8"}
    assert read(f"{site.url}/raw") == TEXTS


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/download.php", {"Content-Disposition": 'attachment; filename="kitab.csv"'}),
        ("/kitab.aspx", {"Content-Type": "text/csv"}),
        ("/kitab.v2", {"Content-Disposition": 'filename="kitab.bin"', "Content-Type": "text/csv"}),
        ("/redirect.cgi", {"Content-Type": "application/octet-stream"}),
    ],
)
def test_an_unknown_ending_leaves_the_other_names(
    site: WebSite, path: str, headers: dict[str, str]
) -> None:
    site.files = {path: CSV, "/b.csv": CSV}
    site.redirects = {"/redirect.cgi": "/b.csv"}
    site.headers = headers
    assert read(f"{site.url}{path}") == ["bir", "iki"]


def test_an_unknown_ending_alone_is_refused(site: WebSite) -> None:
    site.files = {"/kitab.bin": CSV}
    with pytest.raises(ValueError, match=r"no file of a supported type; .*\.bin 1 \(kitab\.bin\)"):
        read(f"{site.url}/kitab.bin")


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("azwiki.xml.bz2", b"<mediawiki>", "data=wikipedia"),
        ("dump.sql.gz", b"-- MySQL dump", r"supported are .* \.gz 1 \(dump\.sql\.gz\)"),
        ("video.mp4", b"\0\0\0\x18ftypmp42" + bytes(5000), "binary data"),
    ],
)
@pytest.mark.parametrize("is_named_by_server", [False, True])
def test_of_another_type_only_the_beginning_is_received(
    site: WebSite,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    head: bytes,
    message: str,
    is_named_by_server: bool,
) -> None:
    received: list[int] = []

    def counted(response: HTTPResponse, size: int | None = None) -> bytes:
        data = read_response(response, size)
        received.append(len(data))
        return data

    read_response = HTTPResponse.read
    monkeypatch.setattr(HTTPResponse, "read", counted)
    pack = {".bz2": bz2.compress, ".gz": gzip.compress, ".mp4": bytes}[Path(name).suffix]
    path = "/download" if is_named_by_server else f"/{name}"
    site.headers = {"Content-Disposition": f"filename={name}"} if is_named_by_server else {}
    site.files = {path: pack(head + os.urandom(3_000_000).hex().encode())}
    with pytest.raises(ValueError, match=message):
        read(f"{site.url}{path}")
    assert len(site.requests) == 1
    assert 0 < sum(received) < 2_000_000


def test_a_list_of_files_is_read_as_their_folder(site: WebSite) -> None:
    pytest.importorskip("aiohttp")
    page = b'<html><body><a href="a.txt">a.txt</a> <a href="b.pdf">b.pdf</a></body></html>'
    site.files = {"/v1.0": page, "/v1.0/": page, "/v1.0/a.txt": PLAIN}
    assert read(f"{site.url}/v1.0") == TEXTS
    assert read(f"{site.url}/v1.0/") == TEXTS


def test_a_redirect_is_followed(site: WebSite) -> None:
    site.files = {"/real/a.txt": PLAIN}
    site.redirects = {"/resolve": "/real/a.txt", "/old.txt": "/real/a.txt"}
    assert read(f"{site.url}/resolve") == TEXTS
    assert read(f"{site.url}/old.txt") == TEXTS


def test_a_broken_download_continues_where_it_broke(site: WebSite) -> None:
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 50_000]
    assert len(read(f"{site.url}/a.txt")) == 3000
    ranges = [wanted for _, wanted in site.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert site.sent == len(LONG)


def test_without_ranges_a_broken_download_starts_again(site: WebSite) -> None:
    site.files = {"/a.txt": LONG}
    site.knows_ranges = False
    site.breaks_after = [100_000]
    assert len(read(f"{site.url}/a.txt")) == 3000
    assert site.sent == len(LONG) + 100_000


def test_a_server_is_asked_once_for_a_while(
    site: WebSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("azllm_lightning.data.downloads.ASK_AGAIN", 1000.0)
    site.files = {"/a.txt": PLAIN}
    url = f"{site.url}/a.txt"
    assert read(url) == TEXTS
    requests = len(site.requests)
    assert read(url) == TEXTS
    prepared_folder(DataConfig(path=url))
    assert len(site.requests) == requests
    later = time.monotonic() + 1001
    monkeypatch.setattr("time.monotonic", lambda: later)
    site.failures = [503] * 5
    assert read(url) == TEXTS  # the copy from before, which is not asked for at once, either
    assert read(url) == TEXTS
    assert caplog.text.count("using the copy from before") == 1


def test_a_file_whose_last_byte_was_received_is_not_received_again(
    site: WebSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files = {"/a.txt": LONG}
    with monkeypatch.context() as stopped:
        stopped.setattr("azllm_lightning.data.downloads.sync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(f"{site.url}/a.txt")
    assert len(read(f"{site.url}/a.txt")) == 3000
    assert site.sent == len(LONG)


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


def test_a_later_process_continues_a_download(site: WebSite) -> None:
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="after 100,000 of"):
        read(f"{site.url}/a.txt")
    assert len(read(f"{site.url}/a.txt")) == 3000
    assert site.sent == len(LONG)


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_broken_download_of_a_newer_version_continues(site: WebSite, has_tags: bool) -> None:
    site.has_tags = has_tags
    site.files = {"/a.txt": PLAIN}
    assert read(f"{site.url}/a.txt") == TEXTS
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 50_000]
    assert len(read(f"{site.url}/a.txt")) == 3000
    assert site.sent == len(PLAIN) + len(LONG)


def test_a_later_process_continues_a_newer_version(site: WebSite) -> None:
    site.files = {"/a.txt": PLAIN}
    assert read(f"{site.url}/a.txt") == TEXTS
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 0, 0, 0, 0]
    assert read(f"{site.url}/a.txt") == TEXTS  # the copy from before
    assert len(read(f"{site.url}/a.txt")) == 3000
    assert site.sent == len(PLAIN) + len(LONG)


@pytest.mark.parametrize("content", [PLAIN, PLAIN + b"."])
def test_a_newer_version_that_is_withdrawn_is_forgotten(site: WebSite, content: bytes) -> None:
    site.files = {"/a.txt": PLAIN}
    assert read(f"{site.url}/a.txt") == TEXTS
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 0, 0, 0, 0]
    assert read(f"{site.url}/a.txt") == TEXTS
    site.files = {"/a.txt": content}
    assert "\n\n".join(read(f"{site.url}/a.txt")).encode() == content


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_file_that_changes_meanwhile_is_downloaded_again(site: WebSite, has_tags: bool) -> None:
    site.has_tags = has_tags
    site.files = {"/a.txt": LONG}
    site.breaks_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="could not be reached"):
        read(f"{site.url}/a.txt")
    texts = make_texts(4000, seed=1)
    site.files = {"/a.txt": "\n\n".join(texts).encode("utf-8")}
    assert read(f"{site.url}/a.txt") == texts


def test_temporary_failures_are_tried_again(
    site: WebSite, caplog: pytest.LogCaptureFixture
) -> None:
    site.files = {"/a.txt": PLAIN}
    site.failures = [503, 429]
    assert read(f"{site.url}/a.txt") == TEXTS
    assert caplog.text.count("trying again") == 2


@pytest.mark.parametrize("code", [404, 410])
def test_a_lasting_failure_ends_it_at_once(site: WebSite, code: int) -> None:
    site.failures = [code] * 9
    with pytest.raises(ValueError, match=rf"{site.url}/a\.txt: could not be reached \(HTTP {code}"):
        read(f"{site.url}/a.txt")
    assert len(site.requests) == 1


WANTS_LOGIN = r"wants a login(.|\n)*hf auth login.*download the file in a browser"


@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_wants_a_login_is_told_from_one_out_of_reach(
    site: WebSite, code: int
) -> None:
    site.failures = [code] * 9
    with pytest.raises(ValueError, match=rf"{site.url}/a\.txt: .*{WANTS_LOGIN}"):
        read(f"{site.url}/a.txt")
    assert len(site.requests) == 1


def test_less_than_announced_is_an_error(site: WebSite) -> None:
    site.files = {"/a.txt": PLAIN}
    site.extra_length = 10
    with pytest.raises(ValueError, match=r"broke after \d+ of \d+ bytes"):
        read(f"{site.url}/a.txt")


def test_the_cache_is_used_until_the_file_changes(site: WebSite) -> None:
    site.files = {"/a.txt": PLAIN}
    url = f"{site.url}/a.txt"
    config = DataConfig(path=url)
    first = prepared_folder(config)
    assert read(url) == TEXTS
    assert prepared_folder(config) == first
    assert site.sent == len(PLAIN)
    site.files = {"/a.txt": "\n\n".join(reversed(TEXTS)).encode()}
    assert prepared_folder(config) != first
    assert read(url) == TEXTS[::-1]


def test_without_tags_the_length_decides(site: WebSite) -> None:
    site.files = {"/a.txt": PLAIN}
    site.has_tags = False
    before = stamps([f"{site.url}/a.txt"], "data.path")
    assert stamps([f"{site.url}/a.txt"], "data.path") == before
    site.files = {"/a.txt": PLAIN + b"."}
    assert stamps([f"{site.url}/a.txt"], "data.path") != before


def test_without_a_connection_the_copy_is_used(caplog: pytest.LogCaptureFixture) -> None:
    with WebSite({"/a.txt": PLAIN}).running() as site:
        url = f"{site.url}/a.txt"
        assert read(url) == TEXTS
    assert read(url) == TEXTS
    assert "using the copy from before" in caplog.text


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_failure_of_the_connection(
    site: WebSite, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files = {"/a.txt": PLAIN}
    url = f"{site.url}/a.txt"
    assert read(url) == TEXTS
    site.files = {"/a.txt": LONG}  # what was kept is old
    monkeypatch.setattr("azllm_lightning.data.downloads.sync", full)
    place = re.escape(str(cache))
    wanted = rf"a\.txt: cannot be written into {place}.*the disk is full.*\$AZLLM_DATA_DIR"
    with pytest.raises(ValueError, match=wanted):
        read(url)
    assert len(site.requests) == 2


def test_a_folder_that_cannot_be_written_is_named(site: WebSite, cache: Path) -> None:
    site.files = {"/a.txt": PLAIN}
    cache.mkdir(exist_ok=True)
    (cache / "downloads").write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be written into .*\$AZLLM_DATA_DIR"):
        read(f"{site.url}/a.txt")


def test_a_copy_that_was_cut_short_is_downloaded_again(site: WebSite, cache: Path) -> None:
    site.files = {"/a.txt": PLAIN}
    assert read(f"{site.url}/a.txt") == TEXTS
    (copy,) = cache.rglob("a.txt")
    copy.write_bytes(PLAIN[:20])
    assert read(f"{site.url}/a.txt") == TEXTS


def test_a_web_page_is_refused(site: WebSite) -> None:
    site.files = {"/a.txt": b"<!DOCTYPE html><html><p>salam</html>", "/view": b" <html>x</html>"}
    for path in ("/a.txt", "/view"):
        with pytest.raises(ValueError, match="a web page, not the text itself"):
            read(f"{site.url}{path}")


def test_a_password_is_sent_and_not_shown(site: WebSite) -> None:
    site.files = {"/a.txt": PLAIN}
    url = site.url.replace("//", "//ad:gizli@")
    assert read(f"{url}/a.txt") == TEXTS
    with pytest.raises(ValueError) as caught:
        read(f"{url}/b.txt")
    assert "gizli" not in str(caught.value)


def test_a_password_is_for_its_own_server(site: WebSite) -> None:
    site.redirects = {"/old": "/new"}
    url = site.url.replace("//", "//ad:gizli@")
    with WebSite({"/new": PLAIN, "/a.txt": PLAIN}).running() as other:
        site.redirects |= {"/new": f"{other.url}/a.txt"}
        assert read(f"{url}/old") == TEXTS
    first, second = site.authorizations
    assert first == second is not None
    assert other.authorizations == [None]


def test_no_half_file_is_left_in_place(site: WebSite, cache: Path) -> None:
    site.files = {"/a.txt": LONG}
    site.breaks_after = [1000, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="could not be reached"):
        read(f"{site.url}/a.txt")
    assert not list(cache.rglob("a.txt"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSite]:
    from huggingface_hub import constants

    with HubSite().running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield running


def test_text_of_the_hub_is_downloaded_once(hub: HubSite) -> None:
    hub.files = {
        "a.jsonl": jsonl(ROWS),
        "b.txt.gz": gzip.compress(b"bir\n\niki"),
        "c.csv": CSV.replace(b"bir", b"alt\xc4\xb1"),
        "README.md": b"# card",
    }
    assert read("hf://datasets/u/d/a.jsonl") == TEXTS
    assert read("hf://datasets/u/d/*.csv") == ["alt\u0131", "iki"]
    sent = hub.sent
    assert read("hf://datasets/u/d/a.jsonl") == TEXTS
    assert hub.sent - sent < len(hub.files["a.jsonl"])
    assert read("hf://datasets/u/d") == [*TEXTS, "bir", "iki", "altı"]


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl", ""])
def test_a_gated_text_of_the_hub_wants_a_login(hub: HubSite, code: int, name: str) -> None:
    hub.files = {"a.jsonl": jsonl(ROWS)}
    hub.refusal = code, "GatedRepo"
    with pytest.raises(ValueError, match=WANTS_LOGIN):
        read(f"hf://datasets/u/d/{name}")


def test_a_full_disk_is_no_failure_of_the_hub(
    hub: HubSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {"a.jsonl": jsonl(ROWS)}
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(ValueError, match=r"a\.jsonl: cannot be written into .*hub.*\$HF_HOME"):
        read("hf://datasets/u/d/a.jsonl")


def test_parquet_of_the_hub_is_read(hub: HubSite) -> None:
    hub.files = {"a.parquet": parquet_bytes(ROWS)}
    assert read("hf://datasets/u/d/a.parquet") == TEXTS


def test_pairs_of_the_hub_are_read(hub: HubSite) -> None:
    """A file, a compressed one, and a dataset in Parquet with its card, as lists are published."""
    right, wrong = "Uşaqlar gəldilər.", "Uşaqlar gəldiniz."
    table = f"\tsen\twrong_sen\n0\t{right}\t{wrong}\n".encode()
    choice = {"sentence_a": wrong, "sentence_b": right, "label": "B", "phenomenon": "uzlaşma"}
    hub.files = {
        "aze/data.tsv": table,
        "aze/data.tsv.gz": gzip.compress(table),
        "data/test-00000-of-00001.parquet": parquet_bytes([choice]),
        "README.md": b"# card",
    }
    for path in ("aze/data.tsv", "aze/data.tsv.gz"):
        assert read_pairs(f"hf://datasets/u/d/{path}") == [SentencePair("data", right, wrong)]
    assert read_pairs("hf://datasets/u/d/data") == [SentencePair("uzlaşma", right, wrong)]
    with pytest.raises(ValueError, match=r"pairs=hf://datasets/u/d/yoxdur\.tsv"):
        read_pairs("hf://datasets/u/d/yoxdur.tsv")


def test_pairs_behind_a_url_are_read(site: WebSite) -> None:
    site.files = {"/a.jsonl": '{"good": "Mən gəldim.", "bad": "Mən gəldin."}\n'.encode()}
    assert read_pairs(f"{site.url}/a.jsonl") == [SentencePair("a", "Mən gəldim.", "Mən gəldin.")]
    site.files = {"/a.csv": b"right,wrong\na,b,c\n"}
    with pytest.raises(ValueError, match=r"/a\.csv:2: 3 cells, but the header has 2"):
        read_pairs(f"{site.url}/a.csv")
