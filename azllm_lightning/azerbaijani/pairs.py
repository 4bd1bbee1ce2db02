"""Minimal pairs: two Azerbaijani sentences that differ in one thing, the one right and the other wrong.

In the manner of BLiMP (Warstadt et al., 2020; arXiv:1912.00582): a model that knows the rule finds the right sentence
the likelier one. `pairs_lexicon.tsv` holds the stems, none of which the tales know, and `pairs.tsv` the frames, by
phenomenon. A slot `{class:features}` is filled with every stem of its class in turn; the features are those of
`lexicon.inflect`. The one slot `{class:features|wrong}` is where the sentences differ: `wrong` is other features, or a
rule of RULES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon, read_tsv

PAIRS_OF_EACH = 100
"""Pairs of each phenomenon."""

_SLOT = re.compile(r"\{(\w+):?([\w.]*)\|?([\w.]*)\}")
_OTHER_BACKNESS = str.maketrans("aəeıioöuü", "əaaiıöoüu")
_OTHER_ROUNDING = str.maketrans("aəeıioöuü", "uüüuüıiıi")


class Pair(NamedTuple):
    """Two sentences; `right_form` and `wrong_form` are the words that part them."""

    phenomenon: str
    right: str
    wrong: str
    right_form: str
    wrong_form: str


@cache
def minimal_pairs() -> tuple[Pair, ...]:
    """PAIRS_OF_EACH pairs of each phenomenon, always the same, phenomenon by phenomenon."""
    found: dict[str, dict[str, Pair]] = {}
    for row in read_tsv("pairs.tsv"):
        for pair in _fill(row["phenomenon"], row["frame"]):
            found.setdefault(pair.phenomenon, {})[pair.right] = pair
    chosen: list[Pair] = []
    for phenomenon, pairs in found.items():
        assert len(pairs) >= PAIRS_OF_EACH, f"{phenomenon} has only {len(pairs)} pairs"
        # By a hash, since all frames and stems are to be among the first hundred.
        by_hash = sorted(pairs, key=lambda right: blake2b(right.encode("utf-8")).digest())
        chosen += (pairs[right] for right in by_hash[:PAIRS_OF_EACH])
    return tuple(chosen)


def _fill(phenomenon: str, frame: str) -> Iterator[Pair]:
    """Every pair that a frame makes."""
    slots = _SLOT.findall(frame)
    text = _SLOT.sub("{}", frame)
    (at,) = (i for i, (_, _, wrong) in enumerate(slots) if wrong)
    for entries in product(*(_members(name) for name, _, _ in slots)):
        rights = [
            inflect(entry, _split(slot[1])) for entry, slot in zip(entries, slots, strict=True)
        ]
        wrong = _wrong(entries[at], _split(slots[at][1]), slots[at][2])
        if wrong is not None and wrong != rights[at]:
            wrongs = [*rights[:at], wrong, *rights[at + 1 :]]
            right_text, wrong_text = (
                m.capitalize(text.format(*forms)) for forms in (rights, wrongs)
            )
            yield Pair(phenomenon, right_text, wrong_text, rights[at], wrong)


@cache
def _members(name: str) -> list[Entry]:
    return [entry for entry in lexicon("pairs_lexicon.tsv").values() if name in entry.classes]


def _split(features: str) -> list[str]:
    return features.split(".") if features else []


def _wrong(entry: Entry, features: list[str], how: str) -> str | None:
    return RULES[how](entry, features) if how in RULES else inflect(entry, how.split("."))


def _disharmony(entry: Entry, features: list[str]) -> str | None:
    """Suffixes that agree with a stem of back vowels after front ones, and the other way round: ölkədə, ölkəda."""
    return _as_if(entry, features, _OTHER_BACKNESS)


def _rounding(entry: Entry, features: list[str]) -> str | None:
    """The same of rounded vowels: qanunu, qanunı."""
    return _as_if(entry, features, _OTHER_ROUNDING)


def _as_if(entry: Entry, features: list[str], other: dict[int, int]) -> str:
    """The form of `entry` with the suffixes that its stem would take if its last vowel were another."""
    ending = entry.stem[-3:] if entry.pos == "verb" else ""
    stem = entry.stem.removesuffix(ending)
    at = max(i for i, letter in enumerate(stem) if letter in m.VOWELS)
    changed = stem[:at] + stem[at].translate(other) + stem[at + 1 :]
    form = inflect(entry._replace(stem=changed + ending), features)
    return inflect(entry, features)[: len(stem)] + form[len(stem) :]


def _keep_k(entry: Entry, features: list[str]) -> str | None:
    """k before a vowel: birliki for birliyi."""
    return _keep_last(entry, features, "k")


def _keep_q(entry: Entry, features: list[str]) -> str | None:
    """q before a vowel: azadlıqı for azadlığı."""
    return _keep_last(entry, features, "q")


def _keep_last(entry: Entry, features: list[str], letter: str) -> str | None:
    form = inflect(entry, features)
    return entry.stem + form[len(entry.stem) :] if entry.stem.endswith(letter) else None


def _buffer_y(entry: Entry, features: list[str]) -> str | None:
    """y between vowels where n or s belongs: ölkəyin for ölkənin."""
    form, end = inflect(entry, features), len(entry.stem)
    return f"{form[:end]}y{form[end + 1 :]}" if entry.stem[-1] in m.VOWELS else None


def _no_n(entry: Entry, features: list[str]) -> str | None:
    """No n between the possessive of the third person and a case: romanıda for romanında."""
    owned = inflect(entry, ["p3sg"])
    return owned + inflect(entry, features)[len(owned) + 1 :]


def _question_first(entry: Entry, features: list[str]) -> str | None:
    """The question before the person: gecikirmisən for gecikirsənmi."""
    tense, person = features[:2]
    return m.copula(m.question(inflect(entry, [tense])), person)


RULES = {
    "disharmony": _disharmony,
    "rounding": _rounding,
    "k": _keep_k,
    "q": _keep_q,
    "buffer": _buffer_y,
    "n": _no_n,
    "question": _question_first,
}
"""How a slot goes wrong by other means than other features."""
