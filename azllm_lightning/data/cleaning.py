"""Cleaning a text, and splitting a long one into pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_LINE_BREAKS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
# Half characters, which a JSON escape can spell and UTF-8 cannot.
_SURROGATES = re.compile("[\ud800-\udfff]")
# Cyrillic schwa and turned e look like ə; old keyboards and fonts used them in its place.
_SCHWAS = {"\u04d9": "ə", "\u01dd": "ə", "\u04d8": "Ə", "\u018e": "Ə"}
_BOUNDARIES = tuple(
    re.compile(f"(?<={boundary})") for boundary in (r"\n\n", r"\n", r"[.!?…]\s", r"\s")
)


def clean(text: str) -> str:
    """`text` in NFC, with one kind of line break and schwa, and no controls but newline and tab."""
    # Whatever the patterns match is not printable, so one quick check is enough for most texts.
    if not text.replace("\n", "").isprintable():
        text = _LINE_BREAKS.sub("\n", text.replace("\r\n", "\n"))
        text = _CONTROLS.sub("", text)
        text = _SURROGATES.sub("\ufffd", text)
    for look_alike, schwa in _SCHWAS.items():
        text = text.replace(look_alike, schwa)
    return unicodedata.normalize("NFC", text)


def cut(text: str, limit: int) -> list[str]:
    """Split `text` into stripped, non-empty pieces of at most `limit` UTF-8 bytes.

    Pieces end at paragraphs if possible, else at lines, sentences, words, or any character.
    """
    text = text.strip()
    if len(text.encode("utf-8")) <= limit:
        return [text] if text else []
    pieces: list[str] = []
    current: list[str] = []
    current_size = 0
    for unit in _units(text, limit, 0):
        size = len(unit.encode("utf-8"))
        if current_size + size > limit:
            pieces.append("".join(current))
            current = []
            current_size = 0
        current.append(unit)
        current_size += size
    pieces.append("".join(current))
    return [piece for piece in map(str.strip, pieces) if piece]


def _units(text: str, limit: int, level: int) -> Iterator[str]:
    """`text` in parts of at most `limit` bytes, split at the coarsest boundaries that allow it."""
    if len(text.encode("utf-8")) <= limit:
        yield text
    elif level < len(_BOUNDARIES):
        for part in _BOUNDARIES[level].split(text):
            yield from _units(part, limit, level + 1)
    else:
        data = text.encode("utf-8")
        while data:
            head = data[:limit].decode("utf-8", errors="ignore")
            yield head
            data = data[len(head.encode("utf-8")) :]
