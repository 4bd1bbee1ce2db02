"""Words of a command line as the shells of this system read and pass them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence

PLAIN_ON_WINDOWS = re.compile(r"[\w.:=+/\\-]+")
"""What neither cmd.exe nor PowerShell acts on; letters are those of any alphabet."""

QUOTED_WHOLE = re.compile(r"'.+'", re.DOTALL)


def for_shell(word: str) -> str:
    """`word` as a shell of this system reads it.

    Bytes that are not UTF-8 become $'...', which bash and zsh know. On Windows both cmd.exe and
    PowerShell read it, but for $ and % in it, which each of them expands in its own way.
    """
    if sys.platform == "win32":
        return _for_windows(word)
    raw = os.fsencode(word) if "\\udc" in ascii(word) else b""
    if not raw:
        return shlex.quote(word)
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_=./,:@%+- "
    return "$'" + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in raw) + "'"


def _for_windows(word: str) -> str:
    """`word` in double quotes if it has a space, or a sign that one of the shells acts on."""
    if PLAIN_ON_WINDOWS.fullmatch(word):
        return word
    # Backslashes are literal unless a quote follows; those are doubled.
    inside = re.sub(r'(\\*)"', r'\1\1""', word)
    inside = re.sub(r"(\\+)\Z", r"\1\1", inside)
    return f'"{inside}"'


def without_foreign_quotes(args: Sequence[str]) -> list[str]:
    """`args` as they were meant: cmd.exe passes the single quotes of other shells on."""
    if sys.platform == "win32":
        args = [arg[1:-1] if QUOTED_WHOLE.fullmatch(arg) else arg for arg in args]
    return list(args)
