"""Cleaning a text, and splitting a long one into pieces."""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

EOT = "<|endoftext|>"
"""Marks the end of a document, in files too."""

_LINE_BREAKS = re.compile("[\r\x0b\x0c\u2028\u2029]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Controls, soft hyphens, zero-width spaces, marks of direction, byte order marks, tags. Letters and
# marks of other scripts that are invisible (fillers of Hangul, variation selectors) stay.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff0-\ufffb\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
# At the end of a line, a soft hyphen is the hyphen of a word that continues on the next one.
_BROKEN_WORD = re.compile(r"\xad+[ \t]*\n[ \t]*(?=[^\W\d_])")
# Joiners shape Arabic letters and emoji, and mean nothing next to letters of ours.
_JOINERS = re.compile("(?<=[\x20-\u052f])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x20-\u052f])")
# Half characters, which a JSON escape can spell and UTF-8 cannot.
_SURROGATES = re.compile("[\ud800-\udfff]")

_CYRILLIC = re.compile("[\u0400-\u052f]")
_LATIN_LETTER = "[A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\u024f\u0259]"
# A Cyrillic letter next to a Latin one. It begins with one class, which `re` looks for fast.
_NEIGHBORS = re.compile(rf"[\u0400-\u052f](?:(?={_LATIN_LETTER})|(?<={_LATIN_LETTER}.))")
_LETTERS = re.compile(r"[^\W\d_]*")
_LOOK_ALIKES = dict(
    zip(
        "АВЕЅІЈКМНОРСТУХҮҺԚԜӘаеѕіјорсухһԛԝәӏ",
        "ABESIJKMHOPCTYXYHQWƏaesijopcyxhqwəl",
        strict=True,
    )
)
_TO_LATIN = str.maketrans(_LOOK_ALIKES)
_TO_CYRILLIC = str.maketrans(
    {
        latin: letter
        for letter, latin in reversed(_LOOK_ALIKES.items())
        if letter not in "ЅІԚԜѕіԛԝӏ"  # of other languages than Azerbaijani and Russian
    }
)
_BOUNDARIES = tuple(re.compile(end) for end in (r"\n\n+", r"\n", r"[.!?…]\s", r"\s"))
_GARBLED = ("É™", "É\x99", "Ã¶", "Ã¼", "Ã§")  # ə, ö, ü, ç
_GARBLED_AS_RUSSIAN = ("Й™", "Г¶", "Г§", "Д±")  # ə, ö, ç, ı
# A ? within a word, not that of a URL. It begins with one sign, which `re` looks for fast.
_LOST = re.compile(r"\?(?<=[^\W\d_]\?)(?=[^\W\d_]+(?![\w=&/]))")
# On a line of its own, at the edge of a line, or between two texts without a space: there it ends
# a document. Within a line, with a space or a quotation mark next to it, a text writes about it.
_MARKER = re.compile(
    r"\s*(?:\A|\n)[ \t]*<\|endoftext\|>\s*"
    r"|\s*<\|endoftext\|>[ \t]*(?:\n\s*|\Z)"
    r"|(?<![\s`«“‘])<\|endoftext\|>(?![\s`»”’])"
)


def clean(text: str, counts: Counter[str] | None = None) -> str:
    """`text` in NFC, without controls and other invisible signs, and with each word in one script.

    There is one kind of line break and of space, and no control but newline and tab; those that are
    signs of Windows (U+0092) become these. A word of Latin letters with Cyrillic look-alikes among
    them becomes Latin, and the other way round; a word that cannot be in one script is left as it
    is. `counts["mended_words"]` is added to.
    """
    # Whatever the patterns match is not printable, so one quick check is enough for most texts.
    if not text.replace("\n", "").isprintable():
        text = _LINE_BREAKS.sub("\n", text.replace("\r\n", "\n"))
        text = _SPACES.sub(" ", text)
        if "\xad" in text:
            text = _BROKEN_WORD.sub("", text)
        text = _INVISIBLE.sub(_visible, text)
        if "\u200c" in text or "\u200d" in text:
            text = _JOINERS.sub("", text)
        text = _SURROGATES.sub("\ufffd", text)
    text = unicodedata.normalize("NFC", text)
    if "\u0307" in text:  # what Python's lower() and others make of İ
        text = text.replace("i\u0307", "i")
    # turned e, which old keyboards and fonts had in the place of ə
    text = text.replace("\u01dd", "ə").replace("\u018e", "Ə")
    has_mixed_words = _may_have_cyrillic(text) and _NEIGHBORS.search(text)  # the first is faster
    if has_mixed_words and not _has_any(text, _GARBLED_AS_RUSSIAN):  # whose В» is a »
        text = _mend_words(text, counts)
    return text


def _visible(found: re.Match[str]) -> str:
    """What is meant by an invisible sign: one of Windows that was read as ISO 8859, or nothing."""
    sign = found[0]
    return sign.encode("latin-1").decode("cp1252", "ignore") if "\x80" <= sign <= "\x9f" else ""


def _may_have_cyrillic(text: str) -> bool:
    """False only if no letter of `text` is Cyrillic.

    In UTF-16, Cyrillic letters have a byte 4 or 5, and other letters hardly ever. Searching for a
    byte is several times faster than for a class of characters.
    """
    data = text.encode("utf-16", errors="surrogatepass")
    return b"\x04" in data or b"\x05" in data


def _mend_words(text: str, counts: Counter[str] | None) -> str:
    """`text` with each of its words that mix scripts in one, where that is possible."""
    mended = []
    done = 0
    for neighbors in _NEIGHBORS.finditer(text):
        start = neighbors.start()
        if start < done:
            continue
        while start > done and text[start - 1].isalpha():
            start -= 1
        word = _LETTERS.match(text, start)
        assert word is not None
        mended += [text[done:start], _in_one_script(word[0], counts)]
        done = word.end()
    return "".join([*mended, text[done:]])


def _in_one_script(word: str, counts: Counter[str] | None) -> str:
    latin = word.translate(_TO_LATIN)
    cyrillic = word.translate(_TO_CYRILLIC)
    is_latin = not _CYRILLIC.search(latin)
    is_cyrillic = len(_CYRILLIC.findall(cyrillic)) == len(word)
    if not (is_latin or is_cyrillic):
        return word
    if counts is not None:
        counts["mended_words"] += 1
    if is_latin and is_cyrillic:  # look-alikes only: by the script of most of them
        is_latin = 2 * len(_CYRILLIC.findall(word)) <= len(word)
    return latin if is_latin else cyrillic


def is_mostly_cyrillic(text: str) -> bool:
    """Whether at least half of the letters of `text` are Cyrillic, judged by its beginning."""
    start = text[:200]
    if not _may_have_cyrillic(start):
        return False
    found = len(_CYRILLIC.findall(start))
    return found > 0 and 2 * found >= sum(map(str.isalpha, start))


def is_garbled(text: str) -> bool:
    """Whether a raw text seems to be UTF-8 that was read as cp1252 or cp1251, and saved again."""
    return _has_any(text, _GARBLED) or _has_any(text, _GARBLED_AS_RUSSIAN)


def has_lost_letters(text: str) -> bool:
    """Whether letters of a raw text seem to have become ? when it was saved: ə has no place in
    cp1254, the encoding of Windows in Azerbaijan.
    """
    lost = len(_LOST.findall(text))
    return lost >= 3 and lost > text.count("ə") and 10 * lost >= len(text.split())


def _has_any(text: str, pairs: Iterable[str]) -> bool:
    # one character is searched for faster than two
    return any(pair[0] in text and pair in text for pair in pairs)


def split_at_markers(text: str) -> list[str]:
    """`text` split at each <|endoftext|> that ends a document, not at one within a sentence."""
    return _MARKER.split(text) if EOT in text else [text]


def cut(text: str, limit: int) -> list[str]:
    """Split `text` into stripped, non-empty pieces of at most `limit` UTF-8 bytes.

    Pieces end at paragraphs if possible, else at lines, sentences, words, or any character. Of the
    places in the second half of a piece the text itself chooses one (content-defined chunking), so
    that another copy of the text, with a foreword or without a chapter, soon has the same pieces.
    """
    text = text.strip()
    # a character has at most 4 bytes
    if 4 * len(text) <= limit or len(text.encode("utf-8")) <= limit:
        return [text] if text else []
    pieces: list[str] = []
    current: list[bytes] = []
    current_size = 0
    for unit in _units(text, limit, 0):
        data = unit.encode("utf-8")
        while current_size + len(data) > limit:
            count = _units_of_a_piece(current, limit)
            pieces.append(b"".join(current[:count]).decode("utf-8"))
            current = current[count:]
            current_size = sum(map(len, current))
        current.append(data)
        current_size += len(data)
    pieces.append(b"".join(current).decode("utf-8"))
    return [piece for piece in map(str.strip, pieces) if piece]


def _units_of_a_piece(units: Sequence[bytes], limit: int) -> int:
    """How many of `units`, at most `limit` bytes, make a piece."""
    ends = list(itertools.accumulate(map(len, units)))
    late = [count for count, end in enumerate(ends, start=1) if 2 * end >= limit]
    return min(late or [len(units)], key=lambda count: zlib.crc32(_words(units[count - 1])))


def _words(unit: bytes) -> bytes:
    """`unit` without what differs between two copies of it: the spaces and line breaks."""
    return b" ".join(unit.split())


def _units(text: str, limit: int, level: int) -> Iterator[str]:
    """`text` in parts of at most `limit` bytes, split at the coarsest boundaries that allow it."""
    if 4 * len(text) <= limit or len(text.encode("utf-8")) <= limit:
        yield text
    elif level < len(_BOUNDARIES):
        start = 0
        for boundary in _BOUNDARIES[level].finditer(text):
            unit = text[start : boundary.end()]
            start = boundary.end()
            if 4 * len(unit) <= limit:  # the common case, without a generator more
                yield unit
            else:
                yield from _units(unit, limit, level + 1)
        yield from _units(text[start:], limit, level + 1)
    else:
        data = text.encode("utf-8")
        while data:
            head = data[:limit].decode("utf-8", errors="ignore")
            yield head
            data = data[len(head.encode("utf-8")) :]
