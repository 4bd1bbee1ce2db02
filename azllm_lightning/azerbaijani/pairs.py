"""Minimal pairs: two Azerbaijani sentences that differ in one word, one right and the other wrong.

As in BLiMP (Warstadt et al., 2020; arXiv:1912.00582): a model that knows the rule assigns the right
sentence the higher probability. `pairs_lexicon.tsv` holds the stems, none of which occur in the
tales, `pairs.tsv` the frames by phenomenon, and `pairs_phenomena.tsv` the names of the phenomena. A
slot `{class:features}` is filled with every stem of its class in turn; the features are those of
`lexicon.inflect`. The sentences differ in the one slot `{class:features|wrong}`: `wrong` is other
features, or a rule of RULES.

Two caveats. In negation, person_agreement and possessor_agreement the wrong sentence can be the
shorter one, which a comparison of total probabilities favors. question_order is the written norm
(gecikirsənmi): songs, older prose and dialects have the other order (gecikirmisən), too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import Literal, NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon, read_tsv

PAIRS_OF_EACH = 100
"""Pairs per phenomenon."""

_SLOT = re.compile(r"\{(\w+):?([\w.]*)\|?([\w.]*)\}")
_OTHER_BACKNESS = str.maketrans("aəeıioöuü", "əaaiıöoüu")
_OTHER_ROUNDING = str.maketrans("aəeıioöuü", "uüüuüıiıi")


class Pair(NamedTuple):
    """Two sentences; `right_form` and `wrong_form` are the words that differ."""

    phenomenon: str
    right: str
    wrong: str
    right_form: str
    wrong_form: str


@cache
def minimal_pairs() -> tuple[Pair, ...]:
    """PAIRS_OF_EACH pairs per phenomenon, always the same ones, grouped by phenomenon."""
    found: dict[str, dict[str, Pair]] = {}
    for row in read_tsv("pairs.tsv"):
        for pair in _fill(row["phenomenon"], row["frame"]):
            found.setdefault(pair.phenomenon, {})[pair.right] = pair
    chosen: list[Pair] = []
    for phenomenon, pairs in found.items():
        assert len(pairs) >= PAIRS_OF_EACH, f"{phenomenon} has only {len(pairs)} pairs"
        # Ordered by a hash, so that the first hundred come from all frames and stems.
        by_hash = sorted(pairs, key=lambda right: blake2b(right.encode("utf-8")).digest())
        chosen += (pairs[right] for right in by_hash[:PAIRS_OF_EACH])
    return tuple(chosen)


@cache
def _names() -> dict[str, dict[str, str]]:
    return {row["phenomenon"]: row for row in read_tsv("pairs_phenomena.tsv")}


def phenomenon_name(phenomenon: str, lang: Literal["en", "az"] = "en") -> str:
    """The name of a phenomenon for people, in English or Azerbaijani.

    Raises KeyError for a phenomenon that `minimal_pairs` does not have.
    """
    return _names()[phenomenon][lang]


def _fill(phenomenon: str, frame: str) -> Iterator[Pair]:
    """Every pair that a frame gives."""
    slots = _SLOT.findall(frame)
    text = _SLOT.sub("{}", frame)
    (at,) = (i for i, (_, _, wrong) in enumerate(slots) if wrong)
    for entries in product(*(_members(name) for name, _, _ in slots)):
        rights = [
            inflect(entry, _split(features))
            for entry, (_, features, _) in zip(entries, slots, strict=True)
        ]
        wrong = _wrong(entries[at], _split(slots[at][1]), slots[at][2])
        if wrong is None or wrong == rights[at]:
            continue
        wrongs = [*rights[:at], wrong, *rights[at + 1 :]]
        yield Pair(
            phenomenon,
            right=m.capitalize(text.format(*rights)),
            wrong=m.capitalize(text.format(*wrongs)),
            right_form=rights[at],
            wrong_form=wrong,
        )


@cache
def _members(name: str) -> list[Entry]:
    return [entry for entry in lexicon("pairs_lexicon.tsv").values() if name in entry.classes]


def _split(features: str) -> list[str]:
    return features.split(".") if features else []


def _wrong(entry: Entry, features: list[str], how: str) -> str | None:
    return RULES[how](entry, features) if how in RULES else inflect(entry, how.split("."))


def _disharmony(entry: Entry, features: list[str]) -> str | None:
    """Suffixes with back vowels after a front vowel, and the other way round: ölkəda for ölkədə."""
    return _as_if(entry, features, _OTHER_BACKNESS)


def _rounding(entry: Entry, features: list[str]) -> str | None:
    """Rounded suffixes after an unrounded vowel, and the other way round: qanunı for qanunu."""
    return _as_if(entry, features, _OTHER_ROUNDING)


def _as_if(entry: Entry, features: list[str], other: dict[int, int]) -> str:
    """`entry` with the suffixes it would take if the last vowel of its stem were another one."""
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
    form = inflect(entry, features)
    end = len(entry.stem)
    return f"{form[:end]}y{form[end + 1 :]}" if entry.stem[-1] in m.VOWELS else None


def _no_n(entry: Entry, features: list[str]) -> str | None:
    """No n between the possessive of the third person and a case: romanıda for romanında."""
    owned = inflect(entry, ["p3sg"])
    return owned + inflect(entry, features)[len(owned) + 1 :]


def _question_first(entry: Entry, features: list[str]) -> str | None:
    """The question particle before the person ending: gecikirmisən for gecikirsənmi."""
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
"""The ways to make a slot wrong that are not just different features."""
