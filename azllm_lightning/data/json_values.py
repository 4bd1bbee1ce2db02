"""Read rows from JSON: one object per line, an array of objects, or objects over several lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.decoder import MAX_BLOCK_BYTES, Block
from azllm_lightning.data.json_scanner import JsonScanner
from azllm_lightning.data.rows import Record, Rows

# with what disks and DOS leave at the end of a file, and the marks that others begin with
_SPACE = " \t\r\n\0\x1a\ufeff"
_DECODER = json.JSONDecoder()
_LONGEST_WORD = len("-Infinity")


class _TooLargeError(Exception):
    """A value that has to be read in parts."""


def read_json(
    blocks: Iterator[Block], address: str, rows: Rows, config: DataConfig
) -> Iterator[Record]:
    """The records of JSON Lines, or of JSON if that is what the file begins with."""
    reader = _JsonReader(address, rows, config)
    first = next((block for block in blocks if block.text.strip(_SPACE)), None)
    if first is None:
        return
    blocks = chain([first], blocks)
    start = first.text.lstrip(_SPACE)
    if start[0] == "[" or (start[0] == "{" and not first.is_cut and _continues(start)):
        yield from reader.values(blocks)
    else:
        yield from reader.lines(blocks)


def _continues(text: str) -> bool:
    """Whether the first line of `text` is a part of a value that goes on below."""
    line, newline, _ = text.partition("\n")
    if not newline:
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip(_SPACE))
    except (ValueError, RecursionError):
        pass
    return False


class _JsonReader:
    def __init__(self, address: str, rows: Rows, config: DataConfig) -> None:
        self._address = address
        self._rows = rows
        self._text_field = config.text_field
        self._source_field = config.source_field or None

    def lines(self, blocks: Iterator[Block]) -> Iterator[Record]:
        """One value per line."""
        for block in blocks:
            if block.is_cut:
                yield from self._long_line(block, blocks)
                continue
            for index, line in enumerate(block.text.split("\n")):
                if line and (line := line.strip(_SPACE)):
                    yield from self._line(line, block.line + index)

    def _line(self, line: str, number: int) -> Iterator[Record]:
        place = f"{self._address}:{number}"
        try:
            value, end = _DECODER.raw_decode(line)
            if end < len(line):
                raise json.JSONDecodeError("Extra data", line, end)
        except json.JSONDecodeError as error:
            if error.msg.startswith("Unterminated string") or error.pos >= len(line):
                raise ValueError(
                    tr(
                        "{place}: expected one JSON object per line, and this one ends in the "
                        "middle: if it is the last line, the file was cut off; copy it again, or "
                        "delete that line",
                        place=place,
                    )
                ) from None
            raise ValueError(
                tr(
                    "{place}: expected one JSON object per line ({reason}, column {column})",
                    place=place,
                    reason=error.msg,
                    column=error.colno,
                )
            ) from None
        except (ValueError, RecursionError):
            # a number of thousands of digits, or brackets a thousand deep
            yield from self._scanned(iter([line]), place)
        else:
            yield from self._rows.from_json(value, place)

    def _long_line(self, first: Block, blocks: Iterator[Block]) -> Iterator[Record]:
        """The line that begins with `first`; what follows it in its last block is read too."""
        last: list[Block] = []

        def pieces() -> Iterator[str]:
            yield first.text
            for block in blocks:
                if block.is_cut:
                    yield block.text
                else:
                    line, newline, rest = block.text.partition("\n")
                    if newline:
                        last.append(Block(block.line + 1, rest, False))
                    yield line
                    return

        yield from self._scanned(pieces(), f"{self._address}:{first.line}")
        yield from self.lines(iter(last))

    def _scanned(self, pieces: Iterator[str], place: str) -> Iterator[Record]:
        scanner = self._scanner(pieces)
        yield from self._scan(scanner, place)
        if (scanner.rest() + "".join(pieces)).strip(_SPACE):
            raise _invalid(place, tr("more follows the object"))

    def _scanner(self, pieces: Iterator[str]) -> JsonScanner:
        return JsonScanner(pieces, self._text_field, self._source_field, MAX_BLOCK_BYTES)

    def _scan(self, scanner: JsonScanner, place: str) -> Iterator[Record]:
        found = False
        try:
            for text, source in scanner.texts():
                found = True
                yield from self._rows.record(text, source, place)
        except ValueError as error:
            raise _invalid(place, str(error)) from error
        self._rows.note_scanned(scanner.fields, found)

    def values(self, blocks: Iterator[Block]) -> Iterator[Record]:
        """Values one after the other, or in arrays, over any number of lines."""
        text = ""
        line = 1
        in_array = False
        for block in blocks:
            text += block.text
            at = 0
            while True:
                start = _skip(text, at, _SPACE + ("," if in_array else ""))
                line += text.count("\n", at, start)
                at = start
                if at == len(text):
                    break
                if text[at] == ("]" if in_array else "["):
                    in_array = not in_array
                    at += 1
                    continue
                try:
                    found = self._decoded(text, at, line)
                except _TooLargeError:
                    scanner = self._scanner(chain([text[at:]], (more.text for more in blocks)))
                    yield from self._scan(scanner, f"{self._address}:{line}")
                    line += scanner.newlines()
                    text = scanner.rest()
                    at = 0
                    continue
                if found is None:
                    break
                value, end = found
                yield from self._rows.from_json(value, f"{self._address}:{line}")
                line += text.count("\n", at, end)
                at = end
            text = text[at:]
        if text or in_array:
            raise _invalid(f"{self._address}:{line}", tr("it ends too early"))

    def _decoded(self, text: str, at: int, line: int) -> tuple[Any, int] | None:
        """The value at `at` and its end; None if it needs more text.

        Raises _TooLargeError if `json` cannot take it, ValueError if it is broken.
        """
        try:
            return _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            is_cut_off = error.msg.startswith("Unterminated string")
            if not is_cut_off and error.pos < len(text) - _LONGEST_WORD:
                line += text.count("\n", at, error.pos)
                raise _invalid(f"{self._address}:{line}", error.msg) from None
            if len(text) - at > MAX_BLOCK_BYTES:
                raise _TooLargeError from None
            return None
        except (ValueError, RecursionError):
            # a number of thousands of digits, or brackets a thousand deep
            raise _TooLargeError from None


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _invalid(place: str, reason: str) -> ValueError:
    return ValueError(tr("{place}: not valid JSON ({reason})", place=place, reason=reason))
