"""Whether a text holds a consistent plot: it is read back by the grammar of the tales.

A tale is followed part by part through every plot, narrator and tense that could have written it.
What is kept is the state of the grammar: how far the text has been read, and which entries each
player can still be. A text is consistent if a plot can be followed to the end of both with the same
players. Where a subject may be left out is not checked, and spaces and capitals do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.grammar import (
    Choice,
    Mode,
    Part,
    Rule,
    Slot,
    classes,
    fitting_rules,
    rules,
)
from azllm_lightning.azerbaijani.lexicon import Entry
from azllm_lightning.azerbaijani.tales import MODES, heads, variants

CONSISTENT = "consistent"
UNFINISHED = "unfinished"
PLAYERS = "players"
ORDER = "order"
SENTENCE = "sentence"
REASONS = (CONSISTENT, UNFINISHED, PLAYERS, ORDER, SENTENCE)

_Players = tuple[tuple[str, frozenset[str]], ...]  # by letter, the stems that the player can be
_State = tuple[int, _Players]  # how many letters of the text have been read


class Verdict(NamedTuple):
    """What the checker says of a text.

    `reason` is one of REASONS: a consistent plot; the beginning of one, cut off; the sentences of
    one plot in order, but the players change; sentences of the tales that make no plot; or, in
    `sentence`, something that no tale says. `plot` is the name of the plot that could be followed
    ("" if none), `rest` what could not be read on, and `share` the part of the text before it.
    """

    reason: str
    plot: str
    rest: str
    share: float


def judge(text: str) -> Verdict:
    """What the checker says of a text that should be one tale."""
    letters = _letters(text)
    unfinished = ""
    furthest = 0
    for name, rule, mode in _plots():
        reading = _Reading(letters, dict(rule.cast), mode)
        if reading.reads(rule.parts):
            return Verdict(CONSISTENT, name, "", 1.0)
        if reading.ran_out:
            unfinished = name
        furthest = max(furthest, reading.furthest)
    if unfinished:
        return Verdict(UNFINISHED, unfinished, "", 1.0)
    rest = _rest(text, furthest)
    share = furthest / len(letters)
    for name, rule, mode in _plots():
        if _Reading(letters, dict(rule.cast), mode, same_players=False).reads(rule.parts):
            return Verdict(PLAYERS, name, rest, share)
    pieces = any(_reads_pieces(letters, mode) for mode in dict.fromkeys(MODES))
    return Verdict(ORDER if pieces else SENTENCE, "", rest, share)


def _letters(text: str) -> str:
    return m.lower("".join(text.split()))


def _rest(text: str, read: int) -> str:
    """`text` without its first `read` letters."""
    for i, letter in enumerate(text):
        if not letter.isspace():
            if not read:
                return text[i:]
            read -= 1
    return ""


@cache
def _plots() -> list[tuple[str, Rule, Mode]]:
    return [
        (name.removeprefix("story."), rule, mode)
        for name, group in rules().items()
        if name.startswith("story.")
        for rule in group
        for mode in dict.fromkeys(MODES)
        if rule.allows(mode)
    ]


def _reads_pieces(letters: str, mode: Mode) -> bool:
    """Whether the text is made of pieces of any plots, in any order, told in this mode."""
    casts: dict[str, dict[str, str]] = {}  # by the first part of a symbol, as in lost.have
    for name, group in rules().items():
        if name.startswith("story."):
            for rule in group:
                for symbol in _symbols(rule.parts):
                    casts.setdefault(symbol, {}).update(rule.cast)
    waiting = {0}
    seen = {0}
    while waiting:
        start = waiting.pop()
        for symbol, cast in casts.items():
            reading = _Reading(letters, cast, mode, same_players=False)
            for rule in fitting_rules(symbol, mode):
                ends = {end for end, _ in reading.read(rule.parts, {(start, ())})}
                if len(letters) in ends:
                    return True
                waiting |= ends - seen
                seen |= ends
    return False


def _symbols(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Choice):
            for option in part.options:
                yield from _symbols(option)
        elif not isinstance(part, str | Slot):
            yield part.name


class _Reading:
    """A text being read by one plot in one mode."""

    def __init__(
        self, letters: str, cast: dict[str, str], mode: Mode, same_players: bool = True
    ) -> None:
        self._letters = letters
        self._cast = cast
        self._mode = mode
        self._same_players = same_players
        self.ran_out = False  # the text ended where the plot goes on
        self.furthest = 0

    def reads(self, parts: tuple[Part, ...]) -> bool:
        """Whether the parts can be read to the end of both, the players being different ones."""
        for end, players in self.read(parts, {(0, ())}):
            if end == len(self._letters) and _differ(players):
                return True
        return False

    def read(self, parts: tuple[Part, ...], states: set[_State]) -> set[_State]:
        """The states after the parts, from each of some states."""
        for part in parts:
            if not states:
                break
            states = self._one(part, states)
        return states

    def _one(self, part: Part, states: set[_State]) -> set[_State]:
        if isinstance(part, str):
            return self._text(_letters(part), states)
        if isinstance(part, Slot):
            return {after for state in states for after in self._slot(part, state)}
        if isinstance(part, Choice):
            options = part.options
        else:
            options = tuple(rule.parts for rule in fitting_rules(part.name, self._mode))
        return {after for option in options for after in self.read(option, states)}

    def _text(self, wanted: str, states: set[_State]) -> set[_State]:
        after = set()
        for at, players in states:
            if self._letters.startswith(wanted, at):
                after.add((at + len(wanted), players))
                self.furthest = max(self.furthest, at + len(wanted))
            elif at < len(self._letters) or not wanted:
                self.ran_out |= wanted.startswith(self._letters[at:])
            else:
                self.ran_out = True
        return after

    def _slot(self, slot: Slot, state: _State) -> Iterator[_State]:
        at, players = state
        texts = _texts(slot, self._cast.get(slot.head, ""), self._mode)
        known = dict(players).get(slot.head)
        lengths = _lengths(slot, self._cast.get(slot.head, ""), self._mode)
        rest = self._letters[at : at + lengths[-1]]
        if len(rest) < lengths[-1] and rest not in texts:
            self.ran_out |= any(text.startswith(rest) for text in texts)
        for length in lengths:
            word = self._letters[at : at + length]
            stems = texts.get(word) if len(word) == length else None
            if stems is None:
                continue
            still = stems if known is None else stems & known
            if still:
                self.furthest = max(self.furthest, at + length)
            if slot.head not in self._cast or not self._same_players:
                yield at + length, players
            elif still:
                others = tuple(item for item in players if item[0] != slot.head)
                yield at + length, tuple(sorted((*others, (slot.head, still))))


def _differ(players: _Players) -> bool:
    """Whether no two players are certainly the same one."""
    certain = [stems for _, stems in players if len(stems) == 1]
    return len(certain) == len(set(certain))


@cache
def _texts(slot: Slot, name: str, mode: Mode) -> dict[str, frozenset[str]]:
    """Everything that a slot can become, in letters, with the stems that become it.

    `name` is the class of the player, "" if the head is none.
    """
    entries: list[Entry] = classes()[name] if name else heads(slot.head, mode)
    found: dict[str, set[str]] = {}
    for entry in entries:
        for again, mentioned in product((False, True), repeat=2):
            for text in variants(entry, slot, mode, again, mentioned):
                found.setdefault(_letters(text), set()).add(entry.stem)
    return {text: frozenset(stems) for text, stems in found.items()}


@cache
def _lengths(slot: Slot, name: str, mode: Mode) -> tuple[int, ...]:
    return tuple(sorted({len(text) for text in _texts(slot, name, mode)}))
