"""JSON as it is found: lines, arrays, nested fields, missing texts, values of any length."""

from __future__ import annotations

import json
import logging
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from sample_texts import jsonl, parquet_bytes, read

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import describe_cleaning, documents
from azllm_lightning.data.files import find_files
from azllm_lightning.data.json_scanner import JsonScanner
from azllm_lightning.data.records import read_records
from azllm_lightning.data.rows import Record, Rows

TWO = [{"text": "bir"}, {"text": "iki ə"}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(TWO),
        json.dumps(TWO, indent=2, ensure_ascii=False),
        json.dumps(["bir", "iki ə"]),
        "\n\n" + json.dumps(TWO, indent=1) + "\n",
        "\n".join(json.dumps(row, indent=2) for row in TWO),
        "\n".join(json.dumps([row]) for row in TWO),
        " ".join(json.dumps(row, indent=2) for row in TWO),
        "\r\n".join(map(json.dumps, TWO)),
        "\r".join(map(json.dumps, TWO)),
        "\n".join(map(json.dumps, ["bir", "iki ə"])),
        "\ufeff" + json.dumps(TWO[0]) + "\n \n" + json.dumps(TWO[1]),
        "\n\ufeff".join(map(json.dumps, TWO)),
        "\n\ufeff".join(json.dumps(row, indent=2) for row in TWO),
        "\ufeff".join(json.dumps([row]) for row in TWO),
        '[\n{"text": "bir"},\n{"text": "iki \\u0259"},\n]',
        json.dumps({"Text": "bir"}) + "\n" + json.dumps({"TEXT": "iki ə"}),
    ],
)
def test_ways_to_write_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / name) == ["bir", "iki ə"]


@pytest.mark.parametrize(
    ("field", "row"),
    [
        ("a.b", {"a": {"b": "bir"}}),
        ("a.b", {"a.b": "bir"}),
        ("a.b.c", {"a.b": {"c": "bir"}}),
        ("data.text", {"data": [{"text": "bir"}, {"id": 3}]}),
        ("A.b", {"a": {"B": "bir"}}),
    ],
)
def test_nested_fields(tmp_path: Path, field: str, row: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))
    assert read(tmp_path, text_field=field) == ["bir"]


def test_nested_columns(tmp_path: Path) -> None:
    table = pa.table({"content": [{"text": "bir", "n": {"url": "x"}}, None, {"text": None}]})
    parquet.write_table(table, tmp_path / "a.parquet")
    config = DataConfig(path=str(tmp_path), text_field="Content.Text", source_field="content.n.url")
    assert [(d.text, d.source) for d in documents(config)] == [("bir", "x")]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    column = pa.array(["bir"])
    table = pa.Table.from_arrays([column, column], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: 2 columns are called 'text'"):
        read(tmp_path)


def test_rows_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        '{"text": "bir"}',
        '{"id": 2}',
        '{"text": null}',
        '{"text": NaN}',
        '{"text": 5}',
        '{"text": [1]}',
        "[]",
        "7",
        '{"text": "iki"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    counts: Counter[str] = Counter()
    assert [d.text for d in documents(DataConfig(path=str(tmp_path)), counts)] == ["bir", "iki"]
    assert counts["rows_without_text"] == 3
    assert counts["rows_not_text"] == 4
    assert "3 rows without text" in " ".join(describe_cleaning(counts))
    assert "a.jsonl:5: 5 is not text; this row is skipped" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_of_strings_is_one_text(tmp_path: Path, kind: str) -> None:
    rows = [{"text": ["abzas 1", "abzas 2"]}, {"text": []}, {"text": ["abzas 3"]}]
    write = {"jsonl": jsonl, "parquet": parquet_bytes}[kind]
    (tmp_path / f"a.{kind}").write_bytes(write(rows))
    counts: Counter[str] = Counter()
    found = [d.text for d in documents(DataConfig(path=str(tmp_path)), counts)]
    assert found == ["abzas 1\nabzas 2", "abzas 3"]
    assert counts["rows_without_text"] == 1


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ({"az": "Salam", "id": "1"}, r"set data\.text_field=text\.az$"),
        ([{"id": "1", "body": "Salam"}, {"body": "Sağ ol"}], r"set data\.text_field=text\.body$"),
        (["Bax: ", {"type": "link", "text": "https://a.az"}], "write each text as one string"),
        ([1, 2], "write each text as one string"),
    ],
)
def test_a_value_with_texts_inside_is_refused_with_the_way_out(
    tmp_path: Path, value: Any, way_out: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": value}]))
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .* is not text; .*{way_out}"):
        read(tmp_path)


def test_rows_in_a_row_get_no_way_out_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('1\n[{"text": "Salam"}]\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('[[{"text": "Salam"}]]\n', encoding="utf-8")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(ValueError, match=r"is not an object with the field 'text'$"):
            read(tmp_path / name)


def test_a_field_that_no_row_has_ends_a_large_file_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.rows.PATIENCE", 5)
    rows = [{"body": "x", f"f{i}": 1} for i in range(5)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows) + b"never read")
    with pytest.raises(ValueError, match=r"no field 'text'; the fields are body, f0, f1"):
        read(tmp_path)


NAMED = {f"Başlıq {i}": f"Mətn {i}" * (i + 1) for i in range(50)}
OBJECTS = {f"{i}": {"text": text, "id": i} for i, text in enumerate(NAMED.values())}


@pytest.mark.parametrize(
    ("value", "values"),
    [
        (NAMED, ".[]"),
        (OBJECTS, ".[]"),
        ({"version": "1", "data": OBJECTS}, '.["data"][]'),
        ({f"Dr. {i}": [{"s": {"text": "bir"}}] for i in range(12)}, ".[]"),
        pytest.param(  # read in parts
            {f"{i}": {"text": "bir" * 99} for i in range(40_000)}, ".[]", marks=pytest.mark.thorough
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_texts_with_keys_of_their_own_are_no_fields(
    tmp_path: Path, value: Any, values: str, indent: int | None
) -> None:
    content = json.dumps(value, ensure_ascii=False, indent=indent)
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="each text has a key of its own") as raised:
        read(tmp_path / "a.json")
    assert f"jq -c '{values}'" in str(raised.value)
    assert "data.text_field" not in str(raised.value)


def test_many_fields_of_text_are_fields(tmp_path: Path) -> None:
    rows = [{f"sahə{i}": "bir" * (1 + (i == 7)) for i in range(30)}] * 2
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    with pytest.raises(ValueError, match=r"Set 'data\.text_field=sahə7'"):
        read(tmp_path / "a.jsonl")


def test_a_row_without_source_belongs_to_its_file(tmp_path: Path) -> None:
    rows = [{"text": "bir", "site": "x"}, {"text": "iki"}, {"text": "üç", "site": None}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    config = DataConfig(path=str(tmp_path), source_field="site")
    assert [d.source for d in documents(config)] == ["x", "a.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_file_in_which_no_text_has_a_source_is_an_error(tmp_path: Path, name: str) -> None:
    content = "text\nbir\n" if name == "a.csv" else '{"text": "bir"}'
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"text": "iki", "site": "x"}]))
    with pytest.raises(ValueError, match=rf"{name}: no field 'site'; .*Set data\.source_field to"):
        read(tmp_path, source_field="site")


WRAPPED = [
    (
        {"data": [{"text": "bir", "source": "kitab"}, {"text": "iki", "source": "qəzet"}]},
        ("data.text", "data.source"),
        [("bir", "kitab"), ("iki", "qəzet")],
    ),
    (
        {"data": [{"text": "bir"}, {"source": "x", "text": "iki"}, {"text": "üç"}]},
        ("data.text", "data.source"),
        [("bir", None), ("iki", "x"), ("üç", None)],
    ),
    (
        {"data": [{"text": "bir", "meta": {"source": "x"}}, {"text": "iki"}]},
        ("data.text", "data.meta.source"),
        [("bir", "x"), ("iki", None)],
    ),
    (
        {"source": "x", "pages": [{"text": "bir"}, {"text": "iki"}]},
        ("pages.text", "source"),
        [("bir", "x"), ("iki", "x")],
    ),
    (
        {"a": [{"b": [{"text": "bir"}], "source": "x"}, {"b": [{"text": "iki"}], "source": "y"}]},
        ("a.b.text", "a.source"),
        [("bir", "x"), ("iki", "y")],
    ),
    (
        {"data": [{"text": ["bir", None, "iki"], "source": "x"}, {"text": "üç"}]},
        ("data.text", "data.source"),
        [("bir\niki", "x"), ("üç", None)],
    ),
    (
        {"data": [{"text": ["bir", each, "iki"]} for each in ({"k": ["x"]}, ["x"], {})]},
        ("data.text", None),
        [],
    ),
    ({"Text": "bir", "text": "iki"}, ("text", None), [("iki", None)]),
    ({"a": [{"Text": "bir"}, {"text": "iki"}]}, ("a.text", None), [("bir", None), ("iki", None)]),
    ({"a": {"text": "bir"}, "a.text": "iki"}, ("a.text", None), [("iki", None)]),
]


def found_in_both_ways(value: Any, fields: tuple[str, str | None]) -> list[Any]:
    """The (text, source) of a value as a small one, and as one that has to be read in parts."""
    text_field, source_field = fields
    config = DataConfig(text_field=text_field, source_field=source_field)
    small = Rows("a.json", config, Counter()).from_json(value, "a.json:1")
    line = json.dumps(value)
    pieces = (line[at : at + 7] for at in range(0, len(line), 7))
    return [small, list(JsonScanner(pieces, text_field, source_field, 1000).texts())]


@pytest.mark.parametrize(("value", "fields", "expected"), WRAPPED)
def test_a_source_is_that_of_the_texts_next_to_it(
    value: Any, fields: tuple[str, str | None], expected: list[Record]
) -> None:
    assert found_in_both_ways(value, fields) == [expected, expected]


@pytest.mark.parametrize("count", [50, pytest.param(1500, marks=pytest.mark.slow)])
def test_values_of_any_size_have_the_same_texts_and_sources(count: int) -> None:
    rng = random.Random(0)
    keys = ["text", "Text", "source", "Source", "data", "DATA", "meta", "data.text", "data.source"]

    def value(depth: int) -> Any:
        if depth == 0 or rng.random() < 0.35:
            return rng.choice(["x", "y\n", None, "z"])
        if rng.random() < 0.3:
            return [value(depth - 1) for _ in range(rng.randint(0, 3))]
        return {key: value(depth - 1) for key in rng.sample(keys, rng.randint(1, 5))}

    for _ in range(count):
        row = {key: value(3) for key in rng.sample(keys, rng.randint(1, 5))}
        for text in ("text", "data.text", "data.meta.text"):
            for source in (None, "source", "data.source", "meta.source", "data.meta.source"):
                small, large = found_in_both_ways(row, (text, source))
                assert [each for each, _ in small] == [each for each, _ in large]
                if {s for _, s in small} <= {None, "x", "y\n", "z"}:  # no list, no object
                    assert small == large, (row, text, source)


DEEP = '{"m": %s, "text": "bir", "site": "x"}' % ("[" * 100_000 + "]" * 100_000)
LONG_NUMBER = '{"text": "bir", "n": %s, "site": "x"}' % ("7" * 5000)


@pytest.mark.parametrize("line", [DEEP, LONG_NUMBER])
def test_what_the_json_module_cannot_take(tmp_path: Path, line: str) -> None:
    for name, content in (
        ("a.jsonl", f'{{"text": "iki", "site": "y"}}\n{line}\n{{"text": "üç", "site": "z"}}'),
        ("b.json", f'[{{"text": "iki", "site": "y"}},\n{line},\n{{"text": "üç", "site": "z"}}]'),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        config = DataConfig(path=str(tmp_path / name), source_field="site")
        found = [(d.text, d.source) for d in documents(config)]
        assert found == [("iki", "y"), ("bir", "x"), ("üç", "z")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "bir"}\n{"text": "iki"', r"a\.json:2: expected one .*cut off"),
        ('{"text": "bir"}\n{"text": "ik', r"a\.json:2: expected one .*cut off"),
        ('{"text": "bir"}\n{"text": iki}', r"a\.json:2: expected one .*column 10"),
        ('[\n{"text": "bir"},\n{"text": "iki"', r"a\.json:3: not valid JSON \(it ends too early\)"),
        ('[\n{"text": "bir"}\n', r"a\.json:3: not valid JSON"),
        ('[\n{"text": "bir"},\n{"text": iki, "b": 5555555555}]', r"a\.json:3: not valid JSON"),
        ('{\n"text": "bir"\n', r"a\.json:1: not valid JSON \(it ends too early\)"),
        ('{"text": "bir"} {"text": "iki"}\n', r"a\.json:1: expected one .*Extra data"),
    ],
)
def test_broken_json_is_an_error_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.json")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of more than 100 bytes are long."""
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", 37)
    monkeypatch.setattr("azllm_lightning.data.decoder.HEAD_BYTES", 37)
    for module in ("decoder", "json_values"):
        monkeypatch.setattr(f"azllm_lightning.data.{module}.MAX_BLOCK_BYTES", 100)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("is_array", [False, True])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_long_values_are_read_in_parts(tmp_path: Path, is_array: bool, ascii_only: bool) -> None:
    texts = [
        "qısa",
        'Uzun mətn, "dırnaq" və \\ əks xətt.\n' * 20,
        "ə" * 500,
        "😀" * 200,
        '\\"' * 150,
        "son",
    ]
    rows = [
        {"n": [{"text": "yox"}, "text"], "text": text, "site": f"s{len(text)}"} for text in texts
    ]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    content = "[" + ",\n".join(lines) + "]" if is_array else "\n".join(lines)
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    config = DataConfig(
        path=str(tmp_path / "a.json"), source_field="site", max_document_bytes=10**5
    )
    whole: dict[str, str] = {}
    for document in documents(config):
        whole[document.source] = whole.get(document.source, "") + document.text
    unspaced = {f"s{len(text)}": "".join(text.split()) for text in texts}
    found = {source: "".join(text.split()) for source, text in whole.items()}
    # parts that repeat are duplicates, and are removed
    assert found.keys() == unspaced.keys()
    for source, text in found.items():
        assert set(text) == set(unspaced[source])
    assert found["s4"] == "qısa"
    assert found["s3"] == "son"


LONG = "söz " * 99 + "söz"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("field", "source", "row"),
    [
        ("text", "site", {"Text": LONG, " SITE ": "x"}),
        ("text", "a.b", {" text\t": LONG, "a.b": "x"}),
        ("a.b", "a.c", {"a.b": LONG, "A": {"C": "x"}}),
        ("a.b.c", "a.b.d", {"a.b": {"c": LONG, "d": "x"}}),
        ("text", "a.b.c", {"a": {"b": {"c": "x"}}, "text": LONG}),
        ("text", "site", {"Text": "yox", "text": LONG, "site": "x", "Site": "yox"}),
    ],
)
@pytest.mark.parametrize("is_long", [True, False])
def test_fields_of_long_rows_are_found_as_those_of_others(
    tmp_path: Path, field: str, source: str, row: dict[str, Any], is_long: bool
) -> None:
    content = jsonl([row]).decode().replace(LONG, LONG if is_long else "söz")
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    config = DataConfig(path=str(tmp_path), text_field=field, source_field=source)
    (file,) = find_files([str(tmp_path)], "data.path")
    found = list(read_records(file, config, Counter()))
    assert "".join(text for text, _ in found) == (LONG if is_long else "söz")
    assert {place for _, place in found} == {"x"}


def scan(text: str, path: str, part_chars: int, piece: int = 7) -> tuple[str, str]:
    """(text found, what follows) of a JSON value that comes in small pieces."""
    pieces = iter([text[i : i + piece] for i in range(0, len(text), piece)])
    scanner = JsonScanner(pieces, path, None, part_chars)
    found = "".join(part for part, _ in scanner.texts())
    return found, scanner.rest() + "".join(pieces)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("part_chars", [1, 13, 30, 1000])
def test_the_scanner_finds_exactly_the_text(part_chars: int, ascii_only: bool) -> None:
    text = 'ə "dırnaq" \\ {[,:]} 😀😀\n\t son' * 3 + "\\\\\\" + "😀" * 9
    row = {"a": [{"b": ["b", {"b": 1}], "c": text}, 5.5, None, True], "b": text, "c": "yox"}
    line = json.dumps(row, ensure_ascii=ascii_only)
    assert scan(line + "\nrest", "a.c", part_chars) == (text, "\nrest")
    assert scan(line, "b", part_chars) == (text, "")
    assert scan(line, "a.b.c", part_chars) == ("", "")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "line",
    [
        '{"text": "' + "söz " * 100,
        '{"text": "' + "söz " * 100 + '"]',
        '{"text": "' + "söz " * 100 + '"} {"text": "iki"}',
        '{"x": "' + "söz " * 100 + '\n"}',
        '{"text": "' + "söz " * 100 + '\\x"}',
    ],
)
def test_a_long_line_that_is_broken_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "bir"}}\n{line}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not valid JSON"):
        read(tmp_path)


def test_a_very_long_line_needs_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.decoder.CHUNK_BYTES", 1 << 14)
    for module in ("decoder", "json_values"):
        monkeypatch.setattr(f"azllm_lightning.data.{module}.MAX_BLOCK_BYTES", 1 << 16)
    text = "Salam dünya. " * 1_000_000
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text}, {"text": "son"}]))
    (file,) = find_files([str(tmp_path)], "data.path")
    size = 0
    tracemalloc.start()
    try:
        for part, _ in read_records(file, DataConfig(), Counter()):
            size += len(part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == len(text) + len("son")
    assert peak < size / 4


def test_json_that_is_no_text_is_skipped_in_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("bir", encoding="utf-8")
    (tmp_path / "labels.json").write_text('{\n  "classes": ["a"]\n}', encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert read(tmp_path) == ["bir"]
    assert "the fields are classes" in caplog.text
    assert "without text 1 (labels.json)" in caplog.text
    assert "metadata 1 (dataset_info.json)" in caplog.text
    with pytest.raises(ValueError, match="no field 'text'"):
        read(tmp_path / "labels.json")
