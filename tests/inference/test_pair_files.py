from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from azllm_lightning.formats.markdown import markdown_table
from azllm_lightning.inference.pair_files import SentencePair, read_pairs
from azllm_lightning.inference.tables import table

RIGHT = "Mən gəldim."
WRONG = "Mən gəldin."


def write_jsonl(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return str(path)


def test_columns_of_other_lists(tmp_path: Path) -> None:
    yoxla = {"sentence_a": WRONG, "sentence_b": RIGHT, "label": "B", "phenomenon": "uzlaşma"}
    turkish = {"sentence_a": RIGHT, "sentence_b": WRONG, "label": "A", "interference_type": "söz"}
    blimp = {"sentence_good": RIGHT, "sentence_bad": WRONG, "UID": "agreement"}
    for row, group in ((yoxla, "uzlaşma"), (turkish, "söz"), (blimp, "agreement")):
        path = write_jsonl(tmp_path / "cütlər.jsonl", row)
        assert read_pairs(path) == [SentencePair(group, RIGHT, WRONG)]
    path = write_jsonl(tmp_path / "cütlər.jsonl", {"good": RIGHT, "bad": WRONG})
    assert read_pairs(path) == [SentencePair("cütlər", RIGHT, WRONG)]


@pytest.mark.parametrize("blank", [None, "", " "])
def test_a_pair_without_a_phenomenon_is_of_its_file(tmp_path: Path, blank: str | None) -> None:
    rows = [{"good": RIGHT, "bad": WRONG, "phenomenon": name} for name in (blank, "uzlaşma")]
    path = write_jsonl(tmp_path / "cütlər.jsonl", *rows)
    assert [pair.group for pair in read_pairs(path)] == ["cütlər", "uzlaşma"]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\x9b2Jb", "a\u2028b", "a\r\nb", "a|b"])
def test_a_name_stays_in_its_cell(name: str) -> None:
    for text in (table(["x", "y"], [[name, "1"]]), markdown_table(["x", "y"], [[name, "1"]])):
        last = text.splitlines()[-1]
        assert last.isprintable()
        assert len(text.splitlines()) == 2 + text.startswith("|")
        assert len(re.findall(r"(?<!\\)\|", last)) == (3 if text.startswith("|") else "|" in name)


def test_a_table_with_the_columns_of_multiblimp(tmp_path: Path) -> None:
    text = f"\tsen\twrong_sen\tverb\tswap_head\n0\t{RIGHT}\t{WRONG}\tgəldim\tgəldin\n"
    path = tmp_path / "svPa.tsv"
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert read_pairs(str(path)) == [SentencePair("svPa", RIGHT, WRONG)]


def test_tables_are_read_as_those_of_training_text(tmp_path: Path) -> None:
    pair = SentencePair("a", RIGHT, WRONG)
    open_quote = SentencePair("a", '"Gəl, dedi', "Gəl dedim")
    for name, text, pairs in (
        # an open quote drops no rows
        (
            "a.tsv",
            f'right\twrong\n"Gəl, dedi\tGəl dedim\n{RIGHT}\t{WRONG}\n',
            [open_quote, pair],
        ),
        # as Excel writes it where numbers have a comma
        ("a.csv", f"right;wrong\r\n{RIGHT};{WRONG}\r\n\r\n", [pair]),
        (
            "a.csv",
            f'id;wrong;right\n1;{WRONG};"""Gəl; dedi"\n',
            [SentencePair("a", '"Gəl; dedi', WRONG)],
        ),
        # empty cells beyond the header, blank lines and the line ends of old Macs
        ("a.csv", f"right,wrong\r{RIGHT},{WRONG},,\r\r \r", [pair]),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert read_pairs(str(tmp_path / name)) == pairs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"right,wrong\n{RIGHT},{WRONG}\nGəl, dedi,Gəl dedim\n", r"a\.csv:3: 3 cells, but"),
        (f"right,wrong,n\n{RIGHT},{WRONG}\n", r"a\.csv:2: 2 cells, but the header has 3"),
        (f'right,wrong\n"Gəl dedi,Gəl dedim\n{RIGHT},{WRONG}\n', r"a\.csv:2: not valid CSV"),
        # the second quote ends the cell that the first begins
        (f'right,wrong\n"Gəl,Get\n{RIGHT},{WRONG}\nAl",Ver\n', r"a\.csv: pair 1 has a line break"),
    ],
)
def test_tables_that_may_have_lost_pairs_are_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        read_pairs(str(tmp_path / "a.csv"))


def test_parquet_as_on_the_hub(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"sentence_a": RIGHT, "sentence_b": WRONG, "label": "a ", "phenomenon": "x"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    assert read_pairs(str(tmp_path)) == [SentencePair("x", RIGHT, WRONG)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_is_read_as_its_objects(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"good": RIGHT, "bad": WRONG}, {"good": "Gəl.", "bad": "Gel."}]
    (tmp_path / name).write_text(f"\n{json.dumps(rows, indent=indent)}\n", encoding="utf-8")
    pairs = [SentencePair("a", RIGHT, WRONG), SentencePair("a", "Gəl.", "Gel.")]
    assert read_pairs(str(tmp_path / name)) == pairs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", f"right\twrong\r\n{RIGHT}\t{WRONG}\r\n"),
        ("a.csv", f"right;wrong\r\r\n{RIGHT};{WRONG}\r\r\n"),
        ("a.json", json.dumps({"right": RIGHT, "wrong": WRONG}, ensure_ascii=False)),
    ],
)
def test_encodings_are_those_of_training_text(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_pairs(str(tmp_path / name)) == [SentencePair("a", RIGHT, WRONG)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a"])
def test_a_file_that_does_not_say_how_it_is_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"right\twrong\n{RIGHT}\t{WRONG}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not read from \.txt; name it \.tsv or \.csv"):
        read_pairs(str(tmp_path / name))


def test_what_is_no_list_of_pairs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row, complaint in (
        ({"mətn": RIGHT}, "a.jsonl: no two columns of sentences among mətn; known are right/wrong"),
        ({"good": RIGHT, "bad": RIGHT}, "pair 1 has no two different sentences"),
        ({"good": RIGHT, "bad": None}, "pair 1 has no two different sentences"),
        (
            {"sentence_a": RIGHT, "sentence_b": WRONG, "label": 0},
            "the label 0, which is not A or B",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            read_pairs(write_jsonl(path, row))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: not a JSON object"):
        read_pairs(str(path))
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"pairs=.*a\.jsonl: no pairs"):
        read_pairs(str(path))
    path.write_text('[{"good": "Bir.",\n"bad"}]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not a JSON object"):
        read_pairs(str(path))
    for broken in (b"\xff\xfe\x00", b'{"good": "\xff"}'):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.jsonl: broken, .*save it as UTF-8$"):
            read_pairs(str(path))
    with pytest.raises(ValueError, match=r"pairs=.*yoxdur"):
        read_pairs(str(tmp_path / "yoxdur.tsv"))
