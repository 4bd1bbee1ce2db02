"""The language of a document, by py3langid (Lui and Baldwin, 2012: langid.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.cleaning import is_mostly_cyrillic

MIN_LETTERS = 20
"""Documents with fewer letters are kept: they are too short to be sure."""

_MAX_PROBABILITY = 0.05
_SAMPLE_CHARS = 500
# py3langid knows Azerbaijani in Latin letters. Cyrillic ə and one of these occur in no other
# language.
_CYRILLIC_AZERBAIJANI = re.compile("[јҹҝ]", re.IGNORECASE)
# The only Turkic language besides Uyghur that it knows in Arabic letters, Southern Uzbek: it takes
# Azerbaijani in these letters for this one, and neither for Persian nor for Arabic.
_ARABIC_AZERBAIJANI = "uzs"


def other_languages(texts: Iterable[str], wanted: Collection[str]) -> list[str]:
    """For each text, the code of its language if that is surely none of `wanted`, else "".

    A text is judged by 500 characters of its beginning and 500 of its middle. Its language is
    surely another one if those wanted have a probability below 0.05 together.
    """
    return [_other_language(text, wanted) for text in texts]


def _other_language(text: str, wanted: Collection[str]) -> str:
    sample = text
    if len(text) > 2 * _SAMPLE_CHARS:
        middle = len(text) // 2
        sample = f"{text[:_SAMPLE_CHARS]}\n{text[middle : middle + _SAMPLE_CHARS]}"
    if sum(map(str.isalpha, sample)) < MIN_LETTERS or _is_wanted_cyrillic(sample, wanted):
        return ""
    ranked = _identifier().rank(sample)
    accepted = {*wanted, _ARABIC_AZERBAIJANI} if "az" in wanted else wanted
    probability = sum(share for language, share in ranked if language in accepted)
    best = str(ranked[0][0])
    return best if probability < _MAX_PROBABILITY and best not in accepted else ""


def _is_wanted_cyrillic(text: str, wanted: Collection[str]) -> bool:
    return (
        "az" in wanted
        and is_mostly_cyrillic(text)
        and "ә" in text.lower()
        and _CYRILLIC_AZERBAIJANI.search(text) is not None
    )


def check_languages(wanted: Iterable[str]) -> None:
    """Raise ValueError for a code that py3langid does not know."""
    known = set(_identifier().labels)
    for code in wanted:
        if code not in known:
            raise ValueError(
                tr(
                    "data.languages: the language {code} is not known; known are {known}",
                    code=code,
                    known=" ".join(sorted(known)),
                )
            )


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
