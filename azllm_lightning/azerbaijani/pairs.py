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
names of the phenomena, and `pairs.tsv` the frames. In a frame,

    {class:features}         is a stem of the class (of its kind: {class@kind:...}), with the
                             features of `lexicon.inflect`
    {class:features|wrong}   is the word that differs: `wrong` is other features, or one of RULES
    <this|that>              is the word that differs, as it is written
    [this|that]              crosses the pair: next to the second, the second form is right
    a slash                  separates the two sentences of a couple that is not crossed
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from typing import Literal, NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon, read_tsv

PAIRS_OF_EACH = 200
"""Pairs per phenomenon."""

_MAX_DRAWS = 100 * PAIRS_OF_EACH
_TABLE = "pairs_lexicon.tsv"
_SLOT = re.compile(r"\{(\w+)(?:@([\w.]+))?:?([\w.]*)\|?([\w.]*)\}|<([^|>]+)\|([^>]+)>")
_CROSSING = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")
_GAP = "\0"
_OTHER_BACKNESS = str.maketrans("aəeıioöuü", "əaaiıöoüu")
_OTHER_ROUNDING = str.maketrans("aəeıioöuü", "uüüuüıiıi")
_SOFT = {"k": "y", "q": "ğ", "t": "d"}


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
    frames: dict[str, list[str]] = {}
    for row in read_tsv("pairs.tsv"):
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
    forms: list[tuple[str, str | None]] = []

    def fill(slot: re.Match[str]) -> str:
        name, kind, features, wrong, this, that = slot.groups()
        if this:
            forms.append((this, that))
            return _GAP
        members = _members(name, kind)
        digest = blake2b(f"{key}/{len(stems)}".encode(), digest_size=8).digest()
        entry = members[int.from_bytes(digest, "little") % len(members)]
        stems.append(entry.stem)
        form = _form(entry.stem, features)
        if not wrong:
            return form
        forms.append((form, _wrong(entry, features, wrong)))
        return _GAP

    text = _SLOT.sub(fill, frame)
    ((right, wrong),) = forms
    if wrong is None or wrong == right or len(set(stems)) < len(stems):
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


KINDS: dict[str, Callable[[Entry], bool]] = {
    "front": lambda entry: _last_vowel(entry) in "əeiöü",
    "back": lambda entry: _last_vowel(entry) in "aıou",
    "round": lambda entry: _last_vowel(entry) in "oöuü",
    "flat": lambda entry: _last_vowel(entry) in "aəeıi",
    "vowel": lambda entry: entry.stem[-1] in m.VOWELS,
    "k": lambda entry: entry.stem[-1] == "k" and entry.trait != "keep",
    "q": lambda entry: entry.stem[-1] == "q" and entry.trait != "keep",
}


@cache
def _members(name: str, kind: str | None) -> list[Entry]:
    entries = [entry for entry in lexicon(_TABLE).values() if name in entry.classes]
    kinds = kind.split(".") if kind else []
    return [entry for entry in entries if all(KINDS[each](entry) for each in kinds)]


def _last_vowel(entry: Entry) -> str:
    return next(letter for letter in reversed(_plain(entry)) if letter in m.VOWELS)


def _plain(entry: Entry) -> str:
    """The stem without the ending of the infinitive."""
    return entry.stem[:-3] if entry.pos == "verb" else entry.stem


@cache
def _form(stem: str, features: str) -> str:
    """The form of a stem of the table; a cache, because frames ask for each many times."""
    return _inflected(lexicon(_TABLE)[stem], features)


def _inflected(entry: Entry, features: str) -> str:
    """The form of an entry with features that are separated by dots."""
    return inflect(entry, features.split(".") if features else [])


def _wrong(entry: Entry, features: str, how: str) -> str | None:
    return RULES[how](entry, features) if how in RULES else _form(entry.stem, how)


def _disharmony(entry: Entry, features: str) -> str | None:
    """Suffixes with back vowels after a front vowel, and the other way round: ölkəda for ölkədə."""
    return _as_if(entry, features, _OTHER_BACKNESS)


def _rounding(entry: Entry, features: str) -> str | None:
    """Rounded suffixes after an unrounded vowel, and the other way round: qanunı for qanunu."""
    return _as_if(entry, features, _OTHER_ROUNDING)


def _as_if(entry: Entry, features: str, other: dict[int, int]) -> str:
    """`entry` with the suffixes it would take if the last vowel of its stem were another one."""
    stem = _plain(entry)
    ending = entry.stem.removeprefix(stem)
    at = max(i for i, letter in enumerate(stem) if letter in m.VOWELS)
    changed = stem[:at] + stem[at].translate(other) + stem[at + 1 :]
    form = _inflected(entry._replace(stem=changed + ending), features)
    return _form(entry.stem, features)[: len(stem)] + form[len(stem) :]


def _harden(entry: Entry, features: str) -> str | None:
    """k, q or t where y, ğ or d belongs: birliki for birliyi, azadlıqı, aldatır."""
    plain = _plain(entry)
    return plain + _form(entry.stem, features)[len(plain) :]


def _soften(entry: Entry, features: str) -> str | None:
    """y, ğ or d where k, q or t stays: fabriyi for fabriki, dialoğu, sadır."""
    plain = _plain(entry)
    return plain[:-1] + _SOFT[plain[-1]] + _form(entry.stem, features)[len(plain) :]


def _buffer(entry: Entry, features: str) -> str | None:
    """y between vowels where s belongs, and the other way round: layihəyi, layihəsə."""
    form = _form(entry.stem, features)
    at = len(entry.stem)
    return form[:at] + {"s": "y", "y": "s"}[form[at]] + form[at + 1 :]


def _without_n(entry: Entry, features: str) -> str | None:
    """No n between the possessive of the third person and a case: romanıda for romanında."""
    owned = _owned(entry, features)
    return owned + _form(entry.stem, features)[len(owned) + 1 :]


def _with_n(entry: Entry, features: str) -> str | None:
    """An n between another possessive and a case: romanımnda for romanımda."""
    owned = _owned(entry, features)
    return f"{owned}n{_form(entry.stem, features)[len(owned) :]}"


def _owned(entry: Entry, features: str) -> str:
    return _form(entry.stem, features.split(".")[0])


def _dropped(entry: Entry, features: str) -> str | None:
    """Without the last vowel of a stem that keeps it: üslundan for üsulundan."""
    stem = entry.stem
    return stem[:-2] + stem[-1] + _form(entry.stem, features)[len(stem) :]


def _undropped(entry: Entry, features: str) -> str | None:
    """With the last vowel of a stem that drops it: ömüründən for ömründən."""
    return _inflected(entry._replace(trait=""), features)


def _question_first(entry: Entry, features: str) -> str | None:
    """The question particle before the person ending: gecikirmisən for gecikirsənmi."""
    tense, person = features.split(".")[:2]
    return m.copula(m.question(_form(entry.stem, tense)), person)


RULES = {
    "disharmony": _disharmony,
    "rounding": _rounding,
    "harden": _harden,
    "soften": _soften,
    "buffer": _buffer,
    "without_n": _without_n,
    "with_n": _with_n,
    "dropped": _dropped,
    "undropped": _undropped,
    "question": _question_first,
}
"""The ways to make a slot wrong that are not just different features."""
