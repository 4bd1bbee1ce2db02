"""CSV and TSV as spreadsheets, pandas and databases write them: whole, or an error with a line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
from sample_texts import read

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents

HARD = [
    "Salam, dünya; necəsən?",
    'O dedi: "Gəl, gedək" və getdi.',
    "Birinci sətir,\nikinci; sətir\nüçüncü",
    "tab\tvə | xətt",
    'sonda dırnaq"',
    '"tam dırnaqda"',
    "əks xətt \\ burada, \\n deyil",
    "ə" * 200_000,
    "sep=;",
]


def written(rows: list[list[str]], **options: object) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **options).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


WRITERS: dict[str, dict[str, object]] = {
    "excel": {},
    "excel in a comma country": {"delimiter": ";"},
    "linux": {"lineterminator": "\n"},
    "old mac": {"lineterminator": "\r"},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "pipes": {"delimiter": "|"},
    "tabs": {"delimiter": "\t"},
    "backslashes": {"doublequote": False, "escapechar": "\\"},
    "mysql": {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL},
}


@pytest.mark.parametrize("header", [["text"], ["id", "text"], ["text", "n"], ["a", "text", "b"]])
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_a_table_its_texts_come_whole(
    tmp_path: Path, writer: str, header: list[str]
) -> None:
    column = header.index("text")
    rows = [["x"] * column + [text] + ["y"] * (len(header) - column - 1) for text in HARD]
    content = written([header, *rows], **WRITERS[writer])
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / "a.csv", max_document_bytes=10**6) == HARD


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", "sep=;\nid;text\n1;bir, iki\n", ["bir, iki"]),
        ("a.csv", '"sep=|"\r\nid|text\r\n1|bir; iki\r\n', ["bir; iki"]),
        ("a.csv", "\ufeff\n \r\nid,text\n1,bir\n", ["bir"]),
        ("a.csv", "\ufeffid,text\n1,bir\n\ufeffid,text\n1,iki\n", ["bir", "iki"]),
        ("a.csv", '\ufeff"text"\nbir\n\ufeff"text"\niki\n', ["bir", "iki"]),
        ("a.csv", "id,text\n1,bir\nid,text\n2,text\n", ["bir", "text"]),
        ("a.tsv", "id\ttext\n1\tbir\n\ufeffid\ttext\n\ufeff1\tiki\n", ["bir", "iki"]),
        ("a.csv", "ID,Text\n1,bir\n", ["bir"]),
        ("a.csv", "id, TEXT \n1,bir\n", ["bir"]),
        ("a.csv", "text\nSalam, necəsən?\n\nYaxşı, sağ ol\n", ["Salam, necəsən?", "Yaxşı, sağ ol"]),
        ("a.csv", "id,text,,\n1,bir,,\n2,iki,,,,\n", ["bir", "iki"]),
        ("a.csv", "id,te\0xt\n1,b\0ir\n", ["bir"]),
        ("a.csv", "id,text\n1,\n2,iki\n", ["iki"]),
        ("a.csv", "id\ttext\n1\tbir\n", ["bir"]),
        ("a.csv", '"a;b;c",text\n1,bir\n', ["bir"]),
        ("a.csv", "id,text\r\n1,bir\n2,iki\r\n", ["bir", "iki"]),
        (
            "a.tsv",
            'id\ttext\n1\t"bir" dedi, getdi\n2\t15" ekran\n',
            ['"bir" dedi, getdi', '15" ekran'],
        ),
        ("a.tsv", 'id\ttext\n1\t"bir\tiki"\n', ["bir\tiki"]),
        ("a.tsv", "text\nbir, iki; üç\n", ["bir, iki; üç"]),
        ("a.csv", "id\ttext\n1\t\\N\n2\tiki\n", ["iki"]),
        ("a.csv", "id,text\n1,bir\n\x1a", ["bir"]),
        ("a.jsonl", '{"text": "bir"}\n\0\0\0', ["bir"]),
    ],
)
def test_odd_but_clear_tables(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / name) == texts


def spoken(first: int, last: int, count: int) -> list[str]:
    """Texts of which the `first` begins with a quote, and the `last` ends with one."""
    texts = [f"mətn {i}" for i in range(count)]
    texts[first] = f'"{texts[first]}'
    texts[last] += '"'
    return texts


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize(
    "texts",
    [
        spoken(10, 60, 100),
        spoken(10, 60, 3000),
        spoken(1500, 1550, 3000),
        spoken(10, 2990, 3000),
        spoken(1500, 2990, 3000),
        spoken(998, 999, 1200),
        [*spoken(2000, 1, 3000), '"Gəl" dedi', 'getdi "o"', '"son'],
        [*spoken(998, 0, 999), '"Gəl" dedi', "son"],
    ],
)
def test_quotes_of_texts_between_tabs_join_no_rows(
    tmp_path: Path, name: str, texts: list[str]
) -> None:
    rows = "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))
    (tmp_path / name).write_text(f"id\ttext\n{rows}", encoding="utf-8")
    assert read(tmp_path / name) == texts


@pytest.mark.parametrize("before", [0, 5, 997, 998, 999, 2500])
def test_texts_of_several_lines_between_tabs_stay_whole(tmp_path: Path, before: int) -> None:
    texts = [f"mətn {i}" for i in range(before)]
    texts += ["bir\niki", "bir\n\niki\tüç", 'O, "gəl"\ndedi', "s\n" * 2000 + "son", "tam"]
    rows = [[str(i), text] for i, text in enumerate(texts)]
    content = written([["id", "text"], *rows], delimiter="\t", lineterminator="\n")
    (tmp_path / "a.tsv").write_text(content, encoding="utf-8")
    assert read(tmp_path / "a.tsv") == texts


def test_a_broken_row_between_tabs_is_an_error_with_its_line(tmp_path: Path) -> None:
    rows = "".join(f"{i}\t{text}\n" for i, text in enumerate(spoken(1500, 1550, 3000)))
    (tmp_path / "a.tsv").write_text(f'id\ttext\n{rows}1\t"açıq\nbir\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.tsv:3002: not valid CSV .*quote"):
        read(tmp_path / "a.tsv")


def escaped(text: str, names: str) -> str:
    """`text` as databases write it, with a backslash before each of the signs that have `names`."""
    signs = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "b": "\b"}
    text = text.replace("\\", "\\\\")
    for name in names:
        text = text.replace(signs[name], f"\\{name}")
    return text


DATABASES = {"postgresql": "bntr", "mysql": "nt", "clickhouse": "bntr'"}
TEXTS = [*HARD[:-2], 'yol C:\\yeni\\tr, \\alpha və \\n, "sitat"\nO\'dur', '"tam"\t15" ekran']


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("database", DATABASES)
def test_escapes_of_a_database_are_undone(tmp_path: Path, database: str, name: str) -> None:
    lines = [f"{i}\t{escaped(text, DATABASES[database])}\t\\N\n" for i, text in enumerate(TEXTS)]
    content = "".join(["id\ttext\tdate\n", *lines, "9\t\\N\t\\N\n"])
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / name) == TEXTS


def test_escapes_of_a_database_are_undone_in_a_table_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\nbir,\\niki\n\\N\n"üç" C:\\\\n\n', encoding="utf-8")
    assert read(tmp_path / "a.tsv") == ["bir,\niki", '"üç" C:\\n']


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_escapes_next_to_escaped_quotes_are_undone(tmp_path: Path, delimiter: str) -> None:
    rows = [
        delimiter.join(["1", f'"{escaped(text, DATABASES["mysql"] + chr(34))}"']) for text in TEXTS
    ]
    content = "\n".join([f"id{delimiter}text", *rows, ""])
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / "a.csv") == TEXTS


def test_line_breaks_after_a_backslash_are_those_of_the_text(tmp_path: Path) -> None:
    content = 'id,text\n1,"Bir,\\\niki \\"üç\\",\\\\n\\tdörd"\n'  # as MySQL's INTO OUTFILE writes
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / "a.csv") == ['Bir,\niki "üç",\\n\tdörd']


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        # as pandas writes missing texts, if it is told to
        ("a.tsv", "1\tC:\\yeni\\tr\n2\t\\N\n3\t\\alpha\n", ["C:\\yeni\\tr", "\\alpha"]),
        ("a.tsv", '1\tC:\\yeni\n2\t\\N\n3\t"""a"" b"\n', ["C:\\yeni", '"a" b']),
        ("a.tsv", '1\t"C:\\yeni"\n2\t\\N\n3\t"b"\n', ["C:\\yeni", "b"]),
        ("a.tsv", "1\tC:\\yeni\\tr\n", ["C:\\yeni\\tr"]),
        ("a.csv", "1,C:\\yeni\\tr\n2,\\N\n", ["C:\\yeni\\tr"]),
        # Spark, which escapes nothing but quotes
        ("a.csv", '1,"C:\\yeni \\"b\\" \\alpha"\n', ['C:\\yeni "b" \\alpha']),
        ("a.csv", '1,"C:\\yeni \\"b\\"\niki"\n', ['C:\\yeni "b"\niki']),
    ],
)
def test_backslashes_that_escape_nothing_stay(
    tmp_path: Path, name: str, content: str, texts: list[str]
) -> None:
    header = "id\ttext\n" if name == "a.tsv" else "id,text\n"
    (tmp_path / name).write_text(header + content, encoding="utf-8", newline="")
    assert read(tmp_path / name) == texts


def test_a_header_in_decomposed_letters_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,mu\u0308ndericat\n1,bir\n", encoding="utf-8")
    assert read(tmp_path / "a.csv", text_field="M\u00fcndericat") == ["bir"]


ROWS = "".join(f"{i},sətir {i}\n" for i in range(2, 3000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,Salam, dünya\n", r"a\.csv:2: 3 cells, but the header has 2; .*quotes"),
        (f"id,text\n{ROWS}1,a,b,c\n", r"a\.csv:3000: 4 cells, but"),
        ("id,text,x\n1,bir\niki,3\n", r"a\.csv:2: 2 cells, but the header has 3"),
        (f'id,text\n1,"açıq\n{ROWS}', r"a\.csv:2: not valid CSV .*quote"),
        (f'id,text\n{ROWS}1,"açıq\n{ROWS}', r"a\.csv:3000: not valid CSV .*quote"),
        (f'id,text\n{ROWS}1,"açıq\n{ROWS}5,"son"\n', r"a\.csv:3000: not valid CSV .*quote"),
        (
            f'id,text,x\n{ROWS.replace(chr(10), ",5" + chr(10))}1,"bir \\"iki\\" üç",5\n',
            r"a\.csv:3000: ",
        ),
        ('\nsep=,\nid,text\n1,"bir" iki\n', r"a\.csv:4: not valid CSV"),
        (
            "id,text\n1,bir\riki\n",
            r"a\.csv:2: a carriage return in a cell without quotes; put quotes around[^:]*$",
        ),
        ('text\n"Gəl" dedi o.\n', r"a\.csv:2: not valid CSV: in the row that begins here"),
        ("id,text,text\n1,bir,iki\n", r"a\.csv: 2 columns are called 'text'"),
        ("id,Mətn\n1,bir\n", r"a\.csv: no field 'text'; the fields are id, Mətn"),
    ],
)
def test_what_may_have_lost_text_is_an_error_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", "Siyahı\n\nid;text\n0;Salam\n", 3),
        ("a.csv", "\nMəqalələr cədvəli;;\nid;title;Text\n1;a;Salam\n", 3),
        ("a.csv", "Siyahı, 2024\nid;text\n0;Salam\n", 2),
        ("a.csv", "sep=,\nSiyahı,\nid,text\n0,Salam\n", 3),
        ("a.tsv", "Siyahı\nid\ttext\n0\tSalam\n", 2),
    ],
)
def test_a_header_below_a_title_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}: .* in line {line}; delete the lines above it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("kind;body\ntext;Salam\nx;Necəsən\n", r"Set data\.text_field=body$"),
        ("Siyahı;;\n1;a;Salam, necəsən\n", r"Set data\.text_field to one of them$"),
    ],
)
def test_another_row_is_no_header_and_an_empty_name_no_field(
    tmp_path: Path, content: str, advice: str
) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=advice):
        read(tmp_path)


def test_an_open_quote_in_a_large_file_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.delimited.MAX_CELL_CHARS", 5000)
    (tmp_path / "a.csv").write_text(f'id,text\n1,"açıq\n{ROWS}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv:2: not valid CSV \(field larger"):
        read(tmp_path / "a.csv")


def test_sources_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,Site\nbir,x\niki,\n", encoding="utf-8")
    config = DataConfig(path=str(tmp_path), source_field="site")
    assert [d.source for d in documents(config, Counter())] == ["x", "a.csv"]


@pytest.mark.parametrize("content", ["id,text\n", "sep=;\n"])
def test_a_table_without_rows_has_no_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no text in 1 file"):
        read(tmp_path / "a.csv")
