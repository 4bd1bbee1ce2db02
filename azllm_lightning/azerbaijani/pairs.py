"""Minimal pairs: two Azerbaijani sentences that differ in one word, one right and the other wrong.

As in BLiMP (Warstadt et al., 2020; arXiv:1912.00582): a model that knows the rule assigns the right
sentence the higher probability. Nothing but the rule should decide a pair. So pairs come in
couples that cancel what length and the frequency of words, letters and word pairs tell:

    crossed   The same two words take turns at being right, between the same neighbors: "Mən dünən
              yenə gecikdim / gecikdik", "Biz dünən yenə gecikdik / gecikdim". Whatever scores the
              word and its neighbors alone is right in exactly one of the two.
    spelled   A rule of spelling and a stem that it does not apply to: "dostluğu / dostluqu",
              "dialoqu / dialoğu". Whatever prefers the one letter is right in one of the two.

question_order is the exception: it has no couples. Its rule is the written norm (gecikirsənmi);
songs, older prose and dialects have the other order (gecikirmisən), too. In negation, that the verb
after "nə ..., nə də" is positive is the written norm as well.

`pairs_lexicon.tsv` holds the stems, none of which occur in the tales, `pairs_phenomena.tsv` the
names of the phenomena, and `pairs.tsv` and `pairs_turkish.tsv` the frames. In a frame,

    {class:features}         is a stem of the class (of its kind: {class@kind:...}), with the
                             features of `lexicon.inflect`
    {class:features|wrong}   is the word that differs: `wrong` is other features, or one of `RULES`
    <this|that>              is the word that differs, as it is written
    [this|that]              crosses the pair: next to the second, the second form is right
    a slash                  separates the two sentences of a couple that is not crossed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from typing import Literal, NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, lexicon, read_tsv
from azllm_lightning.azerbaijani.wrong_forms import KINDS, TABLE, form_of, wrong_form

PAIRS_OF_EACH = 200
"""Pairs per phenomenon."""

_MAX_DRAWS = 100 * PAIRS_OF_EACH
_SLOT = re.compile(r"\{(\w+)(?:@([\w.]+))?:?([\w.]*)\|?([\w.]*)\}|<([^|>]+)\|([^>]+)>")
_CROSSING = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")
_GAP = "\0"


class Pair(NamedTuple):
    """Two sentences; `right_form` and `wrong_form` are the words that differ."""

    phenomenon: str
    right: str
    wrong: str
    right_form: str
    wrong_form: str


@cache
def minimal_pairs() -> tuple[Pair, ...]:
    """PAIRS_OF_EACH pairs per phenomenon, always the same ones, grouped by phenomenon.

    The first and the second pair are a couple, the third and the fourth, and so on.
    """
    return _pairs("pairs.tsv")


@cache
def turkish_pairs() -> tuple[Pair, ...]:
    """Azerbaijani sentences, and the same with a Turkish word, spelling or suffix in them.

    PAIRS_OF_EACH for each of the three. They are no couples: a model that has seen Azerbaijani
    alone tells them apart by its words. They show whether Turkish has got into it.
    """
    return _pairs("pairs_turkish.tsv")


def _pairs(table: str) -> tuple[Pair, ...]:
    frames: dict[str, list[str]] = {}
    for row in read_tsv(table):
        frames.setdefault(row["phenomenon"], []).append(row["frame"])
    return tuple(pair for name, group in frames.items() for pair in _draw(name, group))


def _draw(phenomenon: str, frames: list[str]) -> list[Pair]:
    """Couples from all frames in turn, with stems drawn by a hash, until there are enough."""
    chosen: list[Pair] = []
    seen: set[str] = set()
    for number in range(_MAX_DRAWS):
        couple = list(_couple(phenomenon, frames[number % len(frames)], number))
        rights = {pair.right for pair in couple}
        if couple and len(rights) == len(couple) and not rights & seen:
            seen |= rights
            chosen += couple
        if len(chosen) >= PAIRS_OF_EACH:
            return chosen
    raise AssertionError(f"{phenomenon} has only {len(chosen)} pairs")


def _couple(phenomenon: str, frame: str, number: int) -> Iterator[Pair]:
    """The pairs of one draw; none if a stem is drawn twice, or has no wrong form."""
    halves = frame.split(" / ")
    filled = [_filled(half, f"{half}/{number}") for half in halves]
    if None in filled:
        return
    for sentence in filled:
        assert sentence is not None
        text, forms = sentence
        for side in range(2 if "[" in frame else 1):
            chosen = _CROSSING.sub(lambda match, side=side: match[1 + side], text)  # type: ignore[misc]
            right, wrong = forms[side], forms[1 - side]
            yield Pair(
                phenomenon,
                right=m.capitalize(chosen.replace(_GAP, right)),
                wrong=m.capitalize(chosen.replace(_GAP, wrong)),
                right_form=right,
                wrong_form=wrong,
            )


def _filled(frame: str, key: str) -> tuple[str, tuple[str, str]] | None:
    """A frame with stems in its slots and a gap, and the two forms for the gap."""
    stems: list[str] = []
    forms: list[tuple[str, str]] = []

    def fill(slot: re.Match[str]) -> str:
        name, kind, features, wrong, this, that = slot.groups()
        if this:
            forms.append((this, that))
            return _GAP
        members = _members(name, kind)
        digest = blake2b(f"{key}/{len(stems)}".encode(), digest_size=8).digest()
        entry = members[int.from_bytes(digest, "little") % len(members)]
        stems.append(entry.stem)
        form = form_of(entry.stem, features)
        if not wrong:
            return form
        forms.append((form, wrong_form(entry, features, wrong)))
        return _GAP

    text = _SLOT.sub(fill, frame)
    ((right, wrong),) = forms
    if wrong == right or len(set(stems)) < len(stems):
        return None
    return text, (right, wrong)


@cache
def _names() -> dict[str, dict[str, str]]:
    return {row["phenomenon"]: row for row in read_tsv("pairs_phenomena.tsv")}


def phenomenon_name(phenomenon: str, lang: Literal["en", "az"] = "en") -> str:
    """The name of a phenomenon for people, in English or Azerbaijani.

    Raises KeyError for a phenomenon that `minimal_pairs` does not have.
    """
    return _names()[phenomenon][lang]


def phenomenon_group(phenomenon: str) -> str:
    """The group of a phenomenon: "grammar" if its pairs are crossed, else "spelling"."""
    return _names()[phenomenon]["group"]


def is_decided_before(phenomenon: str) -> bool:
    """Whether what comes before the word that differs, or its own stem, decides which is right."""
    return _names()[phenomenon]["word"] == "yes"


@cache
def _members(name: str, kind: str | None) -> list[Entry]:
    entries = [entry for entry in lexicon(TABLE).values() if name in entry.classes]
    kinds = kind.split(".") if kind else []
    return [entry for entry in entries if all(KINDS[each](entry) for each in kinds)]
