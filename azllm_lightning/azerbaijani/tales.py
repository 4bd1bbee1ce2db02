"""A grammar that writes short Azerbaijani stories: `data=tales`.

In the spirit of TinyStories (Eldan and Li, 2023; arXiv:2305.07759). `lexicon.tsv` holds the stems
and `tales.tsv` the rules: a symbol, a condition and a text.

    story.NAME   a story; its condition is the cast, one letter per player, each drawn from a class
                 of the lexicon (`A=name T=toy`). A is the hero, who narrates some of the stories
                 in the first person.
    other names  one of the rules with that name is drawn

Either may name the persons (1sg, 3sg: the hero's) and the tenses (past, pres, evid) that it is
meant for; none means any. A text may contain `<symbol>`; `[this|that|]`, one of which is drawn; a
slash, for a line break; and `{head:features}`, an inflected word. A head is a player, a class (any
member) or a stem; `{a}` is the hero's pronoun, `{we}` that of the hero and the others.

Features are those of `lexicon.inflect`, and the story's own choices:

    T        the tense of the story; I for what was going on meanwhile; D for what had happened
             before; S for what is still true today: present in the first person, otherwise as I
    A, pA    the hero's person, and the hero as possessor; `we`: the hero's with the others
    cop      "was", in the tense of the story
    voc      what others call the hero, who may be `mən`
    @key     the stem that the lexicon's facts name instead: `{X:@eats.acc}`
    sub      the topic of the sentence, as subject or possessor. It may be left out, or become a
             pronoun, where the sentence before was about the same one: "Anar parka getdi. Topla
             oynadı." A verb that agrees with the hero (A, we) makes the hero the topic, too
    ref      may be reduced like `sub`, but the sentence is about something else
    friend   preceded by "dostu" ("dostum") on first mention

Only spaces, punctuation and brackets may touch a slot or a choice, so that each gives whole words.
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
from azllm_lightning.azerbaijani.topic import Topic

_PERSONS = {"1sg": "1pl", "3sg": "3pl"}  # the hero alone, and with others
_TENSES = {
    "past": {"T": "past", "I": "impf", "D": "pluperf"},
    "pres": {"T": "pres", "I": "pres", "D": "evid"},
    "evid": {"T": "evid", "I": "impf_evid", "D": "evid"},
}
_REDUCIBLE = frozenset({"sub", "ref"})
_MARKS = _REDUCIBLE | {"friend"}
_HERO = "A"
_LONGEST_SILENCE = 4  # topics left out or turned into pronouns in a row, before a name is due
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SENTENCE = re.compile(r"((?:^|[.!?]»? |\n(?:— )?|\. — )«?|: «)([^\W\d_])")
_PART = re.compile(r"\{([^{}]+)\}|<([^<>]+)>|([\[|\]])|([^\[\]|{}<>]+)")
_PRONOUNS = {
    "1sg": {"a": "mən", "we": "biz"},
    "3sg": {"a": "o", "we": "onlar"},
}


class _Mode(NamedTuple):
    """Who tells the story, the hero or another, and in which tense."""

    person: str
    tense: str


_MODES = tuple(  # of twelve stories
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
    marks: frozenset[str]

    @property
    def topic(self) -> str:
        """What the slot makes its sentence be about, "" if it does not."""
        if "we" in self.features:
            return "we"
        if "A" in self.features:
            return _HERO
        return self.head if "sub" in self.marks else ""


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
        digest = blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
        self._state = int.from_bytes(digest, "little")

    def below(self, n: int) -> int:
        mask = (1 << 64) - 1
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) * n) >> 64


def write_tales(num_bytes: int, seed: int) -> Iterator[str]:
    """Stories, one per document, until their UTF-8 bytes reach `num_bytes`.

    The k-th story is a pure function of (seed, k). Raises ValueError if `num_bytes` is not
    positive.
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes={num_bytes}: must be at least 1")
    written = 0
    index = 0
    while written < num_bytes:
        story = _write(_Dice(seed, index))
        written += len(story.encode())
        index += 1
        yield story


def words(text: str) -> list[str]:
    """The words of `text` as written: letters, with hyphens between them."""
    return _WORD.findall(text)


@cache
def known_words() -> frozenset[str]:
    """Every word that a story can contain, capitalised where it can begin a sentence."""
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
        rule = _Rule(persons, tenses, cast, _parse(row["text"]))
        rules.setdefault(row["symbol"], []).append(rule)
    return rules


@cache
def _fitting(symbol: str, mode: _Mode) -> list[_Rule]:
    return [rule for rule in _rules()[symbol] if rule.allows(mode)]


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
            stack[-1][-1].append(_parse_slot(slot))
        else:
            stack[-1][-1].append(_Symbol(symbol) if symbol else re.sub(r" */ *", "\n", plain))
    ((parts,),) = stack
    return tuple(parts)


def _parse_slot(slot: str) -> _Slot:
    head, _, text = slot.partition(":")
    features = text.split(".") if text else []
    inflected = tuple(feature for feature in features if feature not in _MARKS)
    return _Slot(head, inflected, frozenset(features) & _MARKS)


def _write(dice: _Dice) -> str:
    stories = _stories()
    rule = stories[dice.below(len(stories))]
    modes = [mode for mode in _MODES if rule.allows(mode)]
    mode = modes[dice.below(len(modes))]
    players: dict[str, Entry] = {}
    for letter, name in rule.cast:
        members = [entry for entry in _classes()[name] if entry not in players.values()]
        players[letter] = members[dice.below(len(members))]
    return _polish(_Telling(dice, mode, players).expand(rule.parts)).rstrip()


class _Telling:
    """One story on its way: what was drawn, who was mentioned, what the last sentence was about."""

    def __init__(self, dice: _Dice, mode: _Mode, players: dict[str, Entry]) -> None:
        self._dice = dice
        self._mode = mode
        self._players = players
        self._drawn: dict[str, Entry] = {}  # by class, so that no member comes twice in a row
        self._mentioned: set[str] = set()
        self._topic = Topic()
        self._reduced = 0  # topics in a row that were left out or turned into pronouns

    def expand(self, parts: tuple[_Part, ...]) -> str:
        return "".join(map(self._one, parts))

    def _one(self, part: _Part) -> str:
        if isinstance(part, _Choice):
            return self.expand(part.options[self._dice.below(len(part.options))])
        if isinstance(part, _Symbol):
            fitting = _fitting(part.name, self._mode)
            return self.expand(fitting[self._dice.below(len(fitting))].parts)
        text = part if isinstance(part, str) else self._word(part)
        self._topic.read(text)
        return text

    def _word(self, slot: _Slot) -> str:
        entry = self._entry(slot.head)
        again = slot.head == self._topic.last and self._reduced < _LONGEST_SILENCE
        mentioned = slot.head in self._mentioned
        text = self._draw_variant(_variants(entry, slot, self._mode, again, mentioned))
        if slot.marks & _REDUCIBLE:
            self._reduced = self._reduced + 1 if text != _render(entry, slot, self._mode) else 0
        self._mentioned.add(slot.head)
        if slot.topic:
            self._topic.mark(slot.topic)
        return text

    def _entry(self, head: str) -> Entry:
        if head in self._players:
            return self._players[head]
        members = _heads(head, self._mode)
        if len(members) > 1:
            members = [entry for entry in members if entry != self._drawn.get(head)]
        self._drawn[head] = members[self._dice.below(len(members))]
        return self._drawn[head]

    def _draw_variant(self, variants: dict[str, int]) -> str:
        """One of the texts, each as often as its weight says."""
        left = self._dice.below(sum(variants.values())) if len(variants) > 1 else 0
        for text, weight in variants.items():
            left -= weight
            if left < 0:
                return text
        raise AssertionError("the weights add up to their sum")


def _heads(head: str, mode: _Mode) -> list[Entry]:
    if head in _PRONOUNS[mode.person]:
        return [lexicon()[_PRONOUNS[mode.person][head]]]
    return _classes().get(head) or [lexicon()[head]]


def _variants(
    entry: Entry, slot: _Slot, mode: _Mode, again: bool, mentioned: bool
) -> dict[str, int]:
    """What `slot` can become, with weights.

    `again`: the sentence before was about the same one; `mentioned`: it occurred in the story.
    """
    full = _render(entry, slot, mode)
    if "friend" in slot.marks and not mentioned:
        return {f"{_form('dost', (f'p{mode.person}',))} {full}": 1}
    if not slot.marks & _REDUCIBLE:
        return {full: 1}
    can_drop = not {"dat", "acc", "loc", "abl", "ins"}.intersection(slot.features)
    if mode.person == "1sg" and slot.head in (_HERO, "we"):
        return {full: 1, "": 5 if again else 1} if can_drop else {full: 1}
    if not again:
        return {full: 1}
    if slot.head == "we":
        return {full: 1, "": 4}
    if not can_drop:
        return {full: 1, _form("o", slot.features): 3}
    if "gen" in slot.features:
        return {full: 1, _form("o", slot.features): 3, "": 6}
    return {full: 1, "": 8}


@cache
def _meaning(mode: _Mode) -> dict[str, str]:
    tenses = _TENSES[mode.tense]
    return {
        "A": mode.person,
        "pA": f"p{mode.person}",
        "we": _PERSONS[mode.person],
        "S": "pres" if mode.person == "1sg" else tenses["I"],
        **tenses,
    }


@cache
def _form(stem: str, features: tuple[str, ...]) -> str:
    return inflect(lexicon()[stem], features)


def _render(entry: Entry, slot: _Slot, mode: _Mode) -> str:
    """The word of `slot` in full."""
    stem = _PRONOUNS["1sg"]["a"] if slot.head == _HERO and mode.person == "1sg" else entry.stem
    features: list[str] = []
    for feature in slot.features:
        if feature == "voc":
            stem = entry.stem
        elif feature[0] == "@":
            stem = entry.facts[feature[1:]]
        elif feature != "cop":
            features.append(_meaning(mode).get(feature, feature))
    if "cop" in slot.features:
        return _was(stem, features, slot, mode)
    person = next((feature for feature in features if feature in m.PERSONS), "3sg")
    if "D" in slot.features and mode.tense == "pres" and person[0] == "1":
        features[features.index("evid")] = "perf"  # -ıb has no first person
    return _form(stem, tuple(features))


def _was(stem: str, features: list[str], slot: _Slot, mode: _Mode) -> str:
    """The word with the copula; of what is still true (S), a hero who narrates says "is"."""
    lasting = "S" in slot.features
    if lasting:
        features = [feature for feature in features if feature != _meaning(mode)["S"]]
    if mode.tense == "pres" or (lasting and mode.person == "1sg"):
        return _form(stem, (*features, "is") if stem != "var" else tuple(features))
    person = next((feature for feature in features if feature in m.PERSONS), "3sg")
    return f"{_form(stem, tuple(features))} {m.past_copula(person, hearsay=mode.tense == 'evid')}"


def _polish(text: str) -> str:
    text = re.sub(r"^ +| +(?=[ .,!?:])|(?<=\n) +", "", re.sub(r" *\n[ \n]*", "\n", text))
    return _SENTENCE.sub(lambda match: match[1] + m.capitalize(match[2]), text)


class _Listing:
    """Collects the words of one story in one mode, over all its casts and choices.

    Capitals depend on the few characters before a word, so each part is walked with all the `tails`
    that can precede it, and returns those that can follow.
    """

    def __init__(self, cast: dict[str, str], mode: _Mode, found: set[str]) -> None:
        self._cast = cast
        self._mode = mode
        self._found = found
        self._walked: dict[tuple[str, frozenset[str]], frozenset[str]] = {}
        self._given: dict[_Slot, set[str]] = {}

    def walk(self, parts: tuple[_Part, ...], tails: frozenset[str]) -> frozenset[str]:
        for part in parts:
            if isinstance(part, str):
                tails = self._add({part}, tails)
            elif isinstance(part, _Slot):
                if part not in self._given:
                    self._given[part] = self._texts(part)
                tails = self._add(self._given[part], tails)
            elif isinstance(part, _Choice):
                tails = frozenset().union(*(self.walk(option, tails) for option in part.options))
            else:
                tails = self._walk_symbol(part.name, tails)
        return tails

    def _walk_symbol(self, name: str, tails: frozenset[str]) -> frozenset[str]:
        key = (name, tails)
        if key not in self._walked:
            ends = (self.walk(rule.parts, tails) for rule in _fitting(name, self._mode))
            self._walked[key] = frozenset().union(*ends)
        return self._walked[key]

    def _texts(self, slot: _Slot) -> set[str]:
        if slot.head in self._cast:
            entries = _classes()[self._cast[slot.head]]
        else:
            entries = _heads(slot.head, self._mode)
        situations = product((False, True), repeat=2) if slot.marks else [(False, False)]
        return {
            text
            for again, mentioned in situations
            for entry in entries
            for text in _variants(entry, slot, self._mode, again, mentioned)
        }

    def _add(self, texts: set[str], tails: frozenset[str]) -> frozenset[str]:
        after = set()
        for tail in tails:
            for text in texts:
                joined = _polish(tail + text)
                self._found.update(words(joined))
                # What separates sentences, without letters, lest they count as words.
                after.add(_WORD.sub("0", joined)[-5:])
        return frozenset(after)
