"""Minimal pairs in files of anyone: TSV, CSV, JSON or Parquet, on this machine or by URL."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.decoder import Block, Decoder
from azllm_lightning.data.delimited import read_rows
from azllm_lightning.data.files import TextFile, find_files
from azllm_lightning.data.rows import matching

RIGHT = ("right", "good", "correct", "acceptable", "sentence_good", "sen")
WRONG = ("wrong", "bad", "incorrect", "unacceptable", "sentence_bad", "wrong_sen")
EITHER = ("sentence_a", "sentence_b", "label")
"""The two sentences in any order, and which is right: A or B, as in YOXLA."""
GROUPS = ("phenomenon", "interference_type", "UID", "condition", "group")
"""The names of columns, in the order in which they are looked for: BLiMP has sentence_good and
sentence_bad, MultiBLiMP sen and wrong_sen."""
TABLES = (".csv", ".tsv")


class SentencePair(NamedTuple):
    """A right and a wrong sentence; `group` is what the report has a row for."""

    group: str
    right: str
    wrong: str


def read_pairs(path: str) -> list[SentencePair]:
    """The pairs of all files at `path`, in NFC; those without a group are of their file.

    Raises ValueError if there is no file, a row is incomplete or not clear, or no columns
    are known.
    """
    pairs = []
    try:
        files = find_files([path], "pairs")
    except ValueError as error:
        raise ValueError(
            tr(
                "{problem} (the lists of this package are pairs=true and pairs=turkish)",
                problem=error,
            )
        ) from None
    for file in files:
        with file.explained_errors():
            for number, row in enumerate(_rows(file), start=1):
                pairs.append(_pair(row, file, number))
    if not pairs:
        raise ValueError(tr("pairs={path}: no pairs", path=path))
    return pairs


def _rows(file: TextFile) -> Iterator[Mapping[str, Any]]:
    if file.format == ".parquet":
        from pyarrow import parquet

        with file.open() as stream:
            yield from parquet.ParquetFile(stream).read().to_pylist()
        return
    if file.format == ".txt":
        raise ValueError(
            tr(
                "{path}: pairs are not read from .txt; name it .tsv or .csv",
                path=file.address,
            )
        )
    text = _text(file)
    if file.format in TABLES:
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        known = [*RIGHT, *WRONG, *EITHER]
        table = read_rows(
            iter([Block(1, lines, False)]), file.address, file.format == ".tsv", known
        )
        names = next(table, [])
        for cells in table:
            yield dict(zip(names, cells, strict=True))
    else:
        yield from _json_rows(text, file.address)


def _text(file: TextFile) -> str:
    """The text of a file in any encoding that training text may have."""
    decoder = Decoder(file.address, None, True, Counter())
    with file.open_text() as stream:
        try:
            return "".join(block.text for block in decoder.blocks(stream))
        except ValueError:  # which names settings of training text
            raise ValueError(
                tr(
                    "{path}: broken, or in an encoding that is not certain; save it as UTF-8",
                    path=file.address,
                )
            ) from None


def _json_rows(text: str, address: str) -> Iterator[Mapping[str, Any]]:
    """The objects of JSON Lines, or of an array, over any number of lines."""
    parts = [text] if text.lstrip().startswith("[") else text.split("\n")
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        try:
            found = json.loads(part)
        except ValueError as error:
            place = f"{address}:{number + getattr(error, 'lineno', 1) - 1}"
            raise ValueError(
                tr("{place}: not a JSON object ({error})", place=place, error=error)
            ) from None
        for row in found if isinstance(found, list) else [found]:
            yield row if isinstance(row, dict) else {}


def _pair(row: Mapping[str, Any], file: TextFile, number: int) -> SentencePair:
    right, wrong = _sentences(row, file, number)
    name = next((found for key in GROUPS if (found := matching(row, key))), None)
    group = "" if name is None or row[name] is None else str(row[name])
    if not group.strip():
        group = PurePosixPath(file.name).name.split(".")[0]
    pair = SentencePair(group, *(unicodedata.normalize("NFC", str(s)) for s in (right, wrong)))
    if not pair.right.strip() or not pair.wrong.strip() or pair.right == pair.wrong:
        raise ValueError(
            tr(
                "{path}: pair {number} has no two different sentences",
                path=file.address,
                number=number,
            )
        )
    if file.format in TABLES and any("\n" in value.strip() for value in pair):
        # an open quote is no error of the table if a later cell ends with another one
        raise ValueError(
            tr(
                "{path}: pair {number} has a line break within a cell: write each sentence in one "
                "line, and check whether a quote before it is not closed; one that is part of a "
                "sentence has to be doubled, in a cell in quotes",
                path=file.address,
                number=number,
            )
        )
    return pair


def _sentences(row: Mapping[str, Any], file: TextFile, number: int) -> tuple[Any, Any]:
    for good, bad in zip(RIGHT, WRONG, strict=True):
        names = matching(row, good), matching(row, bad)
        if None not in names:
            return row[names[0]] or "", row[names[1]] or ""  # type: ignore[index]
    names = tuple(matching(row, key) for key in EITHER)  # type: ignore[assignment]
    if None in names:
        known = ", ".join(map("/".join, [*zip(RIGHT, WRONG, strict=True), EITHER]))
        raise ValueError(
            tr(
                "{path}: no two columns of sentences among {columns}; known are {known}",
                path=file.address,
                columns=", ".join(map(str, row)),
                known=known,
            )
        )
    first, second, label = (row[name] for name in names)  # type: ignore[index]
    letter = str(label).strip().upper()
    if letter not in ("A", "B"):
        raise ValueError(
            tr(
                "{path}: pair {number} has the label {label}, which is not A or B",
                path=file.address,
                number=number,
                label=label,
            )
        )
    return (first or "", second or "") if letter == "A" else (second or "", first or "")
