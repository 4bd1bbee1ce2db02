"""The stems of `lexicon.tsv`, and any form of theirs by a list of features."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m


class Entry(NamedTuple):
    """A line of the lexicon."""

    stem: str
    pos: str  # noun, name, pronoun, adjective, numeral, verb
    classes: tuple[str, ...]
    trait: str  # what no rule foretells: see morphology
    facts: dict[str, str]  # what the stories know of it


@cache
def lexicon(table: str = "lexicon.tsv") -> dict[str, Entry]:
    """All entries of a table by stem; verbs stand in their infinitive."""
    rows = read_tsv(table)
    return {
        row["stem"]: Entry(
            row["stem"],
            row["pos"],
            tuple(row["classes"].split()),
            row["trait"],
            dict(fact.split("=", 1) for fact in row["facts"].split(";") if fact),
        )
        for row in rows
    }


def read_tsv(name: str) -> list[dict[str, str]]:
    """The rows of a table that lies beside this file, by the names in its first line."""
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def inflect(entry: Entry, features: Iterable[str]) -> str:
    """The form of `entry` with these features, in any order.

    A case, `pl`, a possessor ("p1sg" to "p3pl"), a person ("1sg" to "3pl"), a form of morphology.FORMS, `neg`, one of
    morphology.DEGREES, `ord` (a numeral's place in a row), `is` (present copula, agreeing with the person), `mi`
    (question) and `too` (da, də). Raises ValueError for any other.
    """
    case, possessor, person, form, degree = "nom", None, "3sg", "inf", ""
    flags = set()
    for feature in features:
        if feature in m.CASES:
            case = feature
        elif feature in m.PERSONS:
            person = feature
        elif feature[0] == "p" and feature[1:] in m.PERSONS:
            possessor = feature[1:]
        elif feature in m.FORMS:
            form = feature
        elif feature in m.DEGREES:
            degree = feature
        elif feature in ("pl", "neg", "is", "mi", "too", "ord"):
            flags.add(feature)
        else:
            raise ValueError(f"unknown feature {feature!r} of {entry.stem!r}")
    if entry.pos == "pronoun":
        word = m.pronoun(entry.stem, case)
    elif entry.pos == "verb":
        word = m.verb(m.verb_stem(entry.stem, entry.trait), form, person, "neg" in flags)
        if case != "nom" or possessor:
            word = m.noun(m.noun_stem(word), case, "pl" in flags, possessor)
    else:
        stem = (
            m.noun_stem(m.ordinal(entry.stem))
            if "ord" in flags
            else m.noun_stem(entry.stem, entry.trait)
        )
        word = m.noun(stem, case, "pl" in flags, possessor)
    if degree:
        word = m.compare(word, degree)
    if "is" in flags:
        word = m.copula(word, person)
    if "mi" in flags:
        word = m.question(word)
    return m.also(word) if "too" in flags else word
