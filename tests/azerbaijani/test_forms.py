"""`forms.tsv`: forms written by hand, each with its rule, against generator and analyser."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani import suffixes as s
from azllm_lightning.azerbaijani.analyser import analyse, stems
from azllm_lightning.azerbaijani.lexicon import Entry, derive, inflect

with (Path(__file__).parent / "forms.tsv").open(encoding="utf-8", newline="") as table:
    ROWS = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
RULES = sorted({row["rule"] for row in ROWS})
IMPLIED = {"3sg", "nom"}  # features that need not be named


def features(row: dict[str, str]) -> list[str]:
    return row["features"].split(".")


@cache
def by_stem() -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in stems():
        found.setdefault(entry.stem, []).append(entry)
    return found


def entries(stem: str) -> list[Entry]:
    return by_stem()[stem]


def made(row: dict[str, str]) -> set[str]:
    """The forms of every entry with the stem: doğru is an adjective and a postposition."""
    found = set()
    for entry in entries(row["stem"]):
        with suppress(ValueError):  # a derivation that does not follow the other one
            found.add(inflect(entry, features(row)))
    return found


def test_the_table_is_large_and_has_no_row_twice() -> None:
    assert len(ROWS) > 1000
    assert len(RULES) > 90
    assert max(Counter((row["stem"], row["features"]) for row in ROWS).values()) == 1


def test_the_table_has_every_feature() -> None:
    named = {feature for row in ROWS for feature in features(row)}
    expected = {*m.FORMS, *m.CASES, *m.PERSONS, *m.DEGREES, *s.VOICES, *s.DERIVATIONS, *s.UP_TO}
    expected |= {f"p{person}" for person in m.PERSONS}
    expected |= set(
        "equ ins pl neg is was heard if joined mi too ord dist ki kilər gil voc".split()
    )
    assert named == expected


@pytest.mark.parametrize("rule", RULES)
def test_forms_are_generated(rule: str) -> None:
    for row in ROWS:
        if row["rule"] == rule:
            assert row["form"] in made(row), row


@pytest.mark.parametrize("rule", RULES)
def test_forms_are_analysed(rule: str) -> None:
    for row in ROWS:
        if row["rule"] == rule and " " not in row["form"]:
            found = [
                set(one.features) - IMPLIED
                for one in analyse(row["form"])
                if one.stem == row["stem"]
            ]
            assert set(features(row)) - IMPLIED in found, row


def test_a_derivation_follows_only_some_words() -> None:
    (entry,) = entries("getmək")
    with pytest.raises(ValueError, match="-lı does not follow 'getmək', a verb"):
        derive(entry, "lı")
