"""Read the texts in plain text, JSON, tables and Parquet files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.decoder import MAX_BLOCK_BYTES, Block, Decoder
from azllm_lightning.data.delimited import read_table
from azllm_lightning.data.files import Meter, TextFile
from azllm_lightning.data.json_values import read_json
from azllm_lightning.data.rows import SAMPLE_ROWS, Record, Rows, matching

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_PARQUET_ROWS = 512
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def read_records(
    file: TextFile,
    config: DataConfig,
    counts: Counter[str],
    meter: Meter | None = None,
    fields: dict[str, None] | None = None,
) -> Iterator[Record]:
    """The raw texts of `file`, in bounded memory; a function of the file and the settings alone.

    `meter` counts the bytes read; of a Parquet file, of which not all columns are read, the share
    of its rows. `fields` receives the names of its fields; of JSON, if its rows lack one that is
    asked for.

    Broken characters are replaced, and their lines counted in `counts["bad_utf8_lines"]`, or raise
    ValueError if data.on_bad_utf8=refuse. Rows without a text are counted too. Raises ValueError,
    with the file and where possible the line, for what cannot be read, and NoTextError if no row
    has the field.
    """
    refuse = config.on_bad_utf8 == "refuse"
    decoder = Decoder(file.address, config.encoding, refuse, counts)
    rows = Rows(file.address, config, counts, fields)
    if file.format == ".parquet":
        with file.open() as stream:
            report = partial(_measure_rows, meter or Meter(), file.size())
            yield from _parquet(stream, decoder, rows, config, report)
    else:
        with file.open_text(meter) as stream:
            blocks = decoder.blocks(stream)
            if file.format == ".txt":
                yield from _plain_text(blocks, config.txt_documents == "file")
            elif file.format in (".csv", ".tsv"):
                yield from read_table(blocks, file.address, file.format == ".tsv", rows, config)
            else:
                yield from read_json(blocks, file.address, rows, config)
    rows.finish()
    decoder.finish()


def _plain_text(blocks: Iterator[Block], is_one_document: bool) -> Iterator[Record]:
    pending: list[str] = []
    size = 0
    starts_line = False  # a line break before the block belongs to what separates documents
    for _, text, is_cut in blocks:
        parts = [text]
        if not is_one_document:
            parts = _BLANK_LINES.split(f"\n{text}" if starts_line else text)
            if starts_line and parts[0]:
                parts[0] = parts[0][1:]
        for index, part in enumerate(parts):
            if index and pending:
                yield "".join(pending), None
                pending = []
                size = 0
            if part and not part.isspace():
                pending.append(part)
                size += len(part)
            if size >= MAX_BLOCK_BYTES:
                yield "".join(pending), None
                pending = []
                size = 0
        starts_line = not is_cut
    if pending:
        yield "".join(pending), None


def _measure_rows(meter: Meter, size: int, done: int, total: int) -> None:
    meter.num_bytes = size * done // max(1, total)


def _parquet(
    stream: BinaryIO,
    decoder: Decoder,
    rows: Rows,
    config: DataConfig,
    report: Callable[[int, int], None],
) -> Iterator[Record]:
    """`report` is called with the number of rows read, and that of all."""
    import pyarrow as pa
    from pyarrow import parquet

    # pre-buffering would hold all columns of a row group in memory
    table = parquet.ParquetFile(stream, pre_buffer=False)
    found = list(_parquet_paths(table.schema_arrow))
    paths = [path for path, _ in found]
    rows.note_fields(paths)
    if matching(paths, config.text_field) is None:
        for batch in islice(table.iter_batches(SAMPLE_ROWS, use_threads=False), 1):
            for row in batch.to_pylist():
                rows.measure(row)
    columns: list[str] = [
        rows.column(paths, setting, field)
        for setting, field in (
            ("text_field", config.text_field),
            ("source_field", config.source_field),
        )
        if field is not None
    ]
    rows.note_columns()
    if any(is_listed for path, is_listed in found if path in columns):
        yield from _nested(table, columns, rows, decoder.address, report)
        return
    number = 0
    for batch in table.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
        texts, *sources = (_inner(batch, column) for column in columns)
        if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
            # decoded here, because Arrow stops at the first broken byte
            texts = texts.cast(pa.large_binary())
        source_values = sources[0].to_pylist() if sources else [None] * len(texts)
        report(number + len(texts), table.metadata.num_rows)
        for text, source in zip(texts.to_pylist(), source_values, strict=True):
            number += 1
            if isinstance(text, bytes):
                text = decoder.decode(text, number, "row")
            yield from rows.record(text, source, f"{decoder.address}:{number}")


def _nested(
    table: parquet.ParquetFile,
    paths: Sequence[str],
    rows: Rows,
    address: str,
    report: Callable[[int, int], None],
) -> Iterator[Record]:
    """The records of rows that may have several texts each, which are read as those of JSON."""
    columns = list(dict.fromkeys(_column_of(path, table.schema_arrow) for path in paths))
    number = 0
    for batch in table.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
        report(number + len(batch), table.metadata.num_rows)
        for row in batch.to_pylist():
            number += 1
            yield from rows.from_json(row, f"{address}:{number}")


def _parquet_paths(fields: Iterable[pa.Field]) -> Iterator[tuple[str, bool]]:
    """The names of the columns, and of the fields of those that are structs, joined by dots; with
    each, whether a row may have several, in a list.
    """
    import pyarrow as pa

    for field in fields:
        kind = field.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        inner = kind.value_type if is_list else kind
        yield field.name, is_list
        if pa.types.is_struct(inner):
            for path, is_listed in _parquet_paths(pa.schema(inner)):
                yield f"{field.name}.{path}", is_list or is_listed


def _column_of(path: str, schema: pa.Schema) -> str:
    """The name of the column in which `path` is."""
    names: list[str] = schema.names
    return next(name for name in names if f"{path}.".startswith(f"{name}."))


def _inner(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The column `path` of a batch, also within structs."""
    from pyarrow import compute

    if path in batch.schema.names:
        return batch.column(path)
    head, _, tail = path.partition(".")
    while head not in batch.schema.names:
        more, _, tail = tail.partition(".")
        head = f"{head}.{more}"
    return compute.struct_field(batch.column(head), tail.split("."))
