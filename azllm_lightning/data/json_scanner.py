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
from array import array
from collections.abc import Iterator

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.rows import Step, step_by

_TOKEN = re.compile(r'[\[\]{},:"]')
_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")
_CLOSES = {"}": "{", "]": "["}
_MAX_KEY = 1 << 16


class _Way:
    """Where the path of a field goes on in an object that is being read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._chosen: Step | None = None
        self.is_open = False
        """Whether the key at hand is the one to take, among those so far."""

    @property
    def name(self) -> str | None:
        """The key that leads on."""
        return self._chosen.name if self._chosen else None

    @property
    def tail(self) -> str:
        """What follows in the path; "" at its end."""
        return self._chosen.tail if self._chosen else ""

    @property
    def is_at_end(self) -> bool:
        return self.is_open and not self.tail

    @property
    def onward(self) -> str:
        """What is left of the path for objects in the value at hand; "" if it leads nowhere."""
        return self.tail if self.is_open else ""

    def turn(self, key: str) -> bool:
        """Go to the next key; whether it replaces those before it."""
        step = step_by(key, self._path) if self._path else None
        chosen = self._chosen
        self.is_open = step is not None and (
            chosen is None or step.distance < chosen.distance or key == chosen.name
        )
        if self.is_open:
            self._chosen = step
        return self.is_open


class _Object:
    """An object on the way to a text or a source."""

    def __init__(self, text_path: str, source_path: str) -> None:
        self.text = _Way(text_path)
        self.source = _Way(source_path)
        self.texts: list[int] = []
        self.found: str | None = None
        """The first source in it."""

    def set_key(self, key: str) -> None:
        if self.text.turn(key):
            self.texts = []
        if self.source.turn(key):
            self.found = None

    def has_sources_inside(self) -> bool:
        """Whether it has objects with both texts and sources."""
        text, source = self.text, self.source
        return bool(text.tail and source.tail) and text.name == source.name


class JsonScanner:
    """Reads one JSON value from `pieces`, which together are the value and what follows it.

    `text_field` and `source_field` are keys, or keys joined by dots, and mean what they mean to
    `rows.Rows`; a source is a string. Strings are returned in parts of about `part_chars`
    characters.
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
        self._source_field = source_field or ""
        self._part_chars = part_chars
        self._buffer = ""
        self._at = 0
        self._open = bytearray()  # the brackets that are open; a byte each, however deep
        self._objects = 0
        self._way: list[_Object] = []  # the outermost of the open objects
        self._sources: list[str | None] = []  # of each text
        self._lengths = array("q")
        self._numbers = array("q")  # of the text that each part belongs to
        self._listed = 0  # strings so far in a list that is a text; -1 if something else is there
        self._kept: list[int] = []
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
                self._note(len(text), len(self._sources) - 1)
            kept.seek(0)
            wanted = set(self._kept)
            for length, number in zip(self._lengths, self._numbers, strict=True):
                text = kept.read(length)
                if number in wanted:
                    yield text, self._sources[number]

    def _note(self, length: int, number: int) -> None:
        """Note a part of a text, as one with the part before it if both are short."""
        is_same = bool(self._numbers) and self._numbers[-1] == number
        if is_same and self._lengths[-1] + length <= self._part_chars:
            self._lengths[-1] += length
        else:
            self._lengths.append(length)
            self._numbers.append(number)

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
        """The parts of the string that begins here, if it is a text or a line of one."""
        if self._is_at_text(b"{"):
            yield from self._text()
            return
        if self._is_at_text(b"{[") and self._listed >= 0:
            yield from self._line()
            return
        if self._open[-1:] == b"{" and self._objects == len(self._way):
            here = self._way[-1]
            if here.source.is_at_end:
                here.found = "".join(self._string(_MAX_KEY))
                return
        for _ in self._raw_string(1):
            pass

    def _text(self) -> Iterator[str]:
        self._way[-1].texts.append(len(self._sources))
        self._sources.append(None)
        yield from self._string(self._part_chars)

    def _line(self) -> Iterator[str]:
        """The parts of a string in a list that is a text."""
        if self._listed:
            yield "\n"
            yield from self._string(self._part_chars)
        else:
            yield from self._text()
        self._listed += 1

    def _is_at_text(self, brackets: bytes) -> bool:
        """Whether the path of the text ends at the `brackets` that were opened last."""
        is_on_way = bool(self._way) and self._objects == len(self._way)
        return is_on_way and self._open.endswith(brackets) and self._way[-1].text.is_at_end

    def _enter(self, bracket: str) -> None:
        if self._is_at_text(b"{["):  # a list of more than strings, and so no text
            if self._listed > 0:
                self._way[-1].texts.pop()
            self._listed = -1
        elif self._is_at_text(b"{"):
            self._listed = 0
        if bracket == "{":
            if self._objects == len(self._way):
                self._follow()
            self._objects += 1
        self._open.append(ord(bracket))

    def _follow(self) -> None:
        """Note the object that begins here, if a path leads there."""
        if not self._way:
            self._way.append(_Object(self._text_field, self._source_field))
        elif not self._open.endswith(b"[["):
            here = self._way[-1]
            text_path, source_path = here.text.onward, here.source.onward
            if text_path or source_path:
                self._way.append(_Object(text_path, source_path))

    def _close(self, bracket: str) -> None:
        if not self._open or self._open.pop() != ord(_CLOSES[bracket]):
            raise ValueError(tr("brackets do not match"))
        if bracket == "}":
            if self._objects == len(self._way):
                self._leave(self._way.pop())
            self._objects -= 1

    def _leave(self, done: _Object) -> None:
        """Set the sources of the texts in an object that ends, and hand both on to the next one."""
        if not done.has_sources_inside():
            for number in done.texts:
                self._sources[number] = done.found
        if not self._way:
            self._kept += done.texts
            return
        here = self._way[-1]
        here.texts += done.texts
        if here.source.onward and here.found is None:
            here.found = done.found

    def _set_key(self, key: str) -> None:
        if self._objects == len(self._way):
            self._way[-1].set_key(key)
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
