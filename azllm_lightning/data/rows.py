"""The text and the source of rows with named fields: JSON objects, and rows of tables."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig

log = logging.getLogger(__name__)

Record = tuple[str, str | None]
"""A text and, if data.source_field is set and the format has fields, its source."""

_MAX_WARNINGS = 3
_MAX_FIELDS = 100
_ABSENT = object()
PATIENCE = 10_000
"""So many rows without the field, and none with it: the rest of a large file is not read."""


class NoTextError(ValueError):
    """No row of a file has a text in the field that data.text_field names."""


class Rows:
    """The account of one file: which of its rows have a text, and which do not."""

    def __init__(self, address: str, config: DataConfig, counts: Counter[str]) -> None:
        self._address = address
        self._config = config
        self._counts = counts
        self._texts = 0
        self._missing = 0
        self._rejected = 0
        self._first_rejected = ""
        self._has_source = config.source_field is None
        self._has_text = False
        self._fields: dict[str, None] = {}

    def from_json(self, value: Any, place: str) -> list[Record]:
        """The records of a JSON value: those of an object, or one of a text by itself."""
        config = self._config
        if isinstance(value, dict):
            text = value.get(config.text_field)
            if isinstance(text, str) and config.source_field is None:  # as in most files
                self._has_text = True
                self._texts += 1
                return [(text, None)]
            return self._from_object(value, place)
        if isinstance(value, str):
            return self.record(value, None, place)
        expected = tr("an object with the field '{field}'", field=config.text_field)
        self._reject(value, expected, place)
        return []

    def _from_object(self, value: dict[str, Any], place: str) -> list[Record]:
        config = self._config
        sources = values_at(value, config.source_field) if config.source_field else iter(())
        source = next(sources, _ABSENT)
        texts = list(values_at(value, config.text_field))
        if source is _ABSENT or not texts:
            self.note_fields(value)
        self._has_source |= source is not _ABSENT
        self._missing += not texts
        if self._missing >= PATIENCE and not self._has_text:
            self.finish()
        source = None if source is _ABSENT else source
        return [record for text in texts for record in self.record(text, source, place)]

    def record(self, text: Any, source: Any, place: str) -> list[Record]:
        """The record of a row that has the field; empty if its value is missing or no text."""
        self._has_text = True
        if isinstance(text, str):
            self._texts += 1
            return [(text, None if source is None else str(source))]
        if text is None or (isinstance(text, float) and math.isnan(text)):
            self._missing += 1
        else:
            self._reject(text, tr("text"), place)
        return []

    def note_fields(self, names: Iterable[str]) -> None:
        """Remember what the fields are called, for an error."""
        if len(self._fields) < _MAX_FIELDS:
            self._fields.update(dict.fromkeys(names))

    def note_scanned(self, names: Iterable[str], found: bool) -> None:
        """Account for a JSON value that was read in parts, and had a text or not."""
        self._has_source = True
        self._missing += not found
        if not found:
            self.note_fields(names)

    def note_columns(self) -> None:
        """The columns of a table have been found, whether or not it has rows."""
        self._has_text = True
        self._has_source = True

    def _reject(self, value: Any, expected: str, place: str) -> None:
        self._rejected += 1
        message = tr(
            "{place}: {value:.40} is not {expected}",
            place=place,
            value=repr(value),
            expected=expected,
        )
        self._first_rejected = self._first_rejected or message
        if self._rejected <= _MAX_WARNINGS:
            log.warning(tr("{message}; this row is skipped", message=message))

    def finish(self) -> None:
        """Count what was skipped; NoTextError if the file has rows, but none of use.

        Raises ValueError if its texts, which have been used by then, have no source.
        """
        config = self._config
        if self._first_rejected and not self._texts:
            raise NoTextError(self._first_rejected)
        if self._fields and not self._has_text:
            raise self.no_field("text_field", config.text_field)
        if self._fields and not self._has_source and config.source_field is not None:
            raise self.no_field("source_field", config.source_field)
        self._counts["rows_without_text"] += self._missing
        self._counts["rows_not_text"] += self._rejected

    def column(self, names: list[str], setting: str, field: str) -> str:
        """The one of the `names` of columns that data.`setting`=`field` means.

        Raises NoTextError if there is no text, and ValueError if there is no source, or several.
        """
        name = matching(names, field)
        if name is None:
            raise self.no_field(setting, field)
        if names.count(name) > 1:
            raise ValueError(
                tr(
                    "{path}: {count} columns are called '{field}'; rename all but one",
                    path=self._address,
                    count=names.count(name),
                    field=name,
                )
            )
        return name

    def no_field(self, setting: str, field: str) -> ValueError:
        """The error of a file without a field; NoTextError if that is the one of the text."""
        kind = NoTextError if setting == "text_field" else ValueError
        return kind(
            tr(
                "{place}: no field '{field}'; the fields are {names}. Set data.{setting}=",
                place=self._address,
                field=field,
                names=", ".join(self._fields),
                setting=setting,
            )
        )


def values_at(row: Mapping[str, Any], path: str) -> Iterator[Any]:
    """The values of the field `path` of a row: its key, or keys joined by dots.

    Lists on the way are passed through. Keys are compared exactly, else without regard to case.
    """
    name = matching(row, path)
    if name is not None:
        yield row[name]
        return
    head, _, tail = path.partition(".")
    while tail:
        name = matching(row, head)
        if name is not None:
            inner = row[name]
            for each in inner if isinstance(inner, list) else [inner]:
                if isinstance(each, dict):
                    yield from values_at(each, tail)
            return
        more, _, tail = tail.partition(".")
        head = f"{head}.{more}"


def matching(names: Iterable[str], wanted: str) -> str | None:
    """The name that is `wanted`, or looks like it: in another case, with spaces around it."""
    if wanted in names:
        return wanted
    plain = plain_name(wanted)
    return next((name for name in names if plain_name(name) == plain), None)


def plain_name(name: str) -> str:
    """What names that look alike have in common; `name` may be several, joined by dots."""
    parts = unicodedata.normalize("NFC", name).split(".")
    return ".".join(part.strip("\ufeff \t\r\n\"'").casefold() for part in parts)
