"""The formats: one file of text, JSON lines, CSV or Parquet becomes the texts in it."""

from __future__ import annotations

import codecs
import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.files import TextFile

log = logging.getLogger(__name__)

Record = tuple[str, str | None]
"""A text and, where data.source_field is set and the format has fields, its source."""

_MAX_LINE_BYTES = (
    1 << 23
)  # of plain text: a longer line or block is handed on in parts, so that memory stays bounded
_PARQUET_ROWS = 512
_COMPLAINTS = 5
_CSV_DELIMITERS = ",;\t"


def read_records(file: TextFile, config: DataConfig, counts: Counter[str]) -> Iterator[Record]:
    """The texts of `file` as they stand there, in bounded memory; broken UTF-8 is counted, or refused by ValueError."""
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
    """UTF-8 of one file, with a word on each place where it is none."""

    def __init__(self, path: str, refuse: bool, counts: Counter[str]) -> None:
        self.path, self._refuse, self._counts = path, refuse, counts
        self._broken = 0

    def lines(self, stream: BinaryIO, max_bytes: int = -1) -> Iterator[tuple[int, str]]:
        """(number from 1, text with its line break) of each line; lines above `max_bytes` come in parts."""
        number, carried = 1, b""
        while line := carried + (read := stream.readline(max_bytes)):
            carried = b""
            if len(read) == max_bytes and not read.endswith(b"\n"):
                tail = codecs.getincrementaldecoder("utf-8")("ignore")
                tail.decode(line[-4:])
                carried = tail.getstate()[
                    0
                ]  # the first bytes of a character that goes on in the next part
                line = line[: len(line) - len(carried)]
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{self.path} is in UTF-16; save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, self.decode(line, number)
            number += line.endswith(b"\n")

    def decode(self, data: bytes, number: int, unit: str = "line") -> str:
        """`data` as text; `number` is that of its line or row."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"{self.path}, {unit} {number}, byte {error.start}: {error.reason}"
            if self._refuse:
                raise ValueError(
                    f"broken UTF-8 in {place}; data.on_bad_utf8=replace would go on"
                ) from None
            self._broken += 1
            if self._broken <= _COMPLAINTS:
                log.warning("broken UTF-8 replaced in %s", place)
            return data.decode("utf-8", errors="replace")

    def finish(self) -> None:
        """Tell how much was replaced, where not every place was told."""
        self._counts["bad_utf8_lines"] += self._broken
        if self._broken > _COMPLAINTS:
            log.warning("broken UTF-8 replaced in %s, %d places in all", self.path, self._broken)


def _plain_text(stream: BinaryIO, decoder: _Decoder, is_one_document: bool) -> Iterator[Record]:
    block: list[str] = []
    size = 0
    for _, line in decoder.lines(stream, _MAX_LINE_BYTES):
        is_blank = not line.strip()
        if is_blank and not is_one_document:
            size = _MAX_LINE_BYTES
        else:
            block.append(line)
            size += len(line)
        if size >= _MAX_LINE_BYTES:
            if block:
                yield "".join(block), None
            block, size = [], 0
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
                f"{place} is not a JSON object on one line ({error.msg}, column {error.colno})"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{place} is not a JSON object on one line, but a {type(record).__name__}"
            )
        _require(config, record, place)
        yield from _record(
            record[config.text_field], record.get(config.source_field), place, config
        )


def _csv(stream: BinaryIO, decoder: _Decoder, config: DataConfig) -> Iterator[Record]:
    csv.field_size_limit(
        2**31 - 1
    )  # the default refuses fields above 128 kB; Windows takes no more than this
    lines = (line.replace("\0", "") for _, line in decoder.lines(stream))
    header = next(lines, None)
    if header is None:
        return
    delimiter = max(_CSV_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter))
    _require(config, names, f"{decoder.path}:1")
    text_column = names.index(config.text_field)
    source_column = None if config.source_field is None else names.index(config.source_field)
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        for row in rows:
            if len(row) > max(text_column, source_column or 0):
                yield row[text_column], None if source_column is None else row[source_column]
            elif row:
                raise ValueError(
                    f"{decoder.path}:{rows.line_num + 1} has {len(row)} columns, its header {len(names)}"
                )
    except csv.Error as error:
        raise ValueError(f"{decoder.path}:{rows.line_num + 1} is not CSV ({error})") from error


def _parquet(stream: BinaryIO, decoder: _Decoder, config: DataConfig) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.ParquetFile(
        stream, pre_buffer=False
    )  # else a row group's columns are all held at once
    _require(config, table.schema_arrow.names, decoder.path)
    columns = [config.text_field] + ([config.source_field] if config.source_field else [])
    number = 0
    for batch in table.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
        texts = batch.column(config.text_field)
        if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
            texts = texts.cast(
                pa.large_binary()
            )  # decoded here, since Arrow stops at the first bad byte
        sources = (
            batch.column(config.source_field).to_pylist()
            if config.source_field
            else [None] * len(texts)
        )
        for text, source in zip(texts.to_pylist(), sources, strict=True):
            number += 1
            text = decoder.decode(text, number, "row") if isinstance(text, bytes) else text
            yield from _record(text, source, f"{decoder.path}, row {number}", config)


def _require(config: DataConfig, names: Iterable[str], place: str) -> None:
    for setting, field in (
        ("text_field", config.text_field),
        ("source_field", config.source_field),
    ):
        if field is not None and field not in names:
            raise ValueError(
                f"{place} has no field {field!r}, its fields are {', '.join(names)}: set data.{setting}="
            )


def _record(text: Any, source: Any, place: str, config: DataConfig) -> Iterator[Record]:
    """One record if it holds text; none for null, which tables use for a missing text."""
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: field {config.text_field!r} is not text, but {text!r:.40}: set data.text_field="
        )
    yield text, None if source is None else str(source)
