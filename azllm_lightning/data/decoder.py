"""The bytes of a text file as text: encoding, line ends, broken UTF-8, long lines."""

from __future__ import annotations

import codecs
import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.content import HEAD_BYTES, unmarked_encoding

log = logging.getLogger(__name__)

MAX_BLOCK_BYTES = 1 << 23
"""Longer lines and documents of plain text are returned in parts, to bound memory."""

CHUNK_BYTES = 1 << 20
_MAX_WARNINGS = 5
_FEW_BYTES = 16
"""So few bytes that are not UTF-8 may be damage; more of them are another encoding."""
_MOST_REPLACED = 0.01
"""The largest share of replaced characters in a text that has the encoding it was read in."""

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LINE_ENDS = re.compile(b"[\r\n]+")
_RETURNS = re.compile(b"(?<!\r)\r\r+\n")
_NOT_ASCII = re.compile(b"[\x80-\xff]")
_LIKELY = (
    "cp1254 iso8859_9 cp857 mac_turkish cp1251 koi8_r cp866 mac_cyrillic iso8859_5 kz1048 "
    "cp1252 cp1250 cp1256"
).split()
"""Encodings that texts in Azerbaijani and the languages around it are found in."""

_SIGNS = "«»–—‘’‚“”„…·•°©№§\u00a0"
_LETTERS = {
    "cp1254": re.compile(f"[ıİşŞğĞçÇöÖüÜâÂîÎûÛ{_SIGNS}]"),
    "cp1251": re.compile(f"[\u0401-\u045f{_SIGNS}]"),
}
"""What the letters beyond ASCII are, if a text in Turkish or Russian has this encoding."""


_READ_AS = {"iso8859-1": "cp1252", "iso8859-9": "cp1254"}
"""Encodings that browsers, too, read as those of Windows, which have letters for their controls."""


class Block(NamedTuple):
    """Lines of a file, up to a line break, or a part of a line that is longer than a block."""

    line: int
    text: str
    is_cut: bool


class Decoder:
    """Decodes one file, and warns about each place where its encoding is broken.

    `encoding` is that of files that are not UTF-8; None finds it out where that is certain.
    """

    def __init__(
        self, address: str, encoding: str | None, refuse: bool, counts: Counter[str]
    ) -> None:
        self.address = address
        self._encoding = encoding
        self._converted_from = "UTF-8"
        self._chars = 0
        self._replaced = 0
        self._refuse = refuse
        self._counts = counts
        self._broken = 0
        self._damage = _Damage()

    def blocks(self, stream: BinaryIO) -> Iterator[Block]:
        """The text of `stream`, with line breaks as they are in the file.

        Carriage returns become newlines where the first line ends in one alone (old Macs), and
        several of them before a newline are one line break with it.
        Raises ValueError if the file is in another encoding that cannot be found out, or that is
        broken and not to be replaced, or if too much of it would have to be.
        """
        number = 1
        rest = b""
        for chunk in self._chunks(stream):
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) < MAX_BLOCK_BYTES:
                rest = data
                continue
            is_cut = end == 0
            if is_cut:
                end = len(data) - len(_incomplete_end(data))
            text = self._decode_lines(data[:end], number)
            rest = data[end:]
            yield Block(number, text, is_cut)
            number += text.count("\n")
        if rest:
            yield Block(number, self._decode_lines(rest, number), False)

    def _chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """The file as UTF-8 without a byte order mark, about a megabyte at a time."""
        converter: codecs.IncrementalDecoder | None = None
        is_decided = False
        is_first = True
        line_ends = _LineEnds()
        line = 1
        while chunk := stream.read(CHUNK_BYTES):
            if is_first:
                mark = next((mark for mark in _BOMS if chunk.startswith(mark)), b"")
                chunk = chunk[len(mark) :]
                marked = _BOMS.get(mark) or unmarked_encoding(chunk)
                is_decided = marked is not None
                converter = self._converter(marked or "utf-8")
                is_first = False
            if not is_decided and not chunk.isascii():
                chunk += stream.read(HEAD_BYTES)  # enough to judge by
                converter = self._converter(self._found_encoding(chunk))
                is_decided = True
            if converter is not None:
                chunk = self._converted(converter, chunk, line)
            chunk = line_ends.mended(chunk)
            line += chunk.count(b"\n")
            yield chunk
        last = b"" if converter is None else self._converted(converter, b"", line, final=True)
        if last := line_ends.mended(last, final=True):
            yield last

    def _converted(
        self, converter: codecs.IncrementalDecoder, data: bytes, line: int, final: bool = False
    ) -> bytes:
        """`data`, which begins in line number `line`, as UTF-8."""
        state = converter.getstate()
        try:
            text = converter.decode(data, final)
        except UnicodeDecodeError as error:
            if self._refuse:
                raise self._broken_error(error, line) from None
            converter.setstate(state)
            converter.errors = "replace"
            text = converter.decode(data, final)
            converter.errors = "strict"
            self._note_replaced(text, line, error.reason)
        self._chars += len(text)
        return text.encode("utf-8")

    def _broken_error(self, error: UnicodeDecodeError, line: int) -> ValueError:
        before = error.object[: error.start].decode(self._converted_from, errors="ignore")
        line += max(before.count("\n"), before.count("\r"))
        return ValueError(
            tr(
                "{place}: broken {encoding} ({reason}); data.on_bad_utf8=replace accepts it",
                place=f"{self.address}:{line}",
                encoding=self._converted_from,
                reason=error.reason,
            )
        )

    def _note_replaced(self, text: str, first: int, reason: str) -> None:
        """Report the lines of `text` in which a character was replaced; ValueError if of too many
        characters.
        """
        self._replaced += text.count("\ufffd")
        total = self._chars + len(text)
        if self._replaced > max(_FEW_BYTES, _MOST_REPLACED * total):
            raise ValueError(
                tr(
                    "{path}: not in {encoding}: {count:,} of its first {total:,} characters are "
                    "none there; name another encoding with data.encoding, or save the file as "
                    "UTF-8",
                    path=self.address,
                    encoding=self._converted_from,
                    count=self._replaced,
                    total=total,
                )
            )
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, line in enumerate(lines, first):
            if "\ufffd" in line:
                self._warn(f"{self.address}:{number}", reason)

    def _warn(self, place: str, reason: str) -> None:
        """Count a place that was replaced, and report it if it is among the first."""
        self._broken += 1
        if self._broken <= _MAX_WARNINGS:
            log.warning(
                tr(
                    "{place}: broken {encoding} replaced ({reason})",
                    place=place,
                    encoding=self._converted_from,
                    reason=reason,
                )
            )

    def _converter(self, encoding: str) -> codecs.IncrementalDecoder | None:
        """A decoder of `encoding`; None for UTF-8."""
        name = codecs.lookup(encoding).name
        if name == "utf-8":
            return None
        encoding = _READ_AS.get(name, encoding)
        self._counts["converted_files"] += 1
        self._converted_from = encoding
        log.warning(tr("{path}: converted from {encoding}", path=self.address, encoding=encoding))
        return codecs.getincrementaldecoder(encoding)()

    def _found_encoding(self, chunk: bytes) -> str:
        """The encoding of a file whose first bytes beyond ASCII are in `chunk`."""
        first = _NOT_ASCII.search(chunk)
        sample = chunk[first.start() if first else 0 :][:HEAD_BYTES]
        special = len(_NOT_ASCII.findall(sample))
        invalid = len(sample) - len(sample.decode("utf-8", errors="ignore").encode("utf-8"))
        if invalid <= special / 2:
            return "utf-8"
        if self._encoding is not None:
            return self._encoding
        guesses = _guesses(sample)
        if guesses[:1] == ["cp1251"] and special >= _FEW_BYTES and _share("cp1251", sample) >= 0.9:
            return "cp1251"
        # its sister encodings are as likely for charset-normalizer, but spell no Turkish
        if "cp1254" in guesses and special >= 4 and _share("cp1254", sample) >= 0.9:
            return "cp1254"
        if special < _FEW_BYTES:
            return "utf-8"
        raise ValueError(
            tr(
                "{path}: not UTF-8, and its encoding is uncertain (perhaps {guesses}); save the "
                "file as UTF-8, or name the encoding: data.encoding={guess}",
                path=self.address,
                guesses=", ".join(guesses[:3]) or "?",
                guess=guesses[0] if guesses else "cp1254",
            )
        )

    def _decode_lines(self, data: bytes, number: int) -> str:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            lines = data.split(b"\n")
            text = "\n".join(self.decode(line, number + i) for i, line in enumerate(lines))
            self._refuse_another_encoding()
        else:
            self._damage.add(text, number, broken=0)
        return text

    def _refuse_another_encoding(self) -> None:
        damage = self._damage
        if damage.is_another_encoding:
            raise ValueError(
                tr(
                    "{place}: from here on the file is no longer UTF-8: {count:,} of {total:,} "
                    "characters are broken, as if text in another encoding had been appended; put "
                    "this part into a file of its own, or delete it",
                    place=f"{self.address}:{damage.begins}",
                    count=damage.broken,
                    total=damage.chars,
                )
            )

    def decode(self, data: bytes, number: int, unit: str = "line") -> str:
        """`data` as text; `number` is that of its line or row, as `unit` says."""
        try:
            text = data.decode("utf-8")
            broken = 0
        except UnicodeDecodeError as error:
            position = {"path": self.address, "number": number, "byte": error.start}
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
            self._warn(place, error.reason)
            text = data.decode("utf-8", errors="replace")
            broken = text.count("\ufffd")
        self._damage.add(text, number, broken)
        return text

    def finish(self) -> None:
        """Count what was replaced, and warn with the total if not every place was reported.

        Raises ValueError if it was too much of the rows that `decode` was given.
        """
        self._refuse_another_encoding()
        self._counts["bad_utf8_lines"] += self._broken
        if self._broken > _MAX_WARNINGS:
            log.warning(
                tr(
                    "{path}: broken {encoding} replaced in {count:,} places in total",
                    path=self.address,
                    encoding=self._converted_from,
                    count=self._broken,
                )
            )


class _Damage:
    """The stretch of a file in which more characters are broken than happens here and there.

    It `begins` at a line, and ends where the share of `broken` ones among its `chars` has sunk to
    that of damage.
    """

    def __init__(self) -> None:
        self.begins = 0
        self.broken = 0
        self.chars = 0
        self._read = 0  # characters of the file

    def add(self, text: str, line: int, broken: int) -> None:
        """Go on with `text`, which begins in line number `line`."""
        if not self.broken:
            self.begins = line
        self._read += len(text)
        self.chars += len(text)
        self.broken += broken
        if self.broken <= _MOST_REPLACED * self.chars:
            self.broken = self.chars = 0

    @property
    def is_another_encoding(self) -> bool:
        """Whether it is too much for the file, or for some megabytes of a large one."""
        allowed = _MOST_REPLACED * min(self._read, MAX_BLOCK_BYTES)
        return self.broken - _MOST_REPLACED * self.chars > max(_FEW_BYTES, allowed)


class _LineEnds:
    """Mends the line breaks of a file that have carriage returns, other than CRLF."""

    def __init__(self) -> None:
        self._is_mac: bool | None = None
        self._held = b""  # returns at the end of a chunk: what they are depends on the next one

    def mended(self, chunk: bytes, final: bool = False) -> bytes:
        chunk = self._held + chunk
        whole = chunk if final else chunk.rstrip(b"\r")
        self._held = chunk[len(whole) :]
        if self._is_mac is None and (first := _LINE_ENDS.search(whole)):
            self._is_mac = b"\n" not in first[0]
        if self._is_mac:
            return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # CRLF that was written as text on Windows, where each newline becomes CRLF
        return _RETURNS.sub(b"\n", whole) if b"\r\r" in whole else whole


def _guesses(sample: bytes) -> list[str]:
    """Names of encodings that `sample` may have, the most likely first."""
    from charset_normalizer import from_bytes

    return [match.encoding for match in from_bytes(sample, cp_isolation=_LIKELY)]


def _share(encoding: str, sample: bytes) -> float:
    """The share of the bytes beyond ASCII that are letters of a language with this encoding."""
    text = sample.decode(encoding, errors="replace")
    return len(_LETTERS[encoding].findall(text)) / len(_NOT_ASCII.findall(sample))


def _incomplete_end(data: bytes) -> bytes:
    """The first bytes of a character at the end of `data` that continues beyond it."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(data[-4:])
    return decoder.getstate()[0]
