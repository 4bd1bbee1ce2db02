"""The rules that generate stories: `tales.tsv`, parsed.

A rule is a symbol, a condition and a text.

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
from functools import cache
from typing import NamedTuple

from azllm_lightning.azerbaijani.lexicon import Entry, lexicon, read_tsv

PERSONS = ("1sg", "3sg")  # the hero's
TENSES = ("past", "pres", "evid")
REDUCIBLE = frozenset({"sub", "ref"})
_MARKS = REDUCIBLE | {"friend"}
HERO = "A"
_PART = re.compile(r"\{([^{}]+)\}|<([^<>]+)>|([\[|\]])|([^\[\]|{}<>]+)")


class Mode(NamedTuple):
    """Who tells the story, the hero or another, and in which tense."""

    person: str
    tense: str


class Slot(NamedTuple):
    """`{head:features}`; the features that do not inflect are the marks."""

    head: str
    features: tuple[str, ...]
    marks: frozenset[str]

    @property
    def topic(self) -> str:
        """The topic that the slot gives its sentence; "" if none."""
        if "we" in self.features:
            return "we"
        if "A" in self.features:
            return HERO
        return self.head if "sub" in self.marks else ""


class Symbol(NamedTuple):
    """`<name>`."""

    name: str


class Choice(NamedTuple):
    """`[this|that]`."""

    options: tuple[tuple[Part, ...], ...]


Part = str | Slot | Symbol | Choice


class Rule(NamedTuple):
    """A rule of `tales.tsv` without its symbol."""

    persons: frozenset[str]
    tenses: frozenset[str]
    cast: tuple[tuple[str, str], ...]  # (letter, class)
    parts: tuple[Part, ...]

    def allows(self, mode: Mode) -> bool:
        """Whether the rule is meant for stories told like this."""
        return mode.person in self.persons and mode.tense in self.tenses


@cache
def rules() -> dict[str, list[Rule]]:
    """All rules by symbol."""
    found: dict[str, list[Rule]] = {}
    for row in read_tsv("tales.tsv"):
        when = row["when"].split()
        cast = tuple((item[0], item[2:]) for item in when if "=" in item)
        persons = frozenset(when) & frozenset(PERSONS) or frozenset(PERSONS)
        tenses = frozenset(when) & frozenset(TENSES) or frozenset(TENSES)
        rule = Rule(persons, tenses, cast, _parse(row["text"]))
        found.setdefault(row["symbol"], []).append(rule)
    return found


@cache
def fitting_rules(symbol: str, mode: Mode) -> list[Rule]:
    """The rules of a symbol for stories told like this."""
    return [rule for rule in rules()[symbol] if rule.allows(mode)]


@cache
def story_rules() -> list[Rule]:
    """The rules that a story begins with."""
    return [rule for name, group in rules().items() if name.startswith("story.") for rule in group]


@cache
def classes() -> dict[str, list[Entry]]:
    """The entries of the lexicon by class."""
    members: dict[str, list[Entry]] = {}
    for entry in lexicon().values():
        for name in entry.classes:
            members.setdefault(name, []).append(entry)
    return members


def _parse(text: str) -> tuple[Part, ...]:
    stack: list[list[list[Part]]] = [[[]]]  # for each open bracket, its options so far
    for slot, symbol, mark, plain in _PART.findall(text):
        if mark == "[":
            stack.append([[]])
        elif mark == "|":
            stack[-1].append([])
        elif mark == "]":
            options = stack.pop()
            stack[-1][-1].append(Choice(tuple(map(tuple, options))))
        elif slot:
            stack[-1][-1].append(_parse_slot(slot))
        else:
            stack[-1][-1].append(Symbol(symbol) if symbol else re.sub(r" */ *", "\n", plain))
    ((parts,),) = stack
    return tuple(parts)


def _parse_slot(slot: str) -> Slot:
    head, _, text = slot.partition(":")
    features = text.split(".") if text else []
    inflected = tuple(feature for feature in features if feature not in _MARKS)
    return Slot(head, inflected, frozenset(features) & _MARKS)
