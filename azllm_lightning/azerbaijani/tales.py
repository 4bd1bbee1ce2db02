"""A grammar that writes small Azerbaijani stories: `data=tales`, in the spirit of TinyStories (Eldan and Li, 2023).

`lexicon.tsv` holds the stems and `tales.tsv` the rules: a symbol, a condition and a text.

    story.NAME   a story; its condition is the cast, a letter for each player, drawn from a class of the lexicon
                 (`A=name T=toy`). A is the hero, who tells some of the stories in the first person.
    other names  one of the rules with that name is drawn

Either may name the persons (1sg, 3sg: the hero's) and the tenses (past, pres, evid) it is meant for; none means any.
A text may hold `<symbol>`; `[this|that|]`, one of which is drawn; a slash, for a line break; and `{head:features}`, an
inflected word. A head is a player, a class (any member), or a stem; `{a}` is the hero's pronoun. Features are those of
`lexicon.inflect`, and the story's own choices:

    T        the tense of the story; I of what went on meanwhile; D of what had been done before
    A, pA    the hero's person, and the hero as possessor; `we` the hero's with the others
    cop      "was", in the tense of the story
    voc      what others call the hero, who may be `mən`
    @key     the stem that the lexicon's facts name instead: `{X:@eats.acc}`

Nothing but blanks, punctuation and brackets touches a slot or a choice, so that the words it can give are whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon, read_tsv

_PERSONS = {"1sg": "1pl", "3sg": "3pl"}  # the hero alone, and with others
_TENSES = {
    "past": {"T": "past", "I": "impf", "D": "pluperf"},
    "pres": {"T": "pres", "I": "pres", "D": "evid"},
    "evid": {"T": "evid", "I": "impf_evid", "D": "evid"},
}
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SENTENCE = re.compile(r"((?:^|[.!?]»? |\n(?:— )?|\. — )«?)([^\W\d_])")
_PART = re.compile(r"\{([^{}]+)\}|<([^<>]+)>|([\[|\]])|([^\[\]|{}<>]+)")
_PRONOUNS = {"1sg": "mən", "3sg": "o"}


class _Mode(NamedTuple):
    """How a story is told: by the hero or of the hero, and in which tense."""

    person: str
    tense: str


_MODES = tuple(  # in a story of each twelve
    _Mode(*mode.split())
    for mode, weight in {
        "3sg past": 5,
        "3sg pres": 2,
        "3sg evid": 1,
        "1sg past": 3,
        "1sg pres": 1,
    }.items()
    for _ in range(weight)
)


class _Slot(NamedTuple):
    head: str
    features: tuple[str, ...]


class _Symbol(NamedTuple):
    name: str


class _Choice(NamedTuple):
    options: tuple[tuple[_Part, ...], ...]


_Part = str | _Slot | _Symbol | _Choice


class _Rule(NamedTuple):
    persons: frozenset[str]
    tenses: frozenset[str]
    cast: tuple[tuple[str, str], ...]  # (letter, class)
    parts: tuple[_Part, ...]

    def allows(self, mode: _Mode) -> bool:
        return mode.person in self.persons and mode.tense in self.tenses


class _Dice:
    """splitmix64 (Steele, Lea and Flood, 2014): the same draws under every version of Python."""

    def __init__(self, seed: int, index: int) -> None:
        self._state = int.from_bytes(
            blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "little"
        )

    def below(self, n: int) -> int:
        mask = (1 << 64) - 1
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) * n) >> 64


def write_tales(num_bytes: int, seed: int) -> Iterator[str]:
    """Stories, one a document, until their UTF-8 bytes reach `num_bytes`.

    The k-th story is a pure function of (seed, k). Raises ValueError where `num_bytes` is not positive.
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes={num_bytes} asks for no story: give at least 1")
    written = index = 0
    while written < num_bytes:
        story = _write(_Dice(seed, index))
        written += len(story.encode())
        index += 1
        yield story


def words(text: str) -> list[str]:
    """The words of `text` as they stand: letters, with hyphens between them."""
    return _WORD.findall(text)


@cache
def known_words() -> frozenset[str]:
    """Every word that a story can hold, capitalised where it can begin a sentence."""
    found: set[str] = set()
    for rule in _stories():
        for mode in set(_MODES):
            if rule.allows(mode):
                _Listing(dict(rule.cast), mode, found).walk(rule.parts, frozenset({""}))
    return frozenset(found)


@cache
def _rules() -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for row in read_tsv("tales.tsv"):
        when = row["when"].split()
        cast = tuple((item[0], item[2:]) for item in when if "=" in item)
        persons = frozenset(when) & frozenset(_PERSONS) or frozenset(_PERSONS)
        tenses = frozenset(when) & frozenset(_TENSES) or frozenset(_TENSES)
        rules.setdefault(row["symbol"], []).append(
            _Rule(persons, tenses, cast, _parse(row["text"]))
        )
    return rules


@cache
def _stories() -> list[_Rule]:
    return [
        rule for symbol, rules in _rules().items() if symbol.startswith("story.") for rule in rules
    ]


@cache
def _classes() -> dict[str, list[Entry]]:
    members: dict[str, list[Entry]] = {}
    for entry in lexicon().values():
        for name in entry.classes:
            members.setdefault(name, []).append(entry)
    return members


def _parse(text: str) -> tuple[_Part, ...]:
    stack: list[list[list[_Part]]] = [[[]]]  # for each open bracket, its options so far
    for slot, symbol, mark, plain in _PART.findall(text):
        if mark == "[":
            stack.append([[]])
        elif mark == "|":
            stack[-1].append([])
        elif mark == "]":
            options = stack.pop()
            stack[-1][-1].append(_Choice(tuple(map(tuple, options))))
        elif slot:
            head, _, features = slot.partition(":")
            stack[-1][-1].append(_Slot(head, tuple(features.split(".")) if features else ()))
        else:
            stack[-1][-1].append(_Symbol(symbol) if symbol else re.sub(r" */ *", "\n", plain))
    ((parts,),) = stack
    return tuple(parts)


def _write(dice: _Dice) -> str:
    stories = _stories()
    rule = stories[dice.below(len(stories))]
    modes = [mode for mode in _MODES if rule.allows(mode)]
    mode = modes[dice.below(len(modes))]
    players: dict[str, Entry] = {}
    drawn: dict[str, Entry] = {}  # the last of each class, so that none comes twice in a row
    for letter, name in rule.cast:
        members = [entry for entry in _classes()[name] if entry not in players.values()]
        players[letter] = members[dice.below(len(members))]

    def expand(parts: tuple[_Part, ...]) -> str:
        return "".join(map(one, parts))

    def one(part: _Part) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, _Choice):
            return expand(part.options[dice.below(len(part.options))])
        if isinstance(part, _Symbol):
            fitting = [rule for rule in _rules()[part.name] if rule.allows(mode)]
            return expand(fitting[dice.below(len(fitting))].parts)
        if part.head in players:
            return _render(players[part.head], part, mode)
        members = _heads(part.head, mode)
        if len(members) > 1:
            members = [entry for entry in members if entry != drawn.get(part.head)]
        drawn[part.head] = members[dice.below(len(members))]
        return _render(drawn[part.head], part, mode)

    return _polish(expand(rule.parts)).rstrip()


def _heads(head: str, mode: _Mode) -> list[Entry]:
    if head == "a":
        return [lexicon()[_PRONOUNS[mode.person]]]
    return _classes().get(head) or [lexicon()[head]]


@cache
def _meaning(mode: _Mode) -> dict[str, str]:
    return {
        "A": mode.person,
        "pA": f"p{mode.person}",
        "we": _PERSONS[mode.person],
        **_TENSES[mode.tense],
    }


@cache
def _form(stem: str, features: tuple[str, ...]) -> str:
    return inflect(lexicon()[stem], features)


def _render(entry: Entry, slot: _Slot, mode: _Mode) -> str:
    stem = entry.stem
    if slot.head == "A" and mode.person == "1sg":
        stem = _PRONOUNS["1sg"]
    features: list[str] = []
    for feature in slot.features:
        if feature == "voc":
            stem = entry.stem
        elif feature[0] == "@":
            stem = entry.facts[feature[1:]]
        elif feature != "cop":
            features.append(_meaning(mode).get(feature, feature))
    person = next((feature for feature in features if feature in m.PERSONS), "3sg")
    if "D" in slot.features and mode.tense == "pres" and person[0] == "1":
        features[features.index("evid")] = "perf"  # -ıb has no first person
    if "cop" not in slot.features:
        return _form(stem, tuple(features))
    if mode.tense == "pres":
        return _form(stem, (*features, "is") if stem != "var" else tuple(features))
    return f"{_form(stem, tuple(features))} {m.past_copula(person, hearsay=mode.tense == 'evid')}"


def _polish(text: str) -> str:
    text = re.sub(r"^ +| +(?=[ .,!?:])|(?<=\n) +", "", re.sub(r" *\n[ \n]*", "\n", text))
    return _SENTENCE.sub(lambda match: match[1] + m.capitalize(match[2]), text)


class _Listing:
    """Collects the words of one story in one mode, over all its casts and choices.

    What is capitalised depends on the few characters before, so each part is walked with all the `tails` that can
    precede it, and gives back those that can follow.
    """

    def __init__(self, cast: dict[str, str], mode: _Mode, found: set[str]) -> None:
        self._cast, self._mode, self._found = cast, mode, found
        self._walked: dict[tuple[str, frozenset[str]], frozenset[str]] = {}

    def walk(self, parts: tuple[_Part, ...], tails: frozenset[str]) -> frozenset[str]:
        for part in parts:
            if isinstance(part, str):
                tails = self._add({part}, tails)
            elif isinstance(part, _Slot):
                heads = (
                    _classes()[self._cast[part.head]]
                    if part.head in self._cast
                    else _heads(part.head, self._mode)
                )
                tails = self._add({_render(entry, part, self._mode) for entry in heads}, tails)
            elif isinstance(part, _Choice):
                tails = frozenset().union(*(self.walk(option, tails) for option in part.options))
            else:
                key = (part.name, tails)
                if key not in self._walked:
                    fitting = [rule for rule in _rules()[part.name] if rule.allows(self._mode)]
                    self._walked[key] = frozenset().union(
                        *(self.walk(rule.parts, tails) for rule in fitting)
                    )
                tails = self._walked[key]
        return tails

    def _add(self, texts: set[str], tails: frozenset[str]) -> frozenset[str]:
        after = set()
        for tail in tails:
            for text in texts:
                joined = _polish(tail + text)
                self._found.update(words(joined))
                after.add(
                    _WORD.sub("0", joined)[-5:]
                )  # what parts sentences; no letters, lest they count as words
        return frozenset(after)
