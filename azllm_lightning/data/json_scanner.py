"""Find texts in a JSON value of any length or depth, in bounded memory.

Libraries that parse JSON in steps (ijson) still return each string as a whole; here a string comes
in parts, so that a line of a gigabyte needs a few megabytes. This is for values that `json` cannot
take; it is slower, and checks less of what it skips.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.rows import plain_name

_TOKEN = re.compile(r'[\[\]{},:"]')
_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")
_CLOSES = {"}": "{", "]": "["}
_MAX_KEY = 1 << 16


class JsonScanner:
    """Reads one JSON value from `pieces`, which together are the value and what follows it.

    `text_field` and `source_field` are keys, or keys joined by dots; arrays on the way are passed
    through. As in `rows.values_at`, keys may look different; here, where what follows is unknown,
    texts of such keys are left out if others of the value have exactly the name. Strings are
    returned in parts of about `part_chars` characters.
    """

    def __init__(
        self,
        pieces: Iterator[str],
        text_field: str,
        source_field: str | None,
        part_chars: int,
    ) -> None:
        self._pieces = pieces
        self._text_field = text_field
        self._source_field = source_field
        self._plain_text = plain_name(text_field)
        self._plain_source = None if source_field is None else plain_name(source_field)
        # how many objects are open there; fewer where a key itself has dots
        self._text_depth = text_field.count(".") + 1
        self._source_depth = (source_field or "").count(".") + 1
        self._max_depth = max(self._text_depth, self._source_depth)
        self._part_chars = part_chars
        self._buffer = ""
        self._at = 0
        self._open = bytearray()  # the brackets that are open; a byte each, however deep
        self._keys: list[str] = []  # the key of each open object, as deep as a path may go
        self._objects = 0
        self._source: str | None = None
        self._is_exact_source = False
        self._is_exact = False  # whether the key of the text at hand is exactly its field
        self._lengths: list[int] = []
        self._exact: list[bool] = []
        self._sources: list[str | None] = []
        self.fields: list[str] = []
        """Keys of the outermost object."""
        self._newlines = 0

    def rest(self) -> str:
        """What was read, but comes after the value."""
        return self._buffer[self._at :]

    def newlines(self) -> int:
        """The number of line breaks before the rest."""
        return self._newlines + self._buffer.count("\n", 0, self._at)

    def texts(self) -> Iterator[tuple[str, str | None]]:
        """(part of a text, source) for each text at the path.

        Raises ValueError if the brackets or strings of the value do not match, before any part of
        a text that is affected is returned.
        """
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as kept:
            # on disk until the value ends: the source may follow, or the value break off
            for part in self._scan():
                text = _SURROGATES.sub("\ufffd", part)
                kept.write(text)
                self._lengths.append(len(text))
                self._exact.append(self._is_exact)
            kept.seek(0)
            self._set_sources()
            best = any(self._exact)
            found = zip(self._lengths, self._exact, self._sources, strict=True)
            for length, is_exact, source in found:
                text = kept.read(length)
                if is_exact == best:
                    yield text, source or self._source

    def _set_sources(self) -> None:
        """The texts of the object that ends here have the source that was found in it."""
        missing = len(self._lengths) - len(self._sources)
        self._sources += [self._source] * missing

    def _scan(self) -> Iterator[str]:
        expects_key = False
        while True:
            token = self._next_token()
            if token == '"' and expects_key:
                self._set_key("".join(self._string(_MAX_KEY))[:_MAX_KEY])
            elif token == '"':
                yield from self._value()
            elif token in "{[":
                self._enter(token)
            elif token in "}]":
                self._close(token)
                if not self._open:
                    return
            elif not self._open:
                raise ValueError(tr("an object was expected"))
            expects_key = token == "{" or (token == "," and self._open[-1] == ord("{"))

    def _value(self) -> Iterator[str]:
        """The parts of the string that begins here, if it is a text."""
        if self._open[-1:] == b"{" and self._objects == len(self._keys):
            keys = ".".join(self._keys)
            plain = plain_name(keys)
            if plain == self._plain_text:
                self._text_depth = self._objects
                self._is_exact = keys == self._text_field
                yield from self._string(self._part_chars)
                return
            is_exact = keys == self._source_field
            if plain == self._plain_source and (is_exact or not self._is_exact_source):
                self._source_depth = self._objects
                self._is_exact_source = is_exact
                self._source = "".join(self._string(_MAX_KEY))
                return
        for _ in self._raw_string(1):
            pass

    def _enter(self, bracket: str) -> None:
        self._open.append(ord(bracket))
        if bracket == "{":
            self._objects += 1
            if self._objects <= self._max_depth:
                self._keys.append("")

    def _close(self, bracket: str) -> None:
        if not self._open or self._open.pop() != ord(_CLOSES[bracket]):
            raise ValueError(tr("brackets do not match"))
        if bracket == "}":
            if self._objects == self._text_depth and self._source is not None:
                self._set_sources()
                if self._objects == self._source_depth and self._objects > 1:
                    self._source = None
                    self._is_exact_source = False
            if self._objects <= len(self._keys):
                self._keys.pop()
            self._objects -= 1

    def _set_key(self, key: str) -> None:
        if self._objects <= len(self._keys):
            self._keys[-1] = key
        if self._objects == 1 and len(self.fields) < 100 and key not in self.fields:
            self.fields.append(key)

    def _more(self) -> bool:
        """Replace what was used by the next piece; False at the end."""
        self._newlines += self._buffer.count("\n", 0, self._at)
        piece = next(self._pieces, None)
        self._buffer = self._buffer[self._at :] + (piece or "")
        self._at = 0
        return piece is not None

    def _next_token(self) -> str:
        while True:
            found = _TOKEN.search(self._buffer, self._at)
            if found:
                self._at = found.end()
                return found[0]
            self._at = len(self._buffer)
            if not self._more():
                raise ValueError(tr("it ends too early"))

    def _string(self, part_chars: int) -> Iterator[str]:
        """The decoded string that begins here, in parts; a last part may be short."""
        rest = ""
        for raw in self._raw_string(part_chars):
            rest += raw
            if len(rest) >= part_chars and (end := _safe_end(rest)):
                yield _decoded(rest[:end])
                rest = rest[end:]
        if rest:
            yield _decoded(rest)

    def _raw_string(self, least: int) -> Iterator[str]:
        """The string that begins here as it is written, in pieces of some `least` characters."""
        collected: list[str] = []
        size = 0
        while True:
            match = _STRING.match(self._buffer, self._at)
            assert match is not None  # the empty string matches too
            if "\n" in match[0]:
                raise ValueError(tr("a string is not closed"))
            collected.append(match[0])
            size += len(match[0])
            self._at = match.end()
            is_closed = self._buffer[self._at : self._at + 1] == '"'
            if is_closed or size >= least:
                yield "".join(collected)
                collected.clear()
                size = 0
            if is_closed:
                self._at += 1
                return
            if not self._more():
                raise ValueError(tr("a string is not closed"))


def _safe_end(raw: str) -> int:
    """An index of `raw` not within an escape or a pair of them, after a space if any; 0 if none."""
    end = raw.rfind(" ") + 1
    if end:
        return end
    for end in range(len(raw), max(0, len(raw) - 24), -1):
        # an escape has at most 6 characters, a pair of surrogates 12
        with contextlib.suppress(ValueError):
            if not "\ud800" <= _decoded(raw[:end])[-1] <= "\udbff":
                return end
    return 0


def _decoded(raw: str) -> str:
    text: str = json.loads(f'"{raw}"')
    return text
