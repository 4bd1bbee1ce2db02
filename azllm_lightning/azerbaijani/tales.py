"""Short Azerbaijani stories, written by a grammar: `data=tales`.

In the spirit of TinyStories (Eldan and Li, 2023; arXiv:2305.07759). `lexicon.tsv` holds the stems
and `tales.tsv` the rules (see `grammar`). A story is one draw of a rule, a cast, a narrator and a
tense; every further choice in it is another draw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from itertools import product

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.grammar import (
    HERO,
    REDUCIBLE,
    Choice,
    Mode,
    Part,
    Slot,
    Symbol,
    classes,
    fitting_rules,
    story_rules,
)
from azllm_lightning.azerbaijani.lexicon import Entry, inflect, lexicon
from azllm_lightning.azerbaijani.topic import Topic

_PERSONS = {"1sg": "1pl", "3sg": "3pl"}  # the hero alone, and with others
_TENSES = {
    "past": {"T": "past", "I": "impf", "D": "pluperf"},
    "pres": {"T": "pres", "I": "pres", "D": "evid"},
    "evid": {"T": "evid", "I": "impf_evid", "D": "evid"},
}
_LONGEST_SILENCE = 4  # topics left out or turned into pronouns in a row, before a name is due
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SENTENCE = re.compile(r"((?:^|[.!?]»? |\n(?:— )?|\. — )«?|: «)([^\W\d_])")
_PRONOUNS = {
    "1sg": {"a": "mən", "we": "biz"},
    "3sg": {"a": "o", "we": "onlar"},
}


_MODES = tuple(  # of twelve stories
    Mode(*mode.split())
    for mode, weight in {
        "3sg past": 5,
        "3sg pres": 2,
        "3sg evid": 1,
        "1sg past": 3,
        "1sg pres": 1,
    }.items()
    for _ in range(weight)
)


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
    for rule in story_rules():
        for mode in set(_MODES):
            if rule.allows(mode):
                _Listing(dict(rule.cast), mode, found).walk(rule.parts, frozenset({""}))
    return frozenset(found)


def _write(dice: _Dice) -> str:
    stories = story_rules()
    rule = stories[dice.below(len(stories))]
    modes = [mode for mode in _MODES if rule.allows(mode)]
    mode = modes[dice.below(len(modes))]
    players: dict[str, Entry] = {}
    for letter, name in rule.cast:
        members = [entry for entry in classes()[name] if entry not in players.values()]
        players[letter] = members[dice.below(len(members))]
    return _polish(_Telling(dice, mode, players).expand(rule.parts)).rstrip()


class _Telling:
    """One story on its way: what was drawn, who was mentioned, what the last sentence was about."""

    def __init__(self, dice: _Dice, mode: Mode, players: dict[str, Entry]) -> None:
        self._dice = dice
        self._mode = mode
        self._players = players
        self._drawn: dict[str, Entry] = {}  # by class, so that no member comes twice in a row
        self._mentioned: set[str] = set()
        self._topic = Topic()
        self._reduced = 0  # topics in a row that were left out or turned into pronouns

    def expand(self, parts: tuple[Part, ...]) -> str:
        return "".join(map(self._one, parts))

    def _one(self, part: Part) -> str:
        if isinstance(part, Choice):
            return self.expand(part.options[self._dice.below(len(part.options))])
        if isinstance(part, Symbol):
            fitting = fitting_rules(part.name, self._mode)
            return self.expand(fitting[self._dice.below(len(fitting))].parts)
        text = part if isinstance(part, str) else self._word(part)
        self._topic.read(text)
        return text

    def _word(self, slot: Slot) -> str:
        entry = self._entry(slot.head)
        again = slot.head == self._topic.last and self._reduced < _LONGEST_SILENCE
        mentioned = slot.head in self._mentioned
        text = self._draw_variant(_variants(entry, slot, self._mode, again, mentioned))
        if slot.marks & REDUCIBLE:
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
        raise AssertionError("no variant has a weight")


def _heads(head: str, mode: Mode) -> list[Entry]:
    if head in _PRONOUNS[mode.person]:
        return [lexicon()[_PRONOUNS[mode.person][head]]]
    return classes().get(head) or [lexicon()[head]]


def _variants(entry: Entry, slot: Slot, mode: Mode, again: bool, mentioned: bool) -> dict[str, int]:
    """What `slot` can become, with weights.

    `again`: the sentence before was about the same one; `mentioned`: it occurred in the story.
    """
    full = _render(entry, slot, mode)
    if "friend" in slot.marks and not mentioned:
        return {f"{_form('dost', (f'p{mode.person}',))} {full}": 1}
    if not slot.marks & REDUCIBLE:
        return {full: 1}
    can_drop = not {"dat", "acc", "loc", "abl", "ins"}.intersection(slot.features)
    if mode.person == "1sg" and slot.head in (HERO, "we"):
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
def _meaning(mode: Mode) -> dict[str, str]:
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


def _render(entry: Entry, slot: Slot, mode: Mode) -> str:
    """The word of `slot` in full."""
    stem = _PRONOUNS["1sg"]["a"] if slot.head == HERO and mode.person == "1sg" else entry.stem
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


def _was(stem: str, features: list[str], slot: Slot, mode: Mode) -> str:
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

    def __init__(self, cast: dict[str, str], mode: Mode, found: set[str]) -> None:
        self._cast = cast
        self._mode = mode
        self._found = found
        self._walked: dict[tuple[str, frozenset[str]], frozenset[str]] = {}
        self._given: dict[Slot, set[str]] = {}

    def walk(self, parts: tuple[Part, ...], tails: frozenset[str]) -> frozenset[str]:
        for part in parts:
            if isinstance(part, str):
                tails = self._add({part}, tails)
            elif isinstance(part, Slot):
                if part not in self._given:
                    self._given[part] = self._texts(part)
                tails = self._add(self._given[part], tails)
            elif isinstance(part, Choice):
                tails = frozenset().union(*(self.walk(option, tails) for option in part.options))
            else:
                tails = self._walk_symbol(part.name, tails)
        return tails

    def _walk_symbol(self, name: str, tails: frozenset[str]) -> frozenset[str]:
        key = (name, tails)
        if key not in self._walked:
            ends = (self.walk(rule.parts, tails) for rule in fitting_rules(name, self._mode))
            self._walked[key] = frozenset().union(*ends)
        return self._walked[key]

    def _texts(self, slot: Slot) -> set[str]:
        if slot.head in self._cast:
            entries = classes()[self._cast[slot.head]]
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
