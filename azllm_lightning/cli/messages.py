"""Messages for users, in English and Azerbaijani.

The English text is written where it is used and is the key of its translation, as in gettext:
`tr("{path}: no such file", path=path)`. `messages.tsv` next to this file has the Azerbaijani; a
test compares it with every text in the code. `use_language` sets the language of the process.
"""

from __future__ import annotations

import csv
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from azllm_lightning.cli.ordinals import ordinal_suffix

LANGUAGES = ("en", "az")
ORDINAL = re.compile(r"(\{(\w+)[^}]*\})-cI\b")
"""A field in a translation that is an ordinal number: {step:,}-cI becomes 1-ci, 6-cı, 1,000-ci."""

TABLE = Path(__file__).with_name("messages.tsv")

_language: str | None = None


def language() -> str:
    """The language in use: as set by `use_language`, else $AZLLM_LANG, else English."""
    chosen = _language or os.environ.get("AZLLM_LANG", "en")
    return chosen if chosen in LANGUAGES else "en"


def use_language(lang: str | None) -> None:
    """Use `lang` for all further messages ("en" or "az"); None means $AZLLM_LANG, else English.

    Raises ValueError for any other language.
    """
    global _language
    if lang is not None:
        check_language(lang)
    _language = lang


def check_language(lang: str) -> None:
    """Raise ValueError for any `lang` but "en" and "az"; it names $AZLLM_LANG if that has it."""
    if lang in LANGUAGES:
        return
    choices = ", ".join(LANGUAGES)
    if lang == os.environ.get("AZLLM_LANG"):
        raise ValueError(
            tr(
                "the environment variable AZLLM_LANG={lang} is not one of {choices}",
                lang=lang,
                choices=choices,
            )
        )
    raise ValueError(tr("lang={lang} is not one of {choices}", lang=lang, choices=choices))


def tr(text: str, /, **fields: Any) -> str:
    """`text` in the language in use, with `fields` filled in as by `str.format`."""
    if language() != "en":
        text = translations().get(text, text)
        text = ORDINAL.sub(lambda found: f"{found[1]}-{ordinal_suffix(fields[found[2]])}", text)
    return text.format(**fields) if fields else text


def trn(singular: str, plural: str, count: int, /, **fields: Any) -> str:
    """`singular` if `count` is 1, else `plural`, as `tr` gives it; `count` is a field as well."""
    return tr(singular if count == 1 else plural, count=count, **fields)


def and_then(message: str, sentence: str) -> str:
    """`message`, which may end with a question, and after it a `sentence`."""
    return f"{message} {sentence}" if message.endswith(("?", ".")) else f"{message}. {sentence}"


@cache
def translations() -> dict[str, str]:
    """Azerbaijani by English text.

    In the table, \\n is a line break, \\t a tab, and \\\\ a backslash.
    """
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {_unescaped(row["en"]): _unescaped(row["az"]) for row in rows}


def _unescaped(cell: str) -> str:
    meanings = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\(.)", lambda match: meanings.get(match[1], match[0]), cell)
