"""One text made clean, and one long text made into several."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_LINE_BREAKS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile(
    "[\ud800-\udfff]"
)  # half characters, which a JSON escape can spell and UTF-8 cannot
# Cyrillic schwa and turned e look like ə, and old keyboards and fonts typed them for it.
_SCHWAS = {"\u04d9": "ə", "\u01dd": "ə", "\u04d8": "Ə", "\u018e": "Ə"}
_BORDERS = tuple(re.compile(f"(?<={border})") for border in (r"\n\n", r"\n", r"[.!?…]\s", r"\s"))


def clean(text: str) -> str:
    """`text` in NFC, with one kind of line break, one kind of schwa, and no control characters but newline and tab."""
    if not text.replace(
        "\n", ""
    ).isprintable():  # one quick look: all that the patterns seek is not printable
        text = _LINE_BREAKS.sub("\n", text.replace("\r\n", "\n"))
        text = _CONTROLS.sub("", text)
        text = _SURROGATES.sub("\ufffd", text)
    for look_alike, schwa in _SCHWAS.items():
        text = text.replace(look_alike, schwa)
    return unicodedata.normalize("NFC", text)


def cut(text: str, limit: int) -> list[str]:
    """`text` in pieces of at most `limit` UTF-8 bytes, stripped and not empty; whole if it fits.

    Pieces end at paragraphs where they can, else at lines, sentences, words, and at last at any character.
    """
    text = text.strip()
    if len(text.encode("utf-8")) <= limit:
        return [text] if text else []
    pieces: list[str] = []
    unit_sizes = ((unit, len(unit.encode("utf-8"))) for unit in _units(text, limit, 0))
    open_piece: list[str] = []
    open_size = 0
    for unit, size in unit_sizes:
        if open_size + size > limit:
            pieces.append("".join(open_piece))
            open_piece, open_size = [], 0
        open_piece.append(unit)
        open_size += size
    pieces.append("".join(open_piece))
    return [piece for piece in map(str.strip, pieces) if piece]


def _units(text: str, limit: int, level: int) -> Iterator[str]:
    """`text` in parts that fit `limit`, split at the coarsest borders that do it."""
    if len(text.encode("utf-8")) <= limit:
        yield text
    elif level < len(_BORDERS):
        for part in _BORDERS[level].split(text):
            yield from _units(part, limit, level + 1)
    else:
        data = text.encode("utf-8")
        while data:
            head = data[:limit].decode("utf-8", errors="ignore")
            yield head
            data = data[len(head.encode("utf-8")) :]
