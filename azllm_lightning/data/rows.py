"""The text and the source of rows with named fields: JSON objects, and rows of tables."""

from __future__ import annotations

import json
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import nearest, without_diacritics
from azllm_lightning.cli.shell import for_shell
from azllm_lightning.config.data import DataConfig

log = logging.getLogger(__name__)

Record = tuple[str, str | None]
"""A text and, if data.source_field is set and the format has fields, its source."""

_MAX_WARNINGS = 3
_MAX_FIELDS = 100
_ABSENT = object()
SAMPLE_ROWS = 100
"""Rows without the field whose texts are measured, to name the field that was meant."""

_MAX_DEPTH = 5
_MANY_KEYS = 10
"""So many texts whose paths differ in one key: it is no field, but the name of each text."""

SOURCE_FIELDS = (
    "source mənbə domain dataset subset category kateqoriya genre janr meta.source metadata.source"
).split()
"""What fields that say where a text is from are usually called."""

PATIENCE = 10_000
"""So many rows without the field, and none with it: the rest of a large file is not read."""


class NoTextError(ValueError):
    """No row of a file has a text in the field that data.text_field names."""


class Rows:
    """The account of one file: which of its rows have a text, and which do not.

    `fields` receives the names of the fields that it has.
    """

    def __init__(
        self,
        address: str,
        config: DataConfig,
        counts: Counter[str],
        fields: dict[str, None] | None = None,
    ) -> None:
        self._address = address
        self._config = config
        self._counts = counts
        self._texts = 0
        self._missing = 0
        self._rejected = 0
        self._first_rejected = ""
        self._has_source = config.source_field is None
        self._has_text = False
        self._fields: dict[str, None] = {} if fields is None else fields
        self._chars: Counter[tuple[str, ...]] = Counter()
        self._measured = 0

    def from_json(self, value: Any, place: str) -> list[Record]:
        """The records of a JSON value: those of an object, or one of a text by itself."""
        config = self._config
        if isinstance(value, dict):
            text = value.get(config.text_field)
            source = value.get(config.source_field)
            if isinstance(text, str) and (source is not None or config.source_field is None):
                self._has_source = True  # as in most files
                return self.record(text, source, place)
            return self._from_object(value, place)
        if isinstance(value, str):
            return self.record(value, None, place)
        expected = tr("an object with the field '{field}'", field=config.text_field)
        self._reject(value, expected, place)
        return []

    def _from_object(self, value: dict[str, Any], place: str) -> list[Record]:
        config = self._config
        found = list(_texts_with_sources(value, config.text_field, config.source_field))
        has_source = any(source is not _ABSENT for _, source in found)
        if not has_source:  # nor perhaps a text
            self.note_fields(value)
        if not found and not self._has_text:
            self.measure(value)
        self._has_source |= has_source
        self._missing += not found
        if self._missing >= PATIENCE and not self._has_text:
            self.finish()
        records = []
        for text, source in found:
            records += self.record(text, None if source is _ABSENT else source, place)
        return records

    def record(self, text: Any, source: Any, place: str) -> list[Record]:
        """The record of a row that has the field; empty if its value is missing or no text."""
        self._has_text = True
        if isinstance(text, list):
            text = _joined(text)
        if isinstance(text, str):
            self._texts += 1
            return [(text, None if source is None else str(source))]
        if text is None or (isinstance(text, float) and math.isnan(text)):
            self._missing += 1
        else:
            self._reject(text, tr("text"), place, self._way_out(text))
        return []

    def note_fields(self, names: Iterable[str]) -> None:
        """Remember what the fields are called, for an error."""
        if len(self._fields) < _MAX_FIELDS:
            self._fields.update(dict.fromkeys(names))

    def measure(self, row: Mapping[str, Any]) -> None:
        """Count the characters of each field of a row in which the text was not found."""
        if self._measured < SAMPLE_ROWS:
            self._measured += 1
            self._chars.update(_characters(row))

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

    def _reject(self, value: Any, expected: str, place: str, way_out: str = "") -> None:
        self._rejected += 1
        message = tr(
            "{place}: {value:.40} is not {expected}",
            place=place,
            value=repr(value),
            expected=expected,
        )
        message += way_out
        self._first_rejected = self._first_rejected or message
        if self._rejected <= _MAX_WARNINGS:
            log.warning(tr("{message}; this row is skipped", message=message))

    def _way_out(self, value: Any) -> str:
        """What to do about a `value` of the field with texts inside; "" if there are none."""
        field = self._config.text_field
        is_told = self._rejected < _MAX_WARNINGS
        if not is_told or not value or not isinstance(value, dict | list):
            return ""
        if isinstance(value, dict) or len(_objects(value)) == len(value):
            for path, _ in _characters({field: value}).most_common(1):
                setting = for_shell(f"data.text_field={'.'.join(path)}")
                return tr("; for the texts in it set {setting}", setting=setting)
        return tr("; write each text as one string, or as a list of strings")

    def finish(self) -> None:
        """Count what was skipped; NoTextError if the file has rows, but none of use.

        Raises ValueError if its texts, which have been used by then, have no source.
        """
        config = self._config
        if self._first_rejected and not self._texts:
            raise NoTextError(self._first_rejected)
        if self._fields and not self._has_text:
            raise self._keyed_texts() or self.no_field("text_field", config.text_field)
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
        fields = {"place": self._address, "field": field, "names": ", ".join(self._fields)}
        meant = self._likely_text() if kind is NoTextError else self._likely_source(field)
        if meant is None:
            return kind(
                tr(
                    "{place}: no field '{field}'; the fields are {names}. Set data.{setting} to "
                    "one of them",
                    **fields,
                    setting=setting,
                )
            )
        return kind(
            tr(
                "{place}: no field '{field}'; the fields are {names}. Set {setting}",
                **fields,
                setting=for_shell(f"data.{setting}={meant}"),
            )
        )

    def _likely_text(self) -> str | None:
        """The field with most text; None if none has any, or if that has no name."""
        likely = next((path for path, _ in self._chars.most_common(1)), ())
        return ".".join(likely) if likely and all(map(str.strip, likely)) else None

    def _keyed_texts(self) -> NoTextError | None:
        """The error of a file with an object whose texts each have a key of their own."""
        found = self._keys_of_texts()
        if found is None:
            return None
        way, keys = found
        values = "." + "".join(f"[{json.dumps(name, ensure_ascii=False)}]" for name in way) + "[]"
        return NoTextError(
            tr(
                "{place}: no field '{field}': each text has a key of its own ({names}, ...). Write "
                "the values alone, one per line, and read that file: {command}",
                place=self._address,
                field=self._config.text_field,
                names=", ".join(f"{key:.40}" for key in keys[:3]),
                command=f"jq -c {for_shell(values)} {for_shell(self._address)} > text.jsonl",
            )
        )

    def _keys_of_texts(self) -> tuple[tuple[str, ...], list[str]] | None:
        """(the path of an object, its keys) if these name texts, not fields."""
        if not self._measured:  # values that were read in parts
            is_large = len(self._fields) == _MAX_FIELDS
            return ((), list(self._fields)) if is_large else None
        for likely, _ in self._chars.most_common(1):
            # many rows with many fields of text are those of a table
            for at in range(len(likely) - (self._measured > 1)):
                same = likely[:at], likely[at + 1 :]
                keys = [path[at] for path in self._chars if (path[:at], path[at + 1 :]) == same]
                if len(keys) >= _MANY_KEYS:
                    return likely[:at], keys
        return None

    def _likely_source(self, field: str) -> str | None:
        known = (matching(self._fields, each) for each in SOURCE_FIELDS)
        near = nearest(field, self._fields)
        return near or next((name for name in known if name is not None), None)


def _joined(parts: list[Any]) -> Any:
    """The text that a list of strings is, such as paragraphs; any other list as it is."""
    strings = [part for part in parts if part is not None]
    if not all(isinstance(part, str) for part in strings):
        return parts
    return "\n".join(strings) if strings else None


def _characters(row: Mapping[str, Any], depth: int = 0) -> Counter[tuple[str, ...]]:
    """How long the texts of a row are, by their paths."""
    found: Counter[tuple[str, ...]] = Counter()
    for name, value in row.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each:
                found[(name,)] += len(each)
            elif isinstance(each, dict) and depth < _MAX_DEPTH:
                inside = _characters(each, depth + 1)
                found.update({(name, *path): count for path, count in inside.items()})
    return found


def _texts_with_sources(
    row: Mapping[str, Any], text_field: str, source_field: str | None
) -> Iterator[tuple[Any, Any]]:
    """(text, source) of a row. A source is that of the texts in the innermost object with both."""
    text = _step(row, text_field)
    source = _step(row, source_field) if source_field else None
    if text is None:
        return
    if source is not None and text.tail and source.tail and text.name == source.name:
        for inner in _objects(row[text.name]):
            yield from _texts_with_sources(inner, text.tail, source.tail)
        return
    sources = list(_values_at(row, source_field)) if source_field else []
    known = (value for value in sources if value is not None)
    first = next(known, None if sources else _ABSENT)
    for value in _values_at(row, text_field):
        yield value, first


def _values_at(row: Mapping[str, Any], path: str) -> Iterator[Any]:
    """The values of the field `path` of a row: its key, or keys joined by dots.

    Lists on the way are passed through.
    """
    step = _step(row, path)
    if step is None:
        return
    if not step.tail:
        yield row[step.name]
        return
    for inner in _objects(row[step.name]):
        yield from _values_at(inner, step.tail)


def _objects(value: Any) -> list[dict[str, Any]]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, dict)]


class Step(NamedTuple):
    """A key that a path begins with, and what follows it in the path."""

    distance: tuple[int, int]
    """0 for the key that is the whole path; the smallest of an object is the one to take."""
    name: str
    tail: str


def _step(row: Mapping[str, Any], path: str) -> Step | None:
    """Where `path` goes on from an object; of keys that are as near, by the first of them."""
    if path in row:  # as in most rows
        return Step((0, 0), path, "")
    steps = filter(None, (step_by(name, path) for name in row))
    return min(steps, key=lambda step: step.distance, default=None)


@lru_cache(maxsize=1024)
def step_by(name: str, path: str) -> Step | None:
    """The step that the key `name` is on `path`; None if the path does not begin with it.

    A key may be the whole path, dots included, else the fewer parts of it the better. Keys are
    compared exactly, else as in `matching`.
    """
    parts = path.split(".")
    for order, count in enumerate((len(parts), *range(1, len(parts)))):
        head = ".".join(parts[:count])
        likeness = _likeness(name, head)
        if likeness is not None:
            return Step((order, likeness), name, ".".join(parts[count:]))
    return None


def matching(names: Iterable[str], wanted: str) -> str | None:
    """The name that is `wanted`, or looks like it: in another case, with spaces around it, else
    typed without the letters of Azerbaijani (menbe for mənbə).
    """
    if wanted in names:
        return wanted
    found = [name for name in names if _likeness(name, wanted) is not None]
    return min(found, key=lambda name: _likeness(name, wanted) or 0, default=None)


def _likeness(name: str, wanted: str) -> int | None:
    """How far a name is from the `wanted` one, as in `matching`; None if it is another."""
    if name == wanted:
        return 0
    if _caseless_name(name) == _caseless_name(wanted):
        return 1
    return 2 if plain_name(name) == plain_name(wanted) else None


@lru_cache(maxsize=1024)
def plain_name(name: str) -> str:
    """What names that look alike have in common; `name` may be several, joined by dots."""
    return without_diacritics(_caseless_name(name))


@lru_cache(maxsize=1024)
def _caseless_name(name: str) -> str:
    parts = unicodedata.normalize("NFC", name).split(".")
    return ".".join(part.strip("\ufeff \t\r\n\"'").casefold() for part in parts)
