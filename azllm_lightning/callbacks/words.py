"""What a person reads in the terminal, in English or in Azerbaijani: the texts of `words.tsv`, one
key a line."""

from __future__ import annotations

import csv
from pathlib import Path

LANGUAGES = ("en", "az")


class Words:
    """The texts of one language: `words("resuming", path="a.ckpt", step=10)` fills the {fields} of
    a text in.

    Raises ValueError for a language that is not there.
    """

    def __init__(self, lang: str = "en") -> None:
        self.texts = {row["key"]: row[lang] for row in read_texts()}

    def __call__(self, key: str, **fields: object) -> str:
        """The text under `key` with `fields` in it."""
        return self.texts[key].format(**fields)


def read_texts() -> list[dict[str, str]]:
    """The rows of the table: key, en, az; format strings with the same fields in both languages."""
    with Path(__file__).with_name("words.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
