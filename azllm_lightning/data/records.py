"""Read the texts in plain text, JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import codecs
import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.files import TextFile

log = logging.getLogger(__name__)

Record = tuple[str, str | None]
"""A text and, if data.source_field is set and the format has fields, its source."""

MAX_BLOCK_BYTES = 1 << 23
"""Longer lines and documents of plain text are returned in parts, to bound memory."""

_MAX_WARNINGS = 5
_PARQUET_ROWS = 512
_CSV_DELIMITERS = ",;\t"


def read_records(file: TextFile, config: DataConfig, counts: Counter[str]) -> Iterator[Record]:
    """The raw texts of `file`, in bounded memory.

    Broken UTF-8 is replaced and counted in `counts["bad_utf8_lines"]`, or raises ValueError if
    data.on_bad_utf8=refuse.
    """
    with file.open() as stream:
        decoder = _Decoder(file.path, config.on_bad_utf8 == "refuse", counts)
        if file.format == ".txt":
            yield from _plain_text(stream, decoder, config.txt_documents == "file")
        elif file.format == ".csv":
            yield from _csv(stream, decoder, config)
        elif file.format == ".parquet":
            yield from _parquet(stream, decoder, config)
        else:
            yield from _json_lines(stream, decoder, config)
    decoder.finish()


class _Decoder:
    """Decodes the UTF-8 of one file, and warns about each place where it is broken."""

    def __init__(self, path: str, refuse: bool, counts: Counter[str]) -> None:
        self.path = path
        self._refuse = refuse
        self._counts = counts
        self._broken = 0

    def lines(self, stream: BinaryIO, max_bytes: int = -1) -> Iterator[tuple[int, str]]:
        """(number from 1, text with its line break) of each line; longer ones come in parts."""
        number = 1
        carried = b""
        while line := carried + (read := stream.readline(max_bytes)):
            carried = b""
            if len(read) == max_bytes and not read.endswith(b"\n"):
                carried = _incomplete_end(line)
                line = line[: len(line) - len(carried)]
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(
                        tr("{path}: the encoding is UTF-16; save the file as UTF-8", path=self.path)
                    )
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, self.decode(line, number)
            number += line.endswith(b"\n")

    def decode(self, data: bytes, number: int, unit: str = "line") -> str:
        """`data` as text; `number` is that of its line or row, as `unit` says."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            position = {"path": self.path, "number": number, "byte": error.start}
            if unit == "line":
                place = tr("{path}, line {number}, byte {byte}", **position)
            else:
                place = tr("{path}, row {number}, byte {byte}", **position)
            if self._refuse:
                raise ValueError(
                    tr(
                        "{place}: broken UTF-8 ({reason}); data.on_bad_utf8=replace accepts it",
                        place=place,
                        reason=error.reason,
                    )
                ) from None
            self._broken += 1
            if self._broken <= _MAX_WARNINGS:
                log.warning(
                    tr(
                        "{place}: broken UTF-8 replaced ({reason})",
                        place=place,
                        reason=error.reason,
                    )
                )
            return data.decode("utf-8", errors="replace")

    def finish(self) -> None:
        """Count what was replaced, and warn with the total if not every place was reported."""
        self._counts["bad_utf8_lines"] += self._broken
        if self._broken > _MAX_WARNINGS:
            log.warning(
                tr(
                    "{path}: broken UTF-8 replaced in {count:,} places in total",
                    path=self.path,
                    count=self._broken,
                )
            )


def _incomplete_end(data: bytes) -> bytes:
    """The first bytes of a character at the end of `data` that continues beyond it."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(data[-4:])
    return decoder.getstate()[0]


def _plain_text(stream: BinaryIO, decoder: _Decoder, is_one_document: bool) -> Iterator[Record]:
    block: list[str] = []
    size = 0
    for _, line in decoder.lines(stream, MAX_BLOCK_BYTES):
        ends_document = not is_one_document and not line.strip()
        if not ends_document:
            block.append(line)
            size += len(line)
        if ends_document or size >= MAX_BLOCK_BYTES:
            if block:
                yield "".join(block), None
            block = []
            size = 0
    if block:
        yield "".join(block), None


def _json_lines(stream: BinaryIO, decoder: _Decoder, config: DataConfig) -> Iterator[Record]:
    for number, line in decoder.lines(stream):
        if not line.strip():
            continue
        place = f"{decoder.path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                tr(
                    "{place}: expected one JSON object per line ({reason}, column {column})",
                    place=place,
                    reason=error.msg,
                    column=error.colno,
                )
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                tr(
                    "{place}: expected one JSON object per line, not a {type}",
                    place=place,
                    type=type(record).__name__,
                )
            )
        _check_fields(config, record, place)
        source = record.get(config.source_field)
        yield from _record(record[config.text_field], source, place, config)


def _csv(stream: BinaryIO, decoder: _Decoder, config: DataConfig) -> Iterator[Record]:
    # The default refuses fields above 128 kB; Windows accepts no larger limit than this.
    csv.field_size_limit(2**31 - 1)
    lines = (line.replace("\0", "") for _, line in decoder.lines(stream))
    header = next(lines, None)
    if header is None:
        return
    delimiter = max(_CSV_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter))
    _check_fields(config, names, f"{decoder.path}:1")
    text_column = names.index(config.text_field)
    source_column = None if config.source_field is None else names.index(config.source_field)
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        for row in rows:
            if len(row) > max(text_column, source_column or 0):
                yield row[text_column], None if source_column is None else row[source_column]
            elif row:
                raise ValueError(
                    trn(
                        "{path}:{line}: {count} column, but the header has {expected}",
                        "{path}:{line}: {count} columns, but the header has {expected}",
                        len(row),
                        path=decoder.path,
                        line=rows.line_num + 1,
                        expected=len(names),
                    )
                )
    except csv.Error as error:
        raise ValueError(
            tr(
                "{path}:{line}: not valid CSV ({error})",
                path=decoder.path,
                line=rows.line_num + 1,
                error=error,
            )
        ) from error


def _parquet(stream: BinaryIO, decoder: _Decoder, config: DataConfig) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    # pre-buffering would hold all columns of a row group in memory
    table = parquet.ParquetFile(stream, pre_buffer=False)
    _check_fields(config, table.schema_arrow.names, decoder.path)
    columns = [config.text_field] + ([config.source_field] if config.source_field else [])
    number = 0
    for batch in table.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
        texts = batch.column(config.text_field)
        if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
            # decoded here, because Arrow stops at the first broken byte
            texts = texts.cast(pa.large_binary())
        sources = [None] * len(texts)
        if config.source_field:
            sources = batch.column(config.source_field).to_pylist()
        for text, source in zip(texts.to_pylist(), sources, strict=True):
            number += 1
            if isinstance(text, bytes):
                text = decoder.decode(text, number, "row")
            yield from _record(text, source, f"{decoder.path}:{number}", config)


def _check_fields(config: DataConfig, names: Iterable[str], place: str) -> None:
    """Raise ValueError unless `names` has the configured fields."""
    for setting, field in (
        ("text_field", config.text_field),
        ("source_field", config.source_field),
    ):
        if field is not None and field not in names:
            raise ValueError(
                tr(
                    "{place}: no field '{field}'; the fields are {names}. Set data.{setting}=",
                    place=place,
                    field=field,
                    names=", ".join(names),
                    setting=setting,
                )
            )


def _record(text: Any, source: Any, place: str, config: DataConfig) -> Iterator[Record]:
    """One record; none if the text is null, as tables write a missing one."""
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(
            tr(
                "{place}: field '{field}' is {value:.40}, not text. Set data.text_field=",
                place=place,
                field=config.text_field,
                value=repr(text),
            )
        )
    yield text, None if source is None else str(source)
