"""The stems of `lexicon.tsv`, and their inflected forms by features."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani import suffixes as s


class Entry(NamedTuple):
    """A line of the lexicon."""

    stem: str
    pos: str  # noun, name, pronoun, adjective, numeral, verb; adverb, particle
    classes: tuple[str, ...]
    trait: str  # what no rule predicts: see morphology
    facts: dict[str, str]  # stems that the stories connect with this one, by key


class _Features(NamedTuple):
    case: str = "nom"
    possessor: str | None = None
    person: str = "3sg"
    form: str = "inf"
    degree: str = ""
    derivation: str = ""
    voices: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()


INSTRUMENTAL = s.INSTRUMENTAL
_FLAGS = frozenset(
    [*"pl neg is was heard if joined mi too ord dist ki kilər gil voc".split(), *s.UP_TO]
)
_KINDS = {
    "case": (*m.CASES, s.EQUATIVE, INSTRUMENTAL),
    "person": m.PERSONS,
    "form": m.FORMS,
    "degree": tuple(m.DEGREES),
    "derivation": tuple(s.DERIVATIONS),
}


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

    A case, `equ` (fikrincə) or `ins` ("with": Rəşadla, Leyla ilə); `pl`; a possessor ("p1sg" to
    "p3pl"); `gil` (dayımgil, "my uncle's"); `dək` or `can` after the dative (evədək, evəcən); `ki`
    of a place or time, `kilər` its plural (evdəki, evdəkilərə).
    A person ("1sg" to "3pl"), a form of morphology.FORMS, voices of suffixes.VOICES, `neg`.
    One of morphology.DEGREES; `ord` and `dist` of a numeral (beşinci, beş-beş); a derivation of
    suffixes.DERIVATIONS.
    As a predicate: `is` (agrees with the person), `was` and `heard` (idi, imiş; `joined`: evdəydi),
    `if` (gedirsə; evdə isə); then `mi` (question). `too` (da, də); `voc` (ay ana).
    Raises ValueError for any other.
    """
    chosen = _parse(entry, features)
    if chosen.derivation:
        entry = derive(entry, chosen.derivation)
    if entry.trait == "compound" and not chosen.possessor:
        chosen = chosen._replace(possessor="3sg")
    if entry.pos == "pronoun":
        word = _pronoun(entry, chosen)
    elif entry.pos == "adverb" and chosen.flags & {"ki", "kilər"}:
        word = m.relative(entry.stem, chosen.case, "kilər" in chosen.flags)
    elif entry.pos == "verb":
        word = _verb(entry, chosen)
    else:
        word = _noun(_nominal_stem(entry, chosen), chosen)
    if chosen.degree:
        word = m.compare(word, chosen.degree)
    word = _predicate(entry, word, chosen)
    if "mi" in chosen.flags:
        word = m.question(word)
    if "voc" in chosen.flags:
        word = m.vocative(word)
    return m.also(word) if "too" in chosen.flags else word


def derive(entry: Entry, derivation: str) -> Entry:
    """The entry of a word made of `entry` by one of suffixes.DERIVATIONS: dost gives dostluq.

    Raises ValueError if the suffix does not follow such a word.
    """
    suffix, after, gives = s.DERIVATIONS[derivation]
    if entry.pos not in after:
        raise ValueError(f"-{derivation} does not follow {entry.stem!r}, a {entry.pos}")
    oblique = m.noun_stem(entry.stem, entry.trait).oblique
    stem = m.attach(entry.stem, suffix, oblique)
    if entry.pos == "name":  # Bakı, but bakılı
        stem = m.lower(stem[0]) + stem[1:]
    if gives == "verb":
        stem = m.verb(m.Stem(stem, stem), "inf")
    return Entry(stem, gives, (), "", {})


def _parse(entry: Entry, features: Iterable[str]) -> _Features:
    values: dict[str, str] = {}
    voices = set()
    flags = set()
    for feature in features:
        if feature in _FLAGS:
            flags.add(feature)
        elif feature in s.VOICES:
            voices.add(feature)
        elif feature[0] == "p" and feature[1:] in m.PERSONS:
            values["possessor"] = feature[1:]
        else:
            values[_kind(entry, feature)] = feature
    in_order = tuple(voice for voice in s.VOICES if voice in voices)
    return _Features(**values, voices=in_order, flags=frozenset(flags))


def _kind(entry: Entry, feature: str) -> str:
    for kind, values in _KINDS.items():
        if feature in values:
            return kind
    raise ValueError(f"unknown feature {feature!r} of {entry.stem!r}")


def _pronoun(entry: Entry, chosen: _Features) -> str:
    if chosen.flags & {"ki", "kilər"}:
        owner = m.pronoun(entry.stem, "gen", entry.trait)
        return m.relative(owner, chosen.case, "kilər" in chosen.flags)  # mənimki
    if chosen.possessor or "pl" in chosen.flags:  # özüm, kimlər
        return _noun(m.noun_stem(entry.stem, entry.trait), chosen)
    if chosen.case not in (INSTRUMENTAL, s.EQUATIVE):
        return m.pronoun(entry.stem, chosen.case, entry.trait)
    if chosen.case == s.EQUATIVE:
        return m.attach(m.pronoun_base(entry.stem), s.CASE[s.EQUATIVE])
    plural = entry.stem.endswith("lar")  # onlarla, but mənimlə, onunla
    return m.instrumental(m.pronoun(entry.stem, "nom" if plural else "gen", entry.trait))


def _verb(entry: Entry, chosen: _Features) -> str:
    stem = m.verb_stem(entry.stem, entry.trait)
    for voice in chosen.voices:
        stem = m.voiced(stem, voice)
    negative = "neg" in chosen.flags
    if chosen.form == "nec" and chosen.flags & {"was", "heard"}:
        return m.verb(stem, "part_nec", negative=negative)  # gəlməli idim
    third = "is" in chosen.flags and chosen.person[0] == "3"  # gəlmişdirlər, not gəlmişlərdirlər
    person = "3sg" if third else chosen.person
    word = m.verb(stem, chosen.form, person, negative)
    if chosen.form not in s.DECLINED:
        return word
    trait = "keep" if chosen.form == "part_aor" else ""
    return _noun(m.noun_stem(word, trait), chosen)


def _predicate(entry: Entry, word: str, chosen: _Features) -> str:
    finite = entry.pos == "verb" and chosen.form in s.FINITE
    if "is" in chosen.flags:
        bare = word == entry.stem and entry.trait == "keep"
        word = m.copula(word, chosen.person, word if bare else None)
    for flag, joined in (("was", s.JOINED_PAST), ("heard", s.JOINED_HEARSAY)):
        if flag in chosen.flags and "joined" in chosen.flags:
            word = m.joined_copula(word, joined, chosen.person)
        elif flag in chosen.flags:
            word = f"{word} {m.past_copula(chosen.person, hearsay=flag == 'heard')}"
    if "if" in chosen.flags:
        if finite or "is" in chosen.flags:
            return m.attach(word, s.IF)
        return m.attach(word, s.JOINED_IF) if "joined" in chosen.flags else f"{word} isə"
    return word


def _nominal_stem(entry: Entry, chosen: _Features) -> m.Stem:
    if "ord" in chosen.flags:
        return m.noun_stem(m.ordinal(entry.stem))
    if "dist" in chosen.flags:
        return m.noun_stem(m.distributive(entry.stem), "keep")
    if entry.trait == "compound":  # ana dili, but mənim ana dilim
        before, _, _ = entry.stem.rpartition(" ")
        return m.noun_stem(f"{before} {entry.facts['head']}")
    return m.noun_stem(entry.stem, entry.trait)


def _noun(stem: m.Stem, chosen: _Features) -> str:
    plural = "pl" in chosen.flags
    if "ki" in chosen.flags or "kilər" in chosen.flags:
        place = m.noun(stem, "loc", plural, chosen.possessor)
        return m.relative(place, chosen.case, "kilər" in chosen.flags)
    if "gil" in chosen.flags:
        home = m.noun(stem, "nom", plural, chosen.possessor) + s.HOME
        return m.noun(m.noun_stem(home), chosen.case)
    word = m.noun(stem, chosen.case, plural, chosen.possessor)
    for flag, suffix in s.UP_TO.items():
        if flag in chosen.flags:
            word = m.attach(word, suffix)
    return word
