"""The stems of `lexicon.tsv`, and their inflected forms by features."""

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
    trait: str  # what no rule predicts: see morphology
    facts: dict[str, str]  # stems that the stories connect with this one, by key


class _Features(NamedTuple):
    case: str = "nom"
    possessor: str | None = None
    person: str = "3sg"
    form: str = "inf"
    degree: str = ""
    flags: frozenset[str] = frozenset()


_FLAGS = ("pl", "neg", "is", "mi", "too", "ord")
INSTRUMENTAL = "ins"


@cache
def lexicon(table: str = "lexicon.tsv") -> dict[str, Entry]:
    """All entries of a table by stem; verbs are listed in the infinitive."""
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
    """The rows of a table in this folder, by the column names in its first line."""
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def inflect(entry: Entry, features: Iterable[str]) -> str:
    """The form of `entry` with these features, in any order.

    A case or `ins` ("with": Rəşadla, Leyla ilə), `pl`, a possessor ("p1sg" to "p3pl"), a person
    ("1sg" to "3pl"), a form of morphology.FORMS, `neg`, one of morphology.DEGREES, `ord` (ordinal
    of a numeral), `is` (present copula, agreeing with the person), `mi` (question) and `too`
    (da, də). Raises ValueError for any other.
    """
    chosen = _parse(entry, features)
    if entry.pos == "pronoun":
        word = _pronoun(entry, chosen)
    elif entry.pos == "verb":
        word = _verb(entry, chosen)
    else:
        word = _noun(_nominal_stem(entry, chosen), chosen)
    if chosen.degree:
        word = m.compare(word, chosen.degree)
    if "is" in chosen.flags:
        word = m.copula(word, chosen.person)
    if "mi" in chosen.flags:
        word = m.question(word)
    return m.also(word) if "too" in chosen.flags else word


def _parse(entry: Entry, features: Iterable[str]) -> _Features:
    values: dict[str, str] = {}
    flags = set()
    for feature in features:
        if feature in _FLAGS:
            flags.add(feature)
        elif feature[0] == "p" and feature[1:] in m.PERSONS:
            values["possessor"] = feature[1:]
        else:
            values[_kind(entry, feature)] = feature
    return _Features(**values, flags=frozenset(flags))


def _kind(entry: Entry, feature: str) -> str:
    kinds = {
        "case": (*m.CASES, INSTRUMENTAL),
        "person": m.PERSONS,
        "form": m.FORMS,
        "degree": m.DEGREES,
    }
    for kind, values in kinds.items():
        if feature in values:
            return kind
    raise ValueError(f"unknown feature {feature!r} of {entry.stem!r}")


def _pronoun(entry: Entry, chosen: _Features) -> str:
    if chosen.case != INSTRUMENTAL:
        return m.pronoun(entry.stem, chosen.case)
    plural = entry.stem.endswith("lar")  # onlarla, but mənimlə, onunla
    return m.instrumental(m.pronoun(entry.stem, "nom" if plural else "gen"))


def _verb(entry: Entry, chosen: _Features) -> str:
    stem = m.verb_stem(entry.stem, entry.trait)
    word = m.verb(stem, chosen.form, chosen.person, "neg" in chosen.flags)
    declined = chosen.case != "nom" or chosen.possessor
    return _noun(m.noun_stem(word), chosen) if declined else word


def _nominal_stem(entry: Entry, chosen: _Features) -> m.Stem:
    if "ord" in chosen.flags:
        return m.noun_stem(m.ordinal(entry.stem))
    return m.noun_stem(entry.stem, entry.trait)


def _noun(stem: m.Stem, chosen: _Features) -> str:
    plural = "pl" in chosen.flags
    if chosen.case == INSTRUMENTAL:
        return m.instrumental(m.noun(stem, "nom", plural, chosen.possessor))
    return m.noun(stem, chosen.case, plural, chosen.possessor)
