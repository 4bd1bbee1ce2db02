"""What a file really contains, whatever its name says: compression and kind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, cast

from azllm_lightning.cli.messages import tr

HEAD_BYTES = 1 << 16
"""Enough of a file to see what it is."""

_BUFFER_BYTES = 1 << 20
_ZSTD_STARTS = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + low, 0x2A, 0x4D, 0x18]) for low in range(16)))
_WEB_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*"  # one way to read comments
    rb"<(!doctype html|html|head|body)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_OFFICE = re.compile(rb"\[Content_Types\]\.xml|word/|xl/|ppt/|mimetypeapplication/(vnd|epub)")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
_MOST_CONTROLS = 0.02
"""The largest share of control characters that a text may have."""


def decompressed(raw: BinaryIO) -> BinaryIO:
    """The bytes of `raw`, which is at its start, uncompressed. Its first bytes say how.

    Browsers and servers unpack files, and pack them, without changing their names.
    """
    buffered = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES))
    head = cast(io.BufferedReader, buffered).peek(6)[:6]
    openers: dict[tuple[bytes, ...], Callable[[BinaryIO], object]] = {
        (b"\x1f\x8b",): gzip.open,
        (b"BZh",): bz2.open,
        (b"\xfd7zXZ\x00",): lzma.open,
        _ZSTD_STARTS: _open_zstd,
    }
    for starts, opener in openers.items():
        if head.startswith(starts):
            stream = cast(io.RawIOBase, opener(buffered))
            return cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES))
    return buffered


def beginning(data: bytes) -> bytes:
    """The first bytes of a file that begins with `data`, uncompressed; b"" if it is damaged."""
    try:
        return decompressed(io.BytesIO(data)).read(HEAD_BYTES)
    except Exception:  # each way to compress has its own
        return b""


def _open_zstd(stream: BinaryIO) -> object:
    """A reader that allows the long windows of dumps (zstd --long=31), as pyarrow's does not."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    window = zstd.DecompressionParameter.window_log_max
    return zstd.open(stream, "rb", options={window: window.bounds()[1]})


class Refused(NamedTuple):
    """A kind of file that is not text: how its first bytes show it, and what it is called, with the
    way out after a semicolon. The user guide has the same sentences.
    """

    begins: Callable[[bytes], bool]
    message: Callable[[], str]


def why_not_text(head: bytes) -> str | None:
    """What a file that begins with `head` is, and the way out; None if it may be text."""
    return next((kind.message() for kind in REFUSED if kind.begins(head)), None)


def _is_office(head: bytes) -> bool:
    is_old = head.startswith((b"{\\rtf", b"\xd0\xcf\x11\xe0"))
    return is_old or (head.startswith(b"PK\x03\x04") and _OFFICE.search(head) is not None)


def _is_archive(head: bytes) -> bool:
    starts = (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")
    return head.startswith(starts) or head[257:262] == b"ustar"


def _is_binary(head: bytes) -> bool:
    if unmarked_encoding(head) or head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return False
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return controls > max(16, _MOST_CONTROLS * len(head))


WEB_PAGE = Refused(
    lambda head: _WEB_PAGE.match(head) is not None,
    lambda: tr(
        "a web page, not the text itself; use the address of the file itself (often "
        "called raw or download), or save the page's text as .txt"
    ),
)

REFUSED = (
    Refused(
        lambda head: head.startswith(b"version https://git-lfs.github.com/spec/"),
        lambda: tr("a Git LFS pointer, not the text itself; run `git lfs pull` in its folder"),
    ),
    WEB_PAGE,
    Refused(
        lambda head: head.lstrip().startswith(b"<mediawiki"),
        lambda: tr(
            "a dump of a wiki in XML; for the text of Wikipedia use data=wikipedia, else extract "
            "the text as .txt, for example with wikiextractor"
        ),
    ),
    Refused(
        lambda head: head.startswith(b"%PDF"),
        lambda: tr("a PDF; convert it to text, for example with pdftotext"),
    ),
    Refused(
        _is_office,
        lambda: tr(
            "a document of an office program or an e-book; save it as plain text (.txt) in UTF-8, "
            "or from Excel as CSV UTF-8"
        ),
    ),
    Refused(_is_archive, lambda: tr("an archive of files; unpack it, and give the folder")),
    Refused(
        lambda head: head.startswith(b"PAR1"),
        lambda: tr("a Parquet file; give its name the ending .parquet"),
    ),
    Refused(_is_binary, lambda: tr("binary data, not text")),
)
"""All such kinds; the first that a file shows is what it is."""


def unmarked_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, by its NULs; None for anything else."""
    if head[:4096].count(0) < 0.01 * len(head[:4096]) or not head:
        return None
    sample = head[: len(head[:4096]) // 4 * 4]
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        plausible = sum(
            "\u0600" > char >= " " or char in "\t\r\n\u2013\u2014\u2019" for char in text
        )
        if text and plausible >= 0.95 * len(text):
            return encoding
    return None
