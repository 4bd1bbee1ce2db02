"""Inflected forms of the stems of the minimal pairs, and the ways to make them wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon

TABLE = "pairs_lexicon.tsv"

_OTHER_BACKNESS = str.maketrans("aəeıioöuü", "əaaiıöoüu")
_OTHER_ROUNDING = str.maketrans("aəeıioöuü", "uüüuüıiıi")
_SOFT = {"k": "y", "q": "ğ", "t": "d"}
_VOICELESS = "çfhkpqsştx"
_YOR = {"1sg": "um", "2sg": "sun", "3sg": "", "1pl": "uz", "2pl": "sunuz", "3pl": "lar"}


def _last_vowel(entry: Entry) -> str:
    return next(letter for letter in reversed(plain_stem(entry)) if letter in m.VOWELS)


KINDS: dict[str, Callable[[Entry], bool]] = {
    "front": lambda entry: _last_vowel(entry) in "əeiöü",
    "back": lambda entry: _last_vowel(entry) in "aıou",
    "round": lambda entry: _last_vowel(entry) in "oöuü",
    "flat": lambda entry: _last_vowel(entry) in "aəeıi",
    "vowel": lambda entry: entry.stem[-1] in m.VOWELS,
    "k": lambda entry: entry.stem[-1] == "k" and entry.trait != "keep",
    "consonant": lambda entry: plain_stem(entry)[-1] not in m.VOWELS,
    "voiceless": lambda entry: entry.stem[-1] in _VOICELESS,
    "q": lambda entry: entry.stem[-1] == "q" and entry.trait != "keep",
}
"""Kinds of stems, by their letters."""


def plain_stem(entry: Entry) -> str:
    """The stem without the ending of the infinitive."""
    return entry.stem[:-3] if entry.pos == "verb" else entry.stem


@cache
def form_of(stem: str, features: str) -> str:
    """The form of a stem of the table with features that are separated by dots.

    Cached, because frames ask for each form many times.
    """
    return _inflected(lexicon(TABLE)[stem], features)


def wrong_form(entry: Entry, features: str, how: str) -> str:
    """A form that is wrong where that with `features` is right: `how` is other features, or one of
    RULES.
    """
    return RULES[how](entry, features) if how in RULES else form_of(entry.stem, how)


def _inflected(entry: Entry, features: str) -> str:
    return inflect(entry, features.split(".") if features else [])


def _disharmony(entry: Entry, features: str) -> str:
    """Suffixes with back vowels after a front vowel, and the other way round: ölkəda for ölkədə."""
    return _as_if(entry, features, _OTHER_BACKNESS)


def _rounding(entry: Entry, features: str) -> str:
    """Rounded suffixes after an unrounded vowel, and the other way round: qanunı for qanunu."""
    return _as_if(entry, features, _OTHER_ROUNDING)


def _as_if(entry: Entry, features: str, other: dict[int, int]) -> str:
    """`entry` with the suffixes it would take if the last vowel of its stem were another one."""
    stem = plain_stem(entry)
    ending = entry.stem.removeprefix(stem)
    at = max(i for i, letter in enumerate(stem) if letter in m.VOWELS)
    changed = stem[:at] + stem[at].translate(other) + stem[at + 1 :]
    form = _inflected(entry._replace(stem=changed + ending), features)
    return form_of(entry.stem, features)[: len(stem)] + form[len(stem) :]


def _harden(entry: Entry, features: str) -> str:
    """k, q or t where y, ğ or d belongs: birliki for birliyi, azadlıqı, aldatır."""
    plain = plain_stem(entry)
    return plain + form_of(entry.stem, features)[len(plain) :]


def _soften(entry: Entry, features: str) -> str:
    """y, ğ or d where k, q or t stays: fabriyi for fabriki, dialoğu, sadır."""
    plain = plain_stem(entry)
    return plain[:-1] + _SOFT[plain[-1]] + form_of(entry.stem, features)[len(plain) :]


def _buffer(entry: Entry, features: str) -> str:
    """y between vowels where s belongs, and the other way round: layihəyi, layihəsə."""
    form = form_of(entry.stem, features)
    at = len(entry.stem)
    return form[:at] + {"s": "y", "y": "s"}[form[at]] + form[at + 1 :]


def _without_n(entry: Entry, features: str) -> str:
    """No n between the possessive of the third person and a case: romanıda for romanında."""
    owned = _owned(entry, features)
    return owned + form_of(entry.stem, features)[len(owned) + 1 :]


def _with_n(entry: Entry, features: str) -> str:
    """An n between another possessive and a case: romanımnda for romanımda."""
    owned = _owned(entry, features)
    return f"{owned}n{form_of(entry.stem, features)[len(owned) :]}"


def _owned(entry: Entry, features: str) -> str:
    return form_of(entry.stem, features.split(".")[0])


def _dropped(entry: Entry, features: str) -> str:
    """Without the last vowel of a stem that keeps it: üslundan for üsulundan."""
    stem = entry.stem
    return stem[:-2] + stem[-1] + form_of(entry.stem, features)[len(stem) :]


def _undropped(entry: Entry, features: str) -> str:
    """With the last vowel of a stem that drops it: ömüründən for ömründən."""
    return _inflected(entry._replace(trait=""), features)


def _question_first(entry: Entry, features: str) -> str:
    """The question particle before the person ending: gecikirmisən for gecikirsənmi."""
    tense, person = features.split(".")[:2]
    return m.copula(m.question(form_of(entry.stem, tense)), person)


def _turkish_present(entry: Entry, features: str) -> str:
    """The Turkish present: gecikiyorum for gecikirəm. Only for stems that end in a consonant."""
    base = form_of(entry.stem, "pres")
    return f"{base[:-1]}yor{_YOR[features.split('.')[1]]}"


def _turkish_we(entry: Entry, features: str) -> str:
    """The Turkish first person plural: gecikəcəyiz for gecikəcəyik."""
    return form_of(entry.stem, features)[:-1] + "z"


def _turkish_i(entry: Entry, features: str) -> str:
    """The Turkish first person: gecikirim for gecikirəm."""
    return m.attach(form_of(entry.stem, features)[:-2], "(I)m")


def _turkish_you(entry: Entry, features: str) -> str:
    """The Turkish second person: vəkilsin for vəkilsən."""
    return m.attach(form_of(entry.stem, features)[:-3], "sIn")


def _turkish_object(entry: Entry, features: str) -> str:
    """The Turkish accusative after a vowel: layihəyi for layihəni."""
    form = form_of(entry.stem, features)
    return f"{form[: len(entry.stem)]}y{form[len(entry.stem) + 1 :]}"


def _turkish_place(entry: Entry, features: str) -> str:
    """t for d after a voiceless consonant: banktan for bankdan."""
    form = form_of(entry.stem, features)
    return f"{form[: len(entry.stem)]}t{form[len(entry.stem) + 1 :]}"


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
    "tr_present": _turkish_present,
    "tr_we": _turkish_we,
    "tr_i": _turkish_i,
    "tr_you": _turkish_you,
    "tr_object": _turkish_object,
    "tr_place": _turkish_place,
}
"""The ways to make a slot wrong that are not just different features."""
