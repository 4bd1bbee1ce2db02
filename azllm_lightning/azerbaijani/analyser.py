"""The inverse of `lexicon.inflect`: which stem and features give a word.

A walk over the order of suffixes (stem, voices, tense, person; or stem, plural, possessive, case,
copula) that attaches each suffix of `suffixes` in turn and goes on where the word begins with the
result. So every analysis is right by the rules that generate, and none needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani import suffixes as s
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon, read_tsv

TABLES = ("lexicon.tsv", "pairs_lexicon.tsv")
STEMS = "stems.tsv"
_MAX_DERIVATIONS = 3
_INCOMPLETE = frozenset({"verb", "owed", "must", "imp_neg", "opt_neg"})
_OWNERS = frozenset(f"p{person}" for person in s.PERSONS)


class Analysis(NamedTuple):
    """A stem, and the features that give the word, in the order of the suffixes.

    With at most one derivation among them `lexicon.inflect` gives the word back.
    """

    stem: str
    pos: str
    features: tuple[str, ...]


class _State(NamedTuple):
    """A word so far, with what may follow it."""

    node: str
    stem: m.Stem
    pos: str
    features: tuple[str, ...]


class _Arc(NamedTuple):
    features: tuple[str, ...]
    suffix: str
    node: str
    pos: str = ""  # "" if it stays


@cache
def stems() -> tuple[Entry, ...]:
    """Every stem that the analyser knows: those of the tales and of the pairs, and `stems.tsv`."""
    found: dict[tuple[str, str], Entry] = {}
    rows = [
        Entry(row["stem"], row["pos"], (), row["trait"], _facts(row["facts"]))
        for row in read_tsv(STEMS)
    ]
    for entry in (*(e for table in TABLES for e in lexicon(table).values()), *rows):
        found.setdefault((entry.stem, entry.pos), entry)
    return tuple(found.values())


def analyse(word: str) -> list[Analysis]:
    """Every analysis of a word, those with the fewest suffixes first; none if it is not known.

    Capitals do not count.
    """
    text = m.lower(word)
    found = set()
    for end in range(1, len(text) + 1):
        for entry, state in _index().get(text[:end], ()):
            found |= {Analysis(entry.stem, entry.pos, f) for f in _walk(state, text)}
    return sorted(found, key=lambda one: (len(one.features), one))


def is_word(word: str) -> bool:
    """Whether a word has an analysis; of one with hyphens, whether each part has."""
    return bool(analyse(word)) or (
        "-" in word and all(part and analyse(part) for part in word.split("-"))
    )


def _facts(text: str) -> dict[str, str]:
    return dict(fact.split("=", 1) for fact in text.split(";") if fact)


@cache
def _index() -> dict[str, list[tuple[Entry, _State]]]:
    """The stems by each shape that a word can begin with."""
    index: dict[str, list[tuple[Entry, _State]]] = {}
    for entry in stems():
        for state in _starts(entry):
            for shape in _shapes(state.stem):
                index.setdefault(shape, []).append((entry, state))
    return index


def _starts(entry: Entry) -> Iterator[_State]:
    stem = m.lower(entry.stem)
    if set(stem).isdisjoint(m.VOWELS):  # BMT
        yield _State("end", m.noun_stem(stem, "keep"), entry.pos, ())
    elif entry.pos == "verb":
        start = m.verb_stem(stem, entry.trait)
        yield _State("verb", start, "verb", ())
        for voice in ("caus", "pass"):
            other = m.voiced(start, voice)
            if not other.plain.startswith(start.plain):  # ayır, ayrıl
                yield _State("verb", other, "verb", (voice,))
    elif entry.pos == "particle":
        yield _State("case", m.noun_stem(stem, "keep"), entry.pos, ())
    elif entry.trait == "compound":
        return  # two words
    else:
        yield _State("noun", m.noun_stem(stem, entry.trait), entry.pos, ())
    if entry.pos == "pronoun":
        for case in (*m.CASES[1:], s.EQUATIVE, s.INSTRUMENTAL):
            yield _State("case", m.noun_stem(inflect(entry, [case])), entry.pos, (case,))
        yield _State("relative", m.noun_stem(inflect(entry, ["ki"])), entry.pos, ("ki",))
        yield _State("plural", m.noun_stem(inflect(entry, ["kilər"])), entry.pos, ("kilər",))


def _walk(state: _State, text: str) -> Iterator[tuple[str, ...]]:
    """The features of every way to go on from `state` that ends with the end of `text`."""
    if state.stem.plain == text and state.node not in _INCOMPLETE:
        yield state.features
    for after in _next(state, text):
        if text.startswith(_shapes(after.stem)):
            yield from _walk(after, text)


def _shapes(stem: m.Stem) -> tuple[str, ...]:
    """What a word with this stem can begin with."""
    return tuple({*stem, m.undouble(stem.plain)} - {""})


def _next(state: _State, text: str) -> Iterator[_State]:
    letters = _letters_after(state.stem, text)
    for arc in _arcs()[state.node]:
        if not arc.suffix or not letters.isdisjoint(_first_letters(arc.suffix)):
            yield _attach(state, arc)
    if "-" in text:
        yield from _repeated(state)
    if not letters:
        return
    if state.node == "verb":
        yield from _voices(state)
    elif state.node == "noun":
        yield from _derived(state, letters)
        if state.pos == "numeral":
            yield _attach(state, _Arc(("ord",), s.ORDINAL, "noun"))
        if state.pos == "adverb":
            yield _attach(state, _Arc(("ki",), s.RELATIVE, "relative"))
            yield _attach(state, _Arc(("kilər",), s.RELATIVE + s.PLURAL, "plural"))
    if state.node in ("noun", "plural", "own") and state.stem.plain[-1] not in m.VOWELS:
        yield _attach(state, _Arc((s.INSTRUMENTAL,), "lA", "case"))


def _letters_after(stem: m.Stem, text: str) -> set[str]:
    """The letters of `text` that a suffix of this stem can begin with."""
    return {text[len(shape)] for shape in _shapes(stem) if text.startswith(shape) and text != shape}


@cache
def _first_letters(suffix: str) -> frozenset[str]:
    """The letters that a suffix begins with after some word or other."""
    start = suffix[0] if suffix[0] != "(" else suffix[1] + suffix[3]
    return frozenset("".join({"A": "aə", "I": "ıiuü", "K": "qk"}.get(c, c) for c in start))


def _repeated(state: _State) -> Iterator[_State]:
    if state.node == "verb":
        for form in s.REPEATED:
            word = m.verb(state.stem, form)
            yield _State("end", m.Stem(word, word), "verb", (*state.features, form))
    elif state.node == "noun" and state.pos == "numeral":
        word = m.distributive(state.stem.plain)
        yield _State("end", m.Stem(word, word), "numeral", (*state.features, "dist"))


def _attach(state: _State, arc: _Arc) -> _State:
    stem = state.stem
    owned = bool(stem.owned) and arc.features[0] in _OWNERS
    word = m.attach(stem.plain, arc.suffix, stem.owned if owned else stem.oblique)
    return _State(
        arc.node, m.noun_stem(word), arc.pos or state.pos, (*state.features, *arc.features)
    )


def _voices(state: _State) -> Iterator[_State]:
    used = [voice for voice in state.features if voice in s.VOICES]
    first = s.VOICES.index(used[-1]) + 1 if used else 0
    for voice in s.VOICES[first:]:
        if voice == "caus2" and "caus" not in used:
            continue
        stem = m.voiced(state.stem, voice)
        yield _State("verb", stem, "verb", (*state.features, voice))


def _derived(state: _State, letters: set[str]) -> Iterator[_State]:
    if sum(feature in s.DERIVATIONS for feature in state.features) >= _MAX_DERIVATIONS:
        return
    for name, (suffix, after, gives) in s.DERIVATIONS.items():
        if state.pos not in after or letters.isdisjoint(_first_letters(suffix)):
            continue
        word = m.attach(state.stem.plain, suffix, state.stem.oblique)
        features = (*state.features, name)
        if gives == "verb":
            yield _State("verb", m.Stem(word, word), gives, features)
        else:
            yield _State("noun", m.noun_stem(word), gives, features)


@cache
def _arcs() -> dict[str, list[_Arc]]:
    """The suffixes that may follow, by what they follow."""
    plural = _Arc(("pl",), s.PLURAL, "plural")
    own = [
        _Arc((f"p{person}",), suffix, "third" if person[0] == "3" else "own")
        for person, suffix in s.POSSESSIVE.items()
    ]
    cases = [_Arc((case,), suffix, _after(case)) for case, suffix in s.CASE.items()]
    after_third = [
        _Arc((case,), suffix, _after(case)) for case, suffix in s.CASE_AFTER_THIRD.items()
    ]
    home = _Arc(("gil",), s.HOME, "home")
    be = _copulas()
    return {
        "noun": [plural, *own, *cases, home, *_places(s.CASE), *be],
        "plural": [*own[:-1], *cases, *_places(s.CASE), *be],
        "own": [*cases, home, *_places(s.CASE), *be],
        "third": [
            *after_third,
            home,
            *_places(s.CASE_AFTER_THIRD),
            _Arc((s.INSTRUMENTAL, "joined"), "lə", "case"),
            *be,
        ],
        "home": [*cases, *be],
        "case": be,
        "dative": [*(_Arc((name,), suffix, "case") for name, suffix in s.UP_TO.items()), *be],
        "relative": [*after_third, *be],
        "owed": [plural, *own],
        "attribute": [plural, *own, *cases],
        **_verb_arcs(),
    }


def _places(cases: dict[str, str]) -> list[_Arc]:
    """What is at a place: evdəki, evdəkilər."""
    return [
        _Arc(("ki",), cases["loc"] + s.RELATIVE, "relative"),
        _Arc(("kilər",), cases["loc"] + s.RELATIVE + s.PLURAL, "plural"),
    ]


def _after(case: str) -> str:
    return "dative" if case == "dat" else "case"


def _copulas() -> list[_Arc]:
    """What makes a noun a predicate."""
    return [
        *(_Arc(("is", person), suffix, "predicate") for person, suffix in s.COPULA.items()),
        _Arc(("was", "joined"), s.JOINED_PAST, "short"),
        _Arc(("heard", "joined"), s.JOINED_HEARSAY, "full"),
        _Arc(("if", "joined"), s.JOINED_IF, "asked"),
        _Arc(("mi",), s.QUESTION, "end"),
    ]


def _verb_arcs() -> dict[str, list[_Arc]]:
    asked = [_Arc(("mi",), s.QUESTION, "end")]
    predicate = [_Arc(("if",), s.IF, "asked"), *asked]
    full = _endings(s.FULL)
    is_third = [
        _Arc(("is",), s.COPULA["3sg"], "predicate"),
        _Arc(("3pl", "is"), s.COPULA["3pl"], "predicate"),
    ]
    first = [arc for arc in full if arc.features[0][0] == "1"]
    second = [arc for arc in full if arc.features[0][0] == "2"]
    third = [arc for arc in full if arc.features[0][0] == "3"]
    return {
        "verb": [*_finite(), *_nonfinite()],
        "full": [*full, *predicate],
        "fut": [*full, *is_third, *predicate],
        "perf": [*first, *third, *is_third, *predicate],
        "evid": [*second, *third, *is_third, *predicate],
        "aor_neg": [*second, *third, *predicate],
        "short": [*_endings(s.SHORT), *predicate],
        "must": _endings(s.COPULA, bare=False),
        "imp_neg": _endings(s.IMPERATIVE, bare=False),
        "opt_neg": _endings(s.OPTATIVE, bare=False),
        "predicate": predicate,
        "asked": asked,
        "end": [],
    }


def _endings(table: dict[str, str], bare: bool = True) -> list[_Arc]:
    """The person endings; with `bare`, none for the third person, which has the bare form."""
    return [
        _Arc((person,), suffix, "predicate")
        for person, suffix in table.items()
        if not (bare and person == "3sg")
    ]


def _finite() -> Iterator[_Arc]:
    for form, (suffix, negative, endings) in s.FINITE.items():
        if endings in (s.IMPERATIVE, s.OPTATIVE):
            for person, ending in endings.items():
                yield _Arc((form, person), ending, "predicate")
            yield _Arc((form, "neg"), negative, f"{form}_neg")
            continue
        node = {id(s.COPULA): "must", id(s.SHORT): "short"}.get(id(endings), "full")
        node = form if form in ("fut", "perf", "evid") else node
        yield _Arc((form,), suffix, node)
        yield _Arc((form, "neg"), negative, "aor_neg" if form == "aor" else node)
    # almaram, not almazam; almısan, not almışsan
    yield _Arc(("aor", "neg", "1sg"), "mArAm", "predicate")
    yield _Arc(("aor", "neg", "1pl"), "mArIK", "predicate")
    for person in ("2sg", "2pl"):
        ending = s.FULL[person]
        yield _Arc(("perf", person), f"mI{ending}", "predicate")
        yield _Arc(("perf", "neg", person), f"mAmI{ending}", "predicate")


def _nonfinite() -> Iterator[_Arc]:
    for form, (suffix, negative) in s.NONFINITE.items():
        node = "noun" if form in s.DECLINED else "asked"
        # A predicate has its own forms: gəlmisən, not gəlmişsən; almaram, not almazam.
        node = {"done": "owed", "part_perf": "attribute", "part_aor": "attribute"}.get(form, node)
        pos = "noun" if form in ("doer", "manner") else ""
        yield _Arc((form,), suffix, node, pos)
        yield _Arc((form, "neg"), negative, node, pos)
    for form, suffix in s.NEGATIVE_ONLY.items():
        yield _Arc((form,), suffix, "asked")
