"""Files that are not what their name says: encodings, other kinds, and what a folder holds."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import logging
import lzma
import os
import socket
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from backports import zstd
from pyarrow import parquet
from sample_texts import jsonl, make_texts, parquet_bytes, read

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents

TURKISH = "Çocuklar okula gidiyor, öğretmen ders anlatıyor. Işık yandı, kapı açıldı. Şimdi İzmir."
RUSSIAN = "Дом стоял на окраине города, и в нём жили старые люди. Каждое утро они выходили в сад."
AZERBAIJANI = "Nənə nağıl danışır, uşaqlar qulaq asır. Günəş çıxdı, quşlar oxudu."
CYRILLIC = "Нәнә нағыл данышыр, ушаглар гулаг асыр. Ҝүнәш чыхды, гушлар охуду."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, code) for text in (AZERBAIJANI, CYRILLIC) for code in ("utf-16", "utf-32")),
        *((AZERBAIJANI, f"utf-{size}-{end}") for size in (16, 32) for end in ("le", "be")),
        (CYRILLIC, "utf-16-le"),
        ("plain ascii text", "utf-16-be"),
        (TURKISH, "cp1254"),
        (TURKISH, "iso8859_9"),
        (RUSSIAN, "cp1251"),
    ],
)
def test_encodings_that_are_certain_are_converted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text}\n\nson.".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(f'{{"text": "{text} 2"}}\n'.encode(encoding))
    (tmp_path / "c.csv").write_bytes(f'id,text\n1,"{text} 3"\n'.encode(encoding))
    counts: Counter[str] = Counter()
    found = [d.text for d in documents(DataConfig(path=str(tmp_path)), counts)]
    assert found == [text, "son.", f"{text} 2", f"{text} 3"]
    assert counts["converted_files"] == 3
    assert "a.txt: converted from" in caplog.text


def test_an_encoding_may_show_late_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", 50)
    (tmp_path / "a.txt").write_bytes(("yalniz latin. " * 30 + TURKISH).encode("cp1254"))
    (document,) = read(tmp_path)
    assert document.endswith(TURKISH)


def test_an_uncertain_encoding_is_refused_until_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(RUSSIAN.encode("koi8_r"))
    (tmp_path / "b.txt").write_text(AZERBAIJANI, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8, .*data\.encoding=koi8_r"):
        read(tmp_path)
    assert read(tmp_path, encoding="koi8_r") == [RUSSIAN, AZERBAIJANI]
    with pytest.raises(ValueError, match=r"data\.encoding=koi9"):
        DataConfig(encoding="koi9")
    with pytest.raises(ValueError, match=r"data\.encoding=hex"):
        DataConfig(encoding="hex")


@pytest.mark.parametrize("encoding", ["iso8859_9", "latin5", "ISO-8859-9", "latin1", "iso8859_1"])
def test_latin_encodings_are_read_with_the_signs_of_windows(tmp_path: Path, encoding: str) -> None:
    text = "Bakı’nın “sözü” – bu… çörək".replace("ə", "e")
    text = text if codecs.lookup(encoding).name == "iso8859-9" else text.replace("ı", "i")
    (tmp_path / "a.txt").write_bytes(text.encode("cp1254"))
    assert read(tmp_path, encoding=encoding) == [text]


def zipped(names: list[str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, AZERBAIJANI)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


WIKI = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="az">\n  <siteinfo>'
KINDS = {
    "web page": (b"\n<!DOCTYPE html>\n<html>", "a web page"),
    "web page in capitals": (b"<HTML><HEAD>", "a web page"),
    "xhtml": (b'<?xml version="1.0"?>\n<!-- x -->\n<html xmlns="x">', "a web page"),
    "web page after comments": (b"<!-- a -->\n<!--\n-- b\n-->" * 99 + b"<body>", "a web page"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "pdftotext"),
    "zip": (zipped(["a.txt"]), "an archive of files; unpack it"),
    "docx": (zipped(["[Content_Types].xml", "word/document.xml"]), "save it as plain text"),
    "epub": (zipped(["word/x"]), "save it as plain text"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "save it as plain text"),
    "rtf": (b"{\\rtf1\\ansi salam}", "save it as plain text"),
    "tar": (tarred(), "an archive"),
    "tar.gz": (gzip.compress(tarred()), "an archive"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "wiki dump": (WIKI, "data=wikipedia"),
    "wiki dump.bz2": (bz2.compress(WIKI), "data=wikipedia"),
    "parquet": (parquet_bytes([{"text": "a"}]), r"ending \.parquet"),
    "png": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 9, "binary data"),
    "noise": (bytes(range(256)) * 99, "binary data"),
    "nuls": (bytes(5000), "binary data"),
}


@pytest.mark.parametrize(
    ("content", "encoding", "name"),
    [
        ("\ufeffbir\niki".encode("utf-16-le")[:-1], None, "utf-16-le"),
        ("\ufeffbir\r\niki".encode("utf-16-be")[:-1], None, "utf-16-be"),
        ("çörək\nşəkər".replace("ə", "e").encode("cp1254") + b"\x9d", "cp1254", "cp1254"),
        ("çorek\rşeker".encode("cp1254") + b"\x9d", "cp1254", "cp1254"),
    ],
)
def test_what_breaks_another_encoding_is_named_with_its_line(
    tmp_path: Path, content: bytes, encoding: str | None, name: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path, encoding=encoding)
    wanted = rf"a\.txt:2: broken {name} \(.*\); data\.on_bad_utf8=replace accepts it"
    with pytest.raises(ValueError, match=wanted):
        read(tmp_path, encoding=encoding, on_bad_utf8="refuse")


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("encoding", ["cp1254", "utf-16-le", "utf-16-be"])
def test_what_is_replaced_in_another_encoding_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoding: str,
    chunk: int,
) -> None:
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", chunk)
    lines = [TURKISH] * 12
    broken = b"\x9d" if encoding == "cp1254" else "\ud800".encode(encoding, "surrogatepass")
    data = [line.encode(encoding) for line in lines]
    data[1:9] = [line + broken for line in data[1:9]]
    mark = b"" if encoding == "cp1254" else "\ufeff".encode(encoding)
    (tmp_path / "a.txt").write_bytes(mark + "\n".encode(encoding).join(data))
    counts: Counter[str] = Counter()
    config = DataConfig(path=str(tmp_path), encoding="cp1254")
    (document,) = documents(config, counts)
    assert document.text.split("\n") == [TURKISH, *[f"{TURKISH}\ufffd"] * 8, *[TURKISH] * 3]
    assert counts["bad_utf8_lines"] == 8
    assert f"a.txt:2: broken {encoding} replaced" in caplog.text
    assert "8 places in total" in caplog.text


def test_a_named_encoding_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((RUSSIAN.upper() * 20).encode("cp866"))
    with pytest.raises(ValueError, match=r"a\.txt: not in cp1254: .* data\.encoding"):
        read(tmp_path, encoding="cp1254")


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_a_file_that_goes_on_in_another_encoding_is_refused_at_that_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, chunk: int
) -> None:
    """Not at the line of a character that was damaged before."""
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", chunk)
    first = [AZERBAIJANI.encode()] * 40
    first[2] += b"\xff"
    lines = [*first, *[TURKISH.encode("cp1254")] * 10]
    if ending == ".jsonl":
        lines = [b'{"text": "' + line + b'"}' for line in lines]
    (tmp_path / f"a{ending}").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=rf"a\{ending}:41: .* no longer UTF-8: .* file of its own"):
        read(tmp_path)


def test_in_a_large_file_its_last_megabytes_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is appended to it would else be less than a hundredth."""
    lines = [*[AZERBAIJANI.encode()] * 2000, *[TURKISH.encode("cp1254")] * 10]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    assert "\ufffd" in read(tmp_path, max_document_bytes=10**6)[0]
    monkeypatch.setattr("azllm_lightning.data.decoder.MAX_BLOCK_BYTES", 2000)
    with pytest.raises(ValueError, match=r"a\.txt:2001: .* no longer UTF-8"):
        read(tmp_path)


def test_damage_here_and_there_is_no_other_encoding(tmp_path: Path) -> None:
    lines = [AZERBAIJANI.encode()] * 100
    lines[:40:2] = [line + b"\xff" for line in lines[:40:2]]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    (document,) = read(tmp_path)
    assert document.count("\ufffd") == 20


def test_a_column_of_parquet_in_another_encoding_is_refused(tmp_path: Path) -> None:
    texts = [AZERBAIJANI.encode(), *[TURKISH.encode("cp1254")] * 10]
    table = pa.table({"text": pa.array(texts, pa.binary())})
    text = pa.Array.from_buffers(pa.string(), len(texts), table["text"].chunk(0).buffers())
    parquet.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet:2: .* no longer UTF-8"):
        read(tmp_path)


def test_replacement_characters_of_a_text_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("bir\ufffd\niki".encode("utf-16"))
    counts: Counter[str] = Counter()
    list(documents(DataConfig(path=str(tmp_path), on_bad_utf8="refuse"), counts))
    assert counts["bad_utf8_lines"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_what_is_no_text_is_refused_with_the_way_out(tmp_path: Path, kind: str, name: str) -> None:
    content, message = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text(AZERBAIJANI, encoding="utf-8")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            read(path)


def test_a_page_called_parquet_is_called_a_page(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(KINDS["web page"][0])
    with pytest.raises(ValueError, match="a web page"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".pdf", ".docx", ".zip", ".xyz"])
def test_a_given_file_of_another_type_gets_the_same_advice(tmp_path: Path, ending: str) -> None:
    contents = {".pdf": KINDS["pdf"], ".docx": KINDS["docx"], ".zip": KINDS["zip"]}
    content, message = contents.get(ending, (b"salam", r"supported are \.txt"))
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("azwiki-latest-pages-articles.xml.bz2", WIKI, "data=wikipedia"),
        ("metn.tar.gz", tarred(), "unpack it, and give the folder"),
        ("dump.sql.gz", b"-- MySQL dump 10.19\n", r"supported are \.txt"),
        ("CC.warc.gz", b"WARC/1.0\r\n", r"supported are \.txt"),
        ("a.srt.xz", b"1\n00:00:01,000 --> 00:00:02,000\nSalam\n", r"supported are \.txt"),
    ],
)
def test_a_compressed_file_of_another_type_gets_the_advice_for_its_content(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    pack = {".gz": gzip, ".xz": lzma, ".bz2": bz2}[Path(name).suffix]
    (tmp_path / name).write_bytes(pack.compress(content))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(pack.compress(os.urandom(5000))[:-9])
    with pytest.raises(ValueError, match=r"damaged|binary data"):
        read(tmp_path / name)


def test_all_files_that_are_no_text_are_named_at_once(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_bytes(b"%PDF-1.4")
    with pytest.raises(ValueError, match=r"(?s)0\.txt: .*4\.txt: .*and 2 other files"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{salam}", "<p>salam", "PK", "%PD", "a\x00b", "<htmlə>", "\x1a"])
def test_text_that_only_looks_alike_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(f"{text} bir iki üç", encoding="utf-8")
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_the_content_decides_how_a_file_is_compressed(tmp_path: Path, name: str, pack) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(pack(AZERBAIJANI.encode("utf-8")))
    assert read(tmp_path) == [AZERBAIJANI]


def test_zstd_with_a_long_window_and_several_frames(tmp_path: Path) -> None:
    texts = make_texts(300)
    half = len(texts) // 2
    options = {zstd.CompressionParameter.window_log: 28}
    frames = []
    for part in (texts[:half], texts[half:]):
        packer = zstd.ZstdCompressor(options=options)  # of unknown length, as from a pipe
        content = "".join(f"{text}\n\n" for text in part).encode("utf-8")
        frames.append(packer.compress(content) + packer.flush())
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(tmp_path) == texts


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_a_truncated_file_is_damaged(tmp_path: Path, suffix: str) -> None:
    pack = {".gz": gzip, ".zst": zstd, ".xz": lzma, ".bz2": bz2}[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack.compress(os.urandom(5000).hex().encode())[:-99])
    with pytest.raises(ValueError, match=rf"a\.txt\{suffix}: damaged"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize("is_named", [True, False])
def test_compressed_parquet_has_to_be_unpacked(tmp_path: Path, suffix: str, is_named: bool) -> None:
    pack = {".gz": gzip, ".zst": zstd, ".xz": lzma, ".bz2": bz2}[suffix]
    path = tmp_path / f"a.parquet{suffix if is_named else ''}"
    path.write_bytes(pack.compress(parquet_bytes([{"text": "bir"}])))
    with pytest.raises(ValueError, match=r"a\.parquet.*: a compressed Parquet file; unpack it"):
        read(tmp_path)
    path.write_bytes(parquet_bytes([{"text": "bir"}]))  # a server has unpacked it
    assert read(tmp_path) == ["bir"]


@pytest.mark.parametrize("text", ["<!-- a -->bir <!-- b --><html>", "<!-- a -->" * 99 + "bir"])
def test_text_after_comments_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path) == [text]


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", ["\r\n", "\r\r\n", "\r\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-be"])
def test_returns_before_a_newline_are_one_line_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: str, encoding: str
) -> None:
    text = "bir\niki\n\nüç\nbir\niki\n"
    mark = "" if encoding == "utf-8" else "\ufeff"
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", chunk + len(mark))
    for name, content in (("a.txt", text), ("b.csv", 'id,text\n1,"dörd\nbeş"\n2,altı\n')):
        (tmp_path / name).write_bytes(f"{mark}{content}".replace("\n", end).encode(encoding))
    assert read(tmp_path) == ["bir\niki", "üç\nbir\niki", "dörd\nbeş", "altı"]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_old_mac_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(b"bir\riki\r\r\xc3\xbc\xc3\xa7\r")
    (tmp_path / "b.csv").write_bytes(b'id,text\r1,d\xc3\xb6rd\r2,"be\xc5\x9f\nalt\xc4\xb1"\r')
    (tmp_path / "c.jsonl").write_bytes(jsonl([{"text": "a"}, {"text": "b"}]).replace(b"\n", b"\r"))
    assert read(tmp_path) == ["bir\niki", "üç", "dörd", "beş\naltı", "a", "b"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_one_line_says_what_a_folder_holds_beside_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "f"
    write(folder / "a.txt", "bir")
    write(folder / "x.txt" / "b.txt", "iki")
    for name in ("b.pdf", "c.PDF", "wiki_00", "tokenizer.json", ".gizli.txt", ".git/config.txt"):
        write(folder / name, "yox")
    with caplog.at_level(logging.INFO):
        assert read(folder) == ["bir", "iki"]
    assert caplog.text.count("skipped") == 1
    for phrase in (
        "2 files; skipped",
        ".pdf 2 (b.pdf, ...)",
        "hidden 2 (.git, ...)",
        "without an ending 1 (wiki_00)",
        "metadata 1 (tokenizer.json)",
    ):
        assert phrase in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "f"
    write(folder / "a.txt", "bir")
    write(folder / "sub" / "b.txt", "iki")
    write(tmp_path / "other" / "c.txt", "üç")
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / "again").symlink_to(folder / "sub")
    (folder / "loop").symlink_to(folder)
    (folder / "d.txt").symlink_to("nowhere.txt")
    (folder / "e.txt").symlink_to("e.txt")
    with caplog.at_level(logging.INFO):
        assert read(folder) == ["bir", "üç", "iki"]
    assert "link to a folder that is read anyway 2" in caplog.text
    assert "broken link 1 (d.txt)" in caplog.text
    assert "link that leads in a circle 1 (e.txt)" in caplog.text
    with pytest.raises(ValueError, match="a link to a file that does not exist"):
        read(folder / "d.txt")
    (tmp_path / "linked").symlink_to(folder)
    assert read(tmp_path / "linked") == ["bir", "üç", "iki"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
@pytest.mark.timeout(20)
def test_pipes_devices_and_sockets_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("a.txt")
    write(tmp_path / "b.txt", "bir")
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.INFO):
        listener.bind("c.txt")
        for path, kind in (("a.txt", "pipe"), ("c.txt", "socket"), ("/dev/zero", "device file")):
            with pytest.raises(ValueError, match=f"a {kind}, which cannot be read more than once"):
                read(path)
        assert read(tmp_path) == ["bir"]
        assert read(tmp_path / "*.txt") == ["bir"]
    assert "pipe 1 (a.txt), socket 1 (c.txt)" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_what_may_not_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.txt", "bir")
    write(tmp_path / "b.txt", "iki")
    write(tmp_path / "sub" / "c.txt", "üç")
    (tmp_path / "b.txt").chmod(0)
    (tmp_path / "sub").chmod(0)
    try:
        assert read(tmp_path) == ["bir"]
        assert "without permission 2 (b.txt, ...)" in caplog.text
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_a_folder_and_a_file_without_an_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "kitab", "bir\n\niki")
    write(tmp_path / "x.txt" / "b.txt", "üç")
    write(tmp_path / "y.txt", "dörd")
    assert read(tmp_path / "kitab") == ["bir", "iki"]
    with caplog.at_level(logging.INFO):
        assert read(tmp_path / "*.txt") == ["dörd"]
    assert "folder that matches the glob 1" in caplog.text
    (tmp_path / "y.txt").unlink()
    (tmp_path / "x.txt" / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"no file of a supported type; .*without an ending 1"):
        read(tmp_path)
    write(tmp_path / ".gizli.txt", "beş")
    assert read(tmp_path / ".gizli.txt") == ["beş"]


def test_runs_and_models_in_the_folder_are_not_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "bir")
    run = tmp_path / "lightning_logs" / "a" / "version_0"
    write(run / ".hydra" / "config.yaml", "x: 1")
    write(run / "notes.txt", "yox")
    write(tmp_path / "model" / "config.json", "{}")
    write(tmp_path / "model" / "tokenizer.json", '{\n  "version": "1.0"\n}')
    assert read(tmp_path) == ["bir"]


def test_prepared_text_in_the_folder_is_not_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.txt", "bir")
    write(tmp_path / "x" / "manifest.json", "{}")
    write(tmp_path / "x" / "b.txt", "iki")  # a manifest may be that of anything
    for name in ("manifest.json", "tokenizer.json", "verified.json"):
        write(tmp_path / "hazır" / name, "{}")
    write(tmp_path / "hazır" / "removed.jsonl", '{"text": "yox"}')
    assert read(tmp_path) == ["bir", "iki"]
    assert "prepared text 1 (hazır)" in caplog.text
