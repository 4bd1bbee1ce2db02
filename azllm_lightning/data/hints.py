"""What a text has and its settings leave unused: a field of sources, lines in every document."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cleaning import clean
from azllm_lightning.data.corpus import (
    VALIDATED_SOURCES,
    stream_files,
    streams,
)
from azllm_lightning.data.files import MAX_SOURCES, Meter, TextFile, TimeUp
from azllm_lightning.data.records import read_records
from azllm_lightning.data.repeated_lines import line_digest
from azllm_lightning.data.rows import SOURCE_FIELDS, Record, matching

SECONDS = 2.0
"""How long the look may take."""

FIRST = 20
"""Records that must show whether a file has the field."""

LEAST_DOCUMENTS = 100
REPEATED = 0.1
"""Of so many documents or more, lines in more than this share of them are menus or notices."""

MOST_LINES = 200_000
"""Different lines that are counted."""

SHOWN_CHARS = 40


@dataclass(frozen=True)
class Look:
    """What was found in the first `documents` documents."""

    documents: int
    all_documents: int
    """How many there are, as far as the bytes read of those of the files say."""
    is_complete: bool
    """Whether that is all of the text."""
    field: str | None = None
    """A field that names sources, and that data.source_field does not use."""
    values: int = 0
    """Different ones in it."""
    lines: int = 0
    """Lines that occur in more than REPEATED of the documents."""
    example: str = ""


def look(config: DataConfig, seconds: float = SECONDS) -> Look:
    """Look at the local files of data.path, as much of them as can be read in `seconds`.

    What is wrong in them is left to those who read all of it.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # every warning would come twice
    try:
        return _look(config, seconds)
    finally:
        logging.disable(level)


def _look(config: DataConfig, seconds: float) -> Look:
    parts = _local_parts(config)
    end = time.monotonic() + seconds
    field = None
    if config.source_field is None and parts:
        field = _source_field(parts[0].files[0], config, end)
    sources: set[str] = set()
    lines: Counter[int] = Counter()
    examples: dict[int, str] = {}
    reading = _Reading(replace(config, source_field=field), end)
    for text, source in reading.documents(parts):
        if time.monotonic() > end:
            break
        if source is not None and len(sources) <= MAX_SOURCES:
            sources.add(source)
        _count(text, lines, examples)
    is_complete = time.monotonic() <= end
    if not 2 <= len(sources) <= MAX_SOURCES:
        field = None
    number = len(reading.seen)
    repeated: list[int] = []
    if config.repeated_lines is None and number >= LEAST_DOCUMENTS:
        repeated = [line for line, count in lines.most_common() if count > REPEATED * number]
    return Look(
        documents=number,
        all_documents=number if is_complete else round(number * reading.times_more(parts)),
        is_complete=is_complete,
        field=field,
        values=len(sources) if field is not None else 0,
        lines=len(repeated),
        example=examples[repeated[0]] if repeated else "",
    )


def hints(found: Look) -> list[str]:
    """What to set, in a sentence for each thing that was found."""
    sentences = []
    if found.field is not None:
        values = trn("{count} value", "{count} values", found.values)
        if not found.is_complete:
            values = tr("at least {values}", values=values)
        message = tr(
            "The records have a field '{field}' with {values}: data.source_field={field} gives "
            "val_loss for each of them.",
            field=found.field,
            values=values,
        )
        if found.values > VALIDATED_SOURCES:
            message = tr(
                "The records have a field '{field}' with {values}: data.source_field={field} gives "
                "val_loss for each of the {count} largest.",
                field=found.field,
                values=values,
                count=VALIDATED_SOURCES,
            )
        sentences.append(message)
    if found.lines:
        least = max(2, round(REPEATED * found.all_documents))
        sentences.append(
            trn(
                "{count} line is in more than {share:.0%} of the documents (“{example}”): "
                "data.repeated_lines={least} removes such lines.",
                "{count} lines are in more than {share:.0%} of the documents (“{example}”): "
                "data.repeated_lines={least} removes such lines.",
                found.lines,
                share=REPEATED,
                example=found.example,
                least=least,
            )
        )
    return sentences


@dataclass(frozen=True)
class _Part:
    """Local files, of whose text only the first `max_bytes` are used (None: all)."""

    files: list[TextFile]
    max_bytes: int | None


def _local_parts(config: DataConfig) -> list[_Part]:
    """The text of data.val_path and of data.path, as far as it has local files."""
    if config.name == "tales" or not config.paths or any("://" in path for path in config.paths):
        return []
    parts = []
    with contextlib.suppress(ValueError, OSError):  # the text of a prepared folder may be gone
        for stream in streams(config):
            files = [file for file in stream_files(stream) if file.is_local]
            parts.append(_Part(files, stream.max_bytes))
    return [part for part in parts if part.files]


class _Reading:
    """The documents that are used, read until `end`, and how much that was."""

    def __init__(self, config: DataConfig, end: float) -> None:
        self.seen: set[int] = set()
        """The hashes of the documents."""
        self._config = config
        self._end = end
        self._meters: list[Meter] = []
        self._text_bytes = 0

    def documents(self, parts: Sequence[_Part]) -> Iterator[Record]:
        """The clean text and the source of each document, without duplicates."""
        for part in parts:
            used = 0
            for text, source in self._records(part.files):
                cleaned = clean(text)
                if not cleaned or hash(text) in self.seen:
                    continue
                size = len(cleaned.encode("utf-8", "surrogatepass"))
                least = min(size, self._config.max_document_bytes)  # of a long one, a piece
                if used and part.max_bytes is not None and used + least > part.max_bytes:
                    break
                used += size
                self._text_bytes += size
                self.seen.add(hash(text))
                yield cleaned, source

    def _records(self, files: Sequence[TextFile]) -> Iterator[Record]:
        for file in files:
            self._meters.append(Meter(deadline=self._end))
            yield from _records(file, self._config, self._meters[-1])

    def times_more(self, parts: Sequence[_Part]) -> float:
        """How many times as much text as was read there is, by the bytes read of those of the
        files.
        """
        read = max(1, sum(meter.num_bytes for meter in self._meters))
        there = sum(file.size() for part in parts for file in part.files)
        factor = max(1.0, there / read)
        limits = [part.max_bytes for part in parts if part.max_bytes is not None]
        return min(factor, max(1.0, sum(limits) / max(1, self._text_bytes))) if limits else factor


def _source_field(file: TextFile, config: DataConfig, end: float) -> str | None:
    """The field of SOURCE_FIELDS that a file has, as it is spelled there."""
    if file.format == ".txt":
        return None
    known = next((name for name in SOURCE_FIELDS if _has(file, config, name, end)), None)
    if known is None:
        return None
    spelled: dict[str, None] = {}
    no_field = replace(config, source_field="")
    for _ in islice(_records(file, no_field, Meter(deadline=end), fields=spelled), FIRST):
        pass
    return matching(spelled, known) or known


def _has(file: TextFile, config: DataConfig, field: str, end: float) -> bool:
    """Whether one of the first records has a value in `field`."""
    records = _records(file, replace(config, source_field=field), Meter(deadline=end))
    return any(source is not None for _, source in islice(records, FIRST))


def _records(
    file: TextFile,
    config: DataConfig,
    meter: Meter,
    fields: dict[str, None] | None = None,
) -> Iterator[Record]:
    """The records of a file, as far as it can be read before the deadline of `meter`."""
    with contextlib.suppress(ValueError, OSError, TimeUp), file.explained_errors():
        yield from read_records(file, config, Counter(), meter, fields)


def _count(text: str, lines: Counter[int], examples: dict[int, str]) -> None:
    if len(lines) > MOST_LINES:
        return
    found: dict[int, str] = {}
    for line in text.split("\n"):
        found.setdefault(line_digest(line), line.strip())
    found.pop(0, None)
    lines.update(found.keys())
    for digest, line in found.items():
        examples.setdefault(digest, line[:SHOWN_CHARS])
