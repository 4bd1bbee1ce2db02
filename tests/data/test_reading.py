"""Reading files: formats, paths, and the errors of each."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import shlex
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from sample_texts import ROWS, TEXTS, jsonl, parquet_bytes, read

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents
from azllm_lightning.data.files import find_files
from azllm_lightning.data.records import read_records
from azllm_lightning.data.rows import matching


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def csv_bytes(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8")


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


ENDINGS = [
    form + suffix for form in (".txt", ".jsonl", ".ndjson", ".json", ".csv") for suffix in COMPRESS
]


@pytest.mark.parametrize("ending", [*ENDINGS, ".parquet", ".TXT", ".Csv.GZ"])
def test_formats(tmp_path: Path, ending: str) -> None:
    form, _, suffix = ending.lower()[1:].partition(".")
    data = {
        "txt": "\n\n".join(TEXTS).encode("utf-8"),
        "csv": csv_bytes(ROWS),
        "parquet": parquet_bytes(ROWS),
    }.get(form, jsonl(ROWS))
    path = tmp_path / f"mətn{ending}"
    path.write_bytes(COMPRESS["." + suffix if suffix else ""](data))
    assert read(path) == TEXTS


def test_concatenated_gzip_members_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"bir\n\n") + gzip.compress(b"iki\n"))
    assert read(tmp_path / "a.txt.gz") == ["bir", "iki"]


def test_csv_from_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + csv_bytes(ROWS, delimiter=";"))
    assert read(tmp_path / "a.csv") == TEXTS
    long = [{"text": "söz " * 60_000}]  # 240 kB: above the csv module's own limit
    (tmp_path / "a.csv").write_bytes(csv_bytes(long))
    assert len(read(tmp_path / "a.csv", max_document_bytes=1_000_000)[0]) == 239_999


def test_parquet_kinds_of_text(tmp_path: Path) -> None:
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
    ):
        table = pa.table({"text": pa.array(["bir ə", None, "iki"], pa.string()).cast(kind)})
        parquet.write_table(table, tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == ["bir ə", "iki"]


def test_parquet_with_lists_of_texts_is_read_as_json_is(tmp_path: Path) -> None:
    rows = [
        {"m": [{"text": "bir", "who": "a"}, {"text": "iki", "who": "b"}], "meta": {"source": "x"}},
        {"m": None, "meta": None},
        {"m": [], "meta": {"source": "y"}},
        {"m": [{"text": "üç", "who": "a"}, {"text": None, "who": None}], "meta": {"source": "y"}},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    for field in (None, "m.who", "meta.source"):
        found = [
            [
                (document.text, document.source.partition(".")[0])
                for document in documents(
                    DataConfig(path=str(tmp_path / name), text_field="m.text", source_field=field)
                )
            ]
            for name in ("a.parquet", "a.jsonl")
        ]
        assert found[0] == found[1]
        assert [text for text, _ in found[0]] == ["bir", "iki", "üç"]
    with pytest.raises(ValueError, match=r"no field 'text'.*Set data\.text_field=m\.text"):
        read(tmp_path / "a.parquet")


def test_txt_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("bir\niki\r\n\r\n \n\nüç".encode())
    assert read(tmp_path / "a.txt") == ["bir\niki", "üç"]
    assert read(tmp_path / "a.txt", txt_documents="file") == ["bir\niki\n\n \n\nüç"]


def test_a_very_long_line_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("decoder", "records"):
        monkeypatch.setattr(f"azllm_lightning.data.{module}.MAX_BLOCK_BYTES", 7)
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", 5)
    monkeypatch.setattr("azllm_lightning.data.decoder.HEAD_BYTES", 5)
    text = "".join(chr(0x259 + i) + "😀ab" for i in range(40))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (file,) = find_files([str(tmp_path)], "data.path")
    parts = [part for part, _ in read_records(file, DataConfig(on_bad_utf8="refuse"), Counter())]
    assert "".join(parts) == text
    assert len(parts) > 10


def test_byte_order_marks_are_removed(tmp_path: Path) -> None:
    for name, data in (
        ("a.csv", b"text\nbir\n"),
        ("b.jsonl", b'{"text": "iki"}'),
        ("c.txt", "üç".encode()),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert read(tmp_path) == ["bir", "iki", "üç"]


def test_folder_glob_and_list(tmp_path: Path) -> None:
    (tmp_path / "sub folder").mkdir()
    (tmp_path / "b.txt").write_text("iki", encoding="utf-8")
    (tmp_path / "a.txt").write_text("bir", encoding="utf-8")
    (tmp_path / "sub folder" / "ə[1].txt").write_text("üç", encoding="utf-8")
    (tmp_path / "şəkil.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("dörd", encoding="utf-8")
    assert read(tmp_path) == ["bir", "iki", "üç"]
    assert read(tmp_path / "*.txt") == ["bir", "iki"]
    assert read(tmp_path / "sub folder" / "ə[1].txt") == ["üç"]
    assert read([str(tmp_path / "b.txt"), str(tmp_path / "a.txt")]) == ["iki", "bir"]


def test_broken_utf8_is_reported_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"bir\n\niki \xff \xfe\n" + b"\n\xff\n" * 8)
    counts: Counter[str] = Counter()
    found = [d.text for d in documents(DataConfig(path=str(path)), counts)]
    assert found == ["bir", "iki \ufffd \ufffd", "\ufffd"]
    assert counts["bad_utf8_lines"] == 9
    assert "a.txt, line 3, byte 4" in caplog.text
    assert "9 places in total" in caplog.text
    with pytest.raises(ValueError, match=r"a\.txt, line 3, byte 4.*on_bad_utf8=replace"):
        read(path, on_bad_utf8="refuse")


def test_broken_utf8_in_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nbir\n\xffiki\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "bir"}\n{"text": "\xffiki"}\n')
    table = pa.table({"text": pa.array([b"bir", b"\xffiki"], pa.binary()).view(pa.string())})
    parquet.write_table(table, tmp_path / "a.parquet")
    for name, place in (("a.csv", "line 3"), ("a.jsonl", "line 2"), ("a.parquet", "row 2")):
        assert read(tmp_path / name) == ["bir", "\ufffdiki"]
        with pytest.raises(ValueError, match=f"{name}, {place}, byte"):
            read(tmp_path / name, on_bad_utf8="refuse")


def test_urls_of_other_file_systems(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(
        "/hub/20231101.az/train-00000-of-00002.parquet", parquet_bytes(ROWS[:2], row_group_size=1)
    )
    memory.pipe("/hub/20231101.az/train-00001-of-00002.parquet", parquet_bytes(ROWS[2:]))
    memory.pipe("/hub/README.md", b"# card")
    for url in ("memory://hub/20231101.az/*.parquet", "memory://hub", "memory://hub/20231101.az"):
        assert read(url) == TEXTS
    assert read("memory://hub/20231101.az/train-00001-of-00002.parquet") == TEXTS[2:]
    (tmp_path / "a.txt").write_text("bir", encoding="utf-8")
    assert read(f"file://{tmp_path.as_posix()}/a.txt") == ["bir"]
    memory.rm("/hub", recursive=True)


def cut_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


HUB = "hf://datasets/wikimedia/wikipedia@b04c8d1ceb2f5cd4588862100d08de323dccfbaa/20231101.az"


@pytest.mark.parametrize("path", [f"{HUB}/*.parquet", f"{HUB}/train-00000-of-00001.parquet", HUB])
def test_an_unreachable_hub_gives_one_message(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    cut_the_network(monkeypatch)
    with pytest.raises(
        ValueError, match=r"data\.path=hf://.*: could not be reached .*data=text data\.path=FILE"
    ):
        read(path)


def test_the_hub_in_offline_mode_gives_one_message() -> None:
    code = (
        "from azllm_lightning.config.data import DataConfig\n"
        "from azllm_lightning.data.corpus import documents\n"
        f"try: list(documents(DataConfig(path={HUB!r})))\nexcept ValueError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "could not be reached" in done.stdout
    assert "data.path=FILE_OR_FOLDER" in done.stdout


ERRORS = {
    "missing file": ({}, "nowhere.txt", r"data\.path=.*nowhere\.txt: no such file"),
    "missing glob": ({}, "*.txt", r"data\.path=.*\*\.txt: no file matches"),
    "empty path": ({}, None, r"data\.path=: empty path"),
    "empty file": ({"a.txt": b""}, "a.txt", r"a\.txt: no text in 1 file$"),
    "blank file": ({"a.txt": b" \n\n"}, "a.txt", r"a\.txt: no text in 1 file$"),
    "empty csv": ({"a.csv": b""}, "a.csv", r"a\.csv: no text in 1 file$"),
    "nothing readable": (
        {"a.docx": b"PK", "b.png": b""},
        "",
        r": no file of a supported type; supported are \.txt .*\.docx 1 \(a\.docx\)",
    ),
    "empty folder": ({}, "", r"data\.path=.*: the folder is empty"),
    "unsupported type": (
        {"a.mp3": b"ID3"},
        "a.mp3",
        r"a\.mp3: unsupported type; supported are \.txt ",
    ),
    "missing field": (
        {"a.jsonl": b'{"id": 1, "body": "x"}\n'},
        "a.jsonl",
        r"a\.jsonl: no field 'text'.*id, body",
    ),
    "missing column": (
        {"a.csv": b"id,body\n1,x\n"},
        "a.csv",
        r"a\.csv: no field 'text'.*id, body.*text_field",
    ),
    "missing parquet": (
        {"a.parquet": parquet_bytes([{"body": "x"}])},
        "a.parquet",
        r"no field 'text'.*are body",
    ),
    "broken json": (
        {"a.jsonl": b'{"text": "x"}\n{"text" "y"}\n'},
        "a.jsonl",
        r"a\.jsonl:2: expected one JSON object per line \(",
    ),
    "text is a number": ({"a.jsonl": b'{"text": 5}'}, "a.jsonl", r"a\.jsonl:1: 5 is not text$"),
    "short csv row": (
        {"a.csv": b"id,text\n1,x\n2\n"},
        "a.csv",
        r"a\.csv:3: 1 cell, but the header has 2",
    ),
    "truncated gzip": (
        {"a.txt.gz": gzip.compress(bytes(range(256)) * 99)[:-20]},
        "a.txt.gz",
        r"a\.txt\.gz: damaged",
    ),
    "truncated zstd": ({"a.txt.zst": zstd(b"salam" * 99)[:-9]}, "a.txt.zst", "zst: damaged"),
    "not parquet": ({"a.parquet": b"plain text, no table"}, "a.parquet", r"a\.parquet: damaged"),
    "truncated parquet": (
        {"a.parquet": parquet_bytes(ROWS)[:-30]},
        "a.parquet",
        r"a\.parquet: damaged",
    ),
    "unknown protocol": ({}, "gopher://x/y.txt", r"data\.path=gopher://x/y\.txt: cannot be opened"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_place_and_the_remedy(tmp_path: Path, case: str) -> None:
    files, name, message = ERRORS[case]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    path = "" if name is None else name if "://" in name else str(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_missing_source_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(
        ValueError,
        match=r"no field 'origin'; the fields are id, text, site\. Set data\.source_field to one",
    ):
        read(tmp_path, source_field="origin")


WRITERS = {
    "jsonl": jsonl,
    "json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode("utf-8"),
    "csv": lambda rows: (
        "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    ).encode("utf-8"),
    "parquet": parquet_bytes,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("field", ["metn", "mətn", "tam mətn"])
def test_the_longest_field_is_proposed_ready_to_copy(tmp_path: Path, kind: str, field: str) -> None:
    rows = [{"id": n, "menbe": "qəzet", field: "uzun bir cümlə " * n} for n in range(1, 9)]
    (tmp_path / f"a.{kind}").write_bytes(WRITERS[kind](rows))
    with pytest.raises(ValueError, match="no field 'text'") as missing:
        read(tmp_path / f"a.{kind}")
    (setting,) = shlex.split(str(missing.value).partition(" Set ")[2])
    assert setting == f"data.text_field={field}"
    assert len(read(tmp_path / f"a.{kind}", text_field=field)) == 8


TABLE = "id,başlıq\n1,uzun bir başlıq\n".encode()


@pytest.mark.parametrize(
    ("files", "unrelated", "proposed"),
    [
        ({"poeziya.jsonl": jsonl(ROWS)}, "index.csv", "*.jsonl"),
        ({"a.txt": b"Bir.", "b.txt": "İki.".encode()}, "index.csv", "*.txt"),
        ({"alt/b.csv": b"text\nbir\n", "a.csv": b"text\niki\n"}, "x.tsv", "**/*.csv"),
        ({"İlk/İ.jsonl.gz": gzip.compress(jsonl(ROWS))}, "index.csv", "**/*.jsonl.gz"),
        ({"mətn.csv": b"text\nbir\n"}, "index.csv", "mətn.csv"),
        ({"z.parquet": parquet_bytes(ROWS), "b.json": b'{"a": "b"}'}, "a.jsonl", "*.parquet"),
    ],
)
def test_a_table_that_is_no_text_next_to_text_is_answered_with_a_path_that_works(
    tmp_path: Path, files: dict[str, bytes], unrelated: str, proposed: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    is_json = unrelated.endswith("l")
    (tmp_path / unrelated).write_bytes(b'{"id": 1, "x": "y"}\n' if is_json else TABLE)
    with pytest.raises(ValueError, match=f"{unrelated}: no text in the field 'text', but") as error:
        read(tmp_path)
    (setting,) = shlex.split(str(error.value).partition(" read: ")[2])
    assert setting == f"data.path={(tmp_path / proposed).as_posix()}"
    assert read(setting.partition("=")[2])


def test_a_proposed_path_has_all_kinds_of_files_with_text(tmp_path: Path) -> None:
    """Not only one of them: the others would be left out without a word."""
    (tmp_path / "a.txt").write_text("Bir.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "c, d.csv").write_bytes(b"text\niki\n")
    (tmp_path / "index.csv").write_bytes(TABLE)
    with pytest.raises(ValueError, match=r"index.csv: no text in the field 'text', but") as error:
        read(tmp_path)
    (setting,) = shlex.split(str(error.value).partition(" read: ")[2])
    place = tmp_path.as_posix()
    assert setting == f"data.path=[{place}/*.txt,{place}/*.jsonl,'{place}/c, d.csv']"
    config = compose(["data=text", setting, "data.dir=prepared"]).data
    assert {document.source for document in documents(config)} == {"a.txt", "b.jsonl", "c, d.csv"}


def test_without_text_elsewhere_in_the_folder_the_field_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TABLE)
    (tmp_path / "b.csv").write_bytes(TABLE)
    with pytest.raises(ValueError, match=r"a\.csv: no field 'text'.*data\.text_field=başlıq"):
        read(tmp_path)


def test_the_proposed_field_may_be_nested(tmp_path: Path) -> None:
    rows = [{"id": "a", "doc": {"lang": "az", "parts": [{"body": "uzun mətn"}]}}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    with pytest.raises(ValueError, match=r"Set data\.text_field=doc\.parts\.body$"):
        read(tmp_path / "a.jsonl")


def test_without_any_text_no_field_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"id": 1, "score": 2}]))
    with pytest.raises(ValueError, match=r"Set data\.text_field to one of them$"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("asked", "meant"), [("mənbeyi", "menbe"), ("yer", "menbe")])
def test_the_source_field_that_was_meant_is_proposed(
    tmp_path: Path, asked: str, meant: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "bir", "menbe": "x", "id": 1}]))
    with pytest.raises(ValueError, match=f"Set data.source_field={meant}$"):
        read(tmp_path / "a.jsonl", source_field=asked)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("written", "asked"), [("metn", "mətn"), ("MƏTN", "metn"), ("şərh", "serh"), ("qısa", "qisa")]
)
def test_names_with_and_without_diacritics_are_the_same(
    tmp_path: Path, kind: str, written: str, asked: str
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(WRITERS[kind]([{written: "bir", "id": 1}, {written: "iki", "id": 2}]))
    assert read(path, text_field=asked) == ["bir", "iki"]


def test_of_names_that_look_alike_the_most_similar_counts() -> None:
    assert matching(["metn", "Mətn"], "mətn") == "Mətn"
    assert matching(["metn", "Mətn"], "Metn") == "metn"
    assert matching(["Mətn", "metn"], "METN") == "metn"
    assert matching(["meyn"], "mətn") is None


def test_one_empty_file_among_others_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"bir")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == ["bir"]
    assert "a.txt contains no text" in caplog.text


def test_errors_are_in_the_chosen_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZLLM_LANG", "az")
    with pytest.raises(ValueError, match=r"^data\.path=yoxdur\.txt: .* belə fayl yoxdur$"):
        read("yoxdur.txt")
