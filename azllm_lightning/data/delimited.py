"""Read tables of text: CSV and TSV as spreadsheets, pandas and databases write them.

Python's own `csv` parses them, in its strict mode: it is in C, knows quoted line breaks, and gives
the line of an error. The parser of pandas and that of pyarrow do not say where a quote was left
open, and read everything up to the next quote into one cell.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.decoder import Block
from azllm_lightning.data.rows import SAMPLE_ROWS, Record, Rows, matching

_DELIMITERS = ",;\t|"
_NO_DELIMITER = "\x1f"
MAX_CELL_CHARS = 1 << 27
_SAMPLE_LINES = 1000
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_QUOTE = "\x1e"  # an escaped one, which ends no cell
_MEANINGS = {_QUOTE: '"', '"': '"', "\\": "\\"}
"""What follows a backslash where it is only for quotes, and what that means."""
_DATABASE_MEANINGS = {
    **_MEANINGS,
    **{"'": "'", "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": ""},
    "\n": "\n",
}
"""The same in the exports of databases (PostgreSQL, MySQL, ClickHouse)."""
_NULL_CELL = re.compile(r"(?:^|\t)\\N(?=[\t\r\n]|$)")
_QUOTED_CELL = re.compile(r'(?:^|\t)"[^\t]*"(?=[\t\r\n]|$)')
_DOUBLED_QUOTE = re.compile(r'(?:^|\t)"[^\t]*""')
_BLANK = " \t\r\n\x1a"  # with the end of file of DOS
_NULLS = ("\\N",)


@dataclass(frozen=True)
class _Dialect:
    """How a file separates and quotes its cells."""

    delimiter: str
    meanings: Mapping[str, str] | None = None
    has_quotes: bool = True

    def rows(self, lines: Iterator[str]) -> Any:
        """A csv.reader; its rows are to be `unescaped`."""
        if self.meanings and self.has_quotes:
            # csv's own escapechar is not strict: "a" b would be read as `a b`
            lines = (_ESCAPED.sub(_placeholder, line) for line in lines)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
            strict=True,
        )

    def unescaped(self, row: list[str]) -> list[str]:
        """`row` with what its escapes mean."""
        meanings = self.meanings
        if not meanings:
            return row
        return [_ESCAPED.sub(lambda found: meanings.get(found[1], found[0]), cell) for cell in row]


def _placeholder(escaped: re.Match[str]) -> str:
    return f"\\{_QUOTE}" if escaped[1] == '"' else escaped[0]


def read_table(
    blocks: Iterator[Block], address: str, is_tabbed: bool, rows: Rows, config: DataConfig
) -> Iterator[Record]:
    """The records of a table, from the rows of `read_rows`, which says what is an error."""
    table = read_rows(blocks, address, is_tabbed, [config.text_field])
    names = next(table, None)
    if names is None:
        return
    rows.note_fields(names)
    if matching(names, config.text_field) is None:
        with contextlib.suppress(ValueError):  # of a row; the field is what matters
            for row in islice(table, SAMPLE_ROWS):
                rows.measure(dict(zip(names, row, strict=True)))
    text_column = names.index(rows.column(names, "text_field", config.text_field))
    source_column = None
    if config.source_field is not None:
        source_column = names.index(rows.column(names, "source_field", config.source_field))
    rows.note_columns()
    for row in table:
        text = row[text_column]
        source = None if source_column is None else row[source_column]
        yield from rows.record(None if text in _NULLS else text, source or None, address)


def read_rows(
    blocks: Iterator[Block], address: str, is_tabbed: bool, wanted: Sequence[str]
) -> Iterator[list[str]]:
    """The header of a table, then its rows, each with as many cells.

    Blank lines are left out, and the header where it comes again, as in files put together.

    The delimiter is the one with which the header has most of the `wanted` names.

    Raises ValueError, with the line, for a row that has more or fewer cells than the header, and
    for quotes that do not match: such a row may have lost a part of its text. A title above the
    header is an error as well.
    """
    # the default refuses cells above 128 kB; Windows accepts no larger limit than 2**31 - 1
    csv.field_size_limit(MAX_CELL_CHARS)
    lines = _Lines(blocks)
    sample = lines.peek(_SAMPLE_LINES)
    while sample and not sample[0].strip():
        lines.skip()
        sample = lines.peek(_SAMPLE_LINES)
    if not sample:
        return
    delimiters = "\t" if is_tabbed else _DELIMITERS
    given = _SEPARATOR_LINE.match(sample[0])
    if given:
        delimiters = given[1]
        lines.skip()
        sample = lines.peek(_SAMPLE_LINES)
    _check_header(lines, sample, delimiters, wanted, address)
    yield from _rows(lines, _dialect(sample, delimiters, wanted), address)


class _Lines:
    """The lines of a file without NULs and byte order marks, which can be looked at before they are
    used.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._ahead: list[str] = []
        # all in C: StringIO and not splitlines, which knows more line breaks
        texts = (io.StringIO(text, newline="\n") for text in _whole_lines(blocks))
        self._source = chain.from_iterable(texts)
        self.skipped = 0

    def peek(self, count: int) -> list[str]:
        """The next lines, `count` of them if there are as many."""
        self._ahead += islice(self._source, count - len(self._ahead))
        return self._ahead

    def skip(self) -> None:
        """Leave out the next line."""
        self._ahead.pop(0)
        self.skipped += 1

    def __iter__(self) -> Iterator[str]:
        return chain(self._ahead, self._source)


def _whole_lines(blocks: Iterator[Block]) -> Iterator[str]:
    """The text of `blocks`, those joined that are parts of one line."""
    parts: list[str] = []
    for _, text, is_cut in blocks:
        parts.append(text.replace("\0", "").replace("\ufeff", ""))
        if not is_cut:
            yield "".join(parts)
            parts.clear()
    yield "".join(parts)


def _dialect(sample: list[str], delimiters: str, wanted: Sequence[str]) -> _Dialect:
    """Of the usual ways to write a table that the `sample` has no error in, the one with the most
    rows: a quote that is one of the text joins those up to the next.
    """
    delimiter = max(delimiters, key=lambda each: _header_score(sample, each, wanted))
    if len(_header(sample, _Dialect(delimiter))) == 1:
        delimiter = _NO_DELIMITER  # one column: there is nothing to separate
    usual = [_Dialect(delimiter), _Dialect(delimiter, _MEANINGS)]
    if delimiter == "\t":
        usual.append(_Dialect(delimiter, has_quotes=False))
    database = _Dialect(delimiter, _DATABASE_MEANINGS, has_quotes=False)
    may_be_database = delimiter in ("\t", _NO_DELIMITER) and _is_database_text(sample)
    if may_be_database and _fitting_rows(sample, database):
        return database
    found = max(usual, key=lambda each: _fitting_rows(sample, each))  # the first of the best
    if found.meanings and _has_line_breaks_escaped(sample, found):
        return replace(found, meanings=_DATABASE_MEANINGS)
    return found


def _is_database_text(sample: list[str]) -> bool:
    r"""Whether lines are what databases write as text: \N for NULL, and no quotes.

    pandas can write \N, too, but escapes nothing: there the backslashes of a text, such as those
    of LaTeX, begin what no database writes.
    """
    quoted = sum(_QUOTED_CELL.search(line) is not None for line in sample)
    return (
        any(_NULL_CELL.search(line) for line in sample)
        and not any(_DOUBLED_QUOTE.search(line) for line in sample)
        and 2 * quoted < len(sample)
        and _all_known(sample)
    )


def _has_line_breaks_escaped(sample: list[str], dialect: _Dialect) -> bool:
    r"""Whether \n is a line break, since no cell of `sample` has one that is not escaped."""
    try:
        cells = list(chain.from_iterable(dialect.rows(iter(sample))))
    except csv.Error:  # a cell that goes on after the sample, on another line
        return False
    return _all_known(sample) and not any("\n" in _ESCAPED.sub("", cell) for cell in cells)


def _all_known(sample: list[str]) -> bool:
    """Whether each backslash of `sample` begins what a database could have written."""
    return all(
        escaped in _DATABASE_MEANINGS or escaped == "N"
        for line in sample
        for escaped in _ESCAPED.findall(line)
    )


def _header(sample: list[str], dialect: _Dialect) -> list[str]:
    try:
        return next(dialect.rows(iter(sample)), [])
    except csv.Error:
        return []


def _header_score(sample: list[str], delimiter: str, wanted: Sequence[str]) -> tuple[int, int]:
    names = _header(sample, _Dialect(delimiter))
    return sum(matching(names, name) is not None for name in wanted), len(names)


def _check_header(
    lines: _Lines, sample: list[str], delimiters: str, wanted: Sequence[str], address: str
) -> None:
    """Raise ValueError if the first line is a title: it has none of the `wanted` names, and fewer
    cells than a later line that has one.
    """
    if any(_header_score(sample, each, wanted)[0] for each in delimiters):
        return
    for number, line in enumerate(sample[1:], lines.skipped + 2):
        for delimiter in delimiters:
            found, _ = _header_score([line], delimiter, wanted)
            if found and _filled(line, delimiter) > _filled(sample[0], delimiter):
                raise ValueError(
                    tr(
                        "{path}: the header is in line {number}; delete the lines above it",
                        path=address,
                        number=number,
                    )
                )


def _filled(line: str, delimiter: str) -> int:
    """The number of cells of a line that are not empty."""
    return sum(bool(cell.strip()) for cell in _header([line], _Dialect(delimiter)))


def _fitting_rows(sample: list[str], dialect: _Dialect) -> int:
    """The number of rows in `sample`; 0 if they have not all as many cells as the first, or if
    there is an error, except that the last row may be cut off.
    """
    width = len(_header(sample, dialect))
    count = 0
    try:
        for row in dialect.rows(iter(sample)):
            if row and _trimmed(row, width) != width:
                return 0
            count += bool(row)
    except csv.Error as error:
        is_cut_off = "unexpected end" in str(error) and len(sample) == _SAMPLE_LINES
        return count + 1 if is_cut_off else 0
    return count if width else 0


def _trimmed(row: list[str], width: int) -> int:
    """The number of cells in `row`, without empty ones beyond `width`."""
    return width if len(row) > width and not any(row[width:]) else len(row)


def _rows(lines: _Lines, dialect: _Dialect, address: str) -> Iterator[list[str]]:
    numbered = _numbered(lines, dialect, address)
    _, names = next(numbered, (0, []))
    if not names:
        return
    yield dialect.unescaped(names)
    width = len(names)
    for number, row in numbered:
        if len(row) == width or _trimmed(row, width) == width:
            if row != names:
                yield dialect.unescaped(row[:width])
        elif any(cell.strip(_BLANK) for cell in row):
            raise ValueError(_wrong_width(address, number, len(row), width))


class _RowLines:
    """Iterates over lines, and keeps those of the row that is being read."""

    def __init__(self, lines: Iterator[str], dialect: _Dialect) -> None:
        self._lines = lines
        self._plain = replace(dialect, has_quotes=False)
        self.read: list[str] = []
        self.width = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.read) == _SAMPLE_LINES and self.rows():
            raise csv.Error("a quote around many rows")  # the next one may be far
        line = next(self._lines)
        self.read.append(line)
        return line

    def rows(self) -> list[list[str]]:
        """The lines as rows in which quotes are text; none if one has not `width` cells."""
        try:
            rows = list(self._plain.rows(iter(self.read)))
        except csv.Error:
            return []
        while rows and not rows[-1]:  # the end of a file
            rows.pop()
        return rows if all(_trimmed(row, self.width) == self.width for row in rows) else []


def _numbered(lines: _Lines, dialect: _Dialect, address: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, row) for each row.

    Next to a tab, a quote may be one of the text. So lines that quotes would join, or not match in,
    are rows by themselves if each has as many cells as the header.
    """
    row_lines = _RowLines(iter(lines), dialect)
    may_be_text = dialect.delimiter == "\t" and dialect.has_quotes
    reader = dialect.rows(row_lines if may_be_text else iter(lines))
    while True:
        number = lines.skipped + reader.line_num + 1
        row_lines.read.clear()
        try:
            rows = list(islice(reader, 1))
        except csv.Error as error:
            rows = row_lines.rows()
            if not rows:
                raise _not_valid(address, number, error) from error
        else:
            if row_lines.width and len(row_lines.read) > 1:
                rows = row_lines.rows() or rows
        if not rows:
            return
        row_lines.width = row_lines.width or len(rows[0])
        yield from enumerate(rows, number)


def _not_valid(address: str, line: int, error: csv.Error) -> ValueError:
    if str(error).startswith("new-line character"):
        return ValueError(
            tr(
                "{path}:{line}: a carriage return in a cell without quotes; put quotes around the "
                "cell, or a space in the place of the carriage return",
                path=address,
                line=line,
            )
        )
    if _NO_DELIMITER in str(error):  # which is ours, not that of the file
        return ValueError(
            tr(
                "{path}:{line}: not valid CSV: in the row that begins here a quote is not closed, "
                "or a quote within a text is not doubled",
                path=address,
                line=line,
            )
        )
    return ValueError(
        tr(
            "{path}:{line}: not valid CSV ({error}): in the row that begins here a quote is not "
            "closed, or a quote within a text is not doubled",
            path=address,
            line=line,
            error=error,
        )
    )


def _wrong_width(address: str, line: int, found: int, expected: int) -> str:
    return trn(
        "{path}:{line}: {count} cell, but the header has {expected}; a text with a delimiter or a "
        "line break needs quotes around it",
        "{path}:{line}: {count} cells, but the header has {expected}; a text with a delimiter or a "
        "line break needs quotes around it",
        found,
        path=address,
        line=line,
        expected=expected,
    )
