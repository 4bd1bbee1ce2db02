"""The longest stretches of some texts that occur in another, much longer one.

The texts become a suffix automaton (Blumer et al., 1985), and the long one is read once, in chunks:
its time is linear in the length of that one, its memory in the length of the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

SHORTEST = 4
"""Tokens of the shortest stretch that is looked for; what is shorter counts as no stretch."""

_PAIR = 1 << 32


class SuffixAutomaton:
    """All parts of some sequences of token ids."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._ends: list[list[int]] = []  # of each sequence, the state of each of its beginnings
        last = 0
        for number, sequence in enumerate(sequences):
            last = self._append(last, -1 - number)  # separates it, as no text has such a token
            states = []
            for token in sequence:
                last = self._append(last, token)
                states.append(last)
            self._ends.append(states)
        self._found = [0] * len(self._next)
        pairs = [
            first * _PAIR + second for sequence in sequences for first, second in pairwise(sequence)
        ]
        self._pairs = np.unique(np.array(pairs, dtype=np.int64))

    def _append(self, last: int, token: int) -> int:
        new = self._state(self._length[last] + 1, {})
        state = last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state < 0:
            self._link[new] = 0
            return new
        target = self._next[state][token]
        if self._length[target] > self._length[state] + 1:
            target = self._clone(target, state, token)
        self._link[new] = target
        return new

    def _clone(self, target: int, state: int, token: int) -> int:
        clone = self._state(self._length[state] + 1, dict(self._next[target]))
        self._link[clone] = self._link[target]
        self._link[target] = clone
        while state >= 0 and self._next[state].get(token) == target:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _state(self, length: int, following: dict[int, int]) -> int:
        self._next.append(following)
        self._link.append(0)
        self._length.append(length)
        return len(self._next) - 1

    def read(self, chunks: Iterable[np.ndarray]) -> None:
        """Note which parts of the sequences occur in the tokens of `chunks`, joined."""
        rest = np.empty(0, dtype=np.int64)
        for chunk in chunks:
            tokens = np.concatenate((rest, chunk.astype(np.int64)))
            rest = self._runs(tokens)
        self._follow(rest)

    def _runs(self, tokens: np.ndarray) -> np.ndarray:
        """Follow the stretches whose neighboring tokens are neighbors in the sequences, too.

        Returns the last one if it may go on in the next chunk.
        """
        pairs = tokens[:-1] * _PAIR + tokens[1:]
        at = np.searchsorted(self._pairs, pairs)
        known = np.zeros(len(pairs) + 2, dtype=np.int8)
        if len(self._pairs):
            known[1:-1] = self._pairs[np.minimum(at, len(self._pairs) - 1)] == pairs
        edges = np.diff(known)
        starts = np.flatnonzero(edges == 1)
        stops = np.flatnonzero(edges == -1) + 1
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            if stop == len(tokens):
                return tokens[start:]
            if stop - start >= SHORTEST:
                self._follow(tokens[start:stop])
        return tokens[-1:]

    def _follow(self, tokens: np.ndarray) -> None:
        state = 0
        length = 0
        for token in tokens.tolist():
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state = self._next[state][token]
                length += 1
            if length > self._found[state]:
                self._found[state] = length

    def stretches(self) -> Iterator[list[int]]:
        """For each token of each sequence, how many tokens up to it occur in what was read."""
        found = list(self._found)
        for state in sorted(range(1, len(found)), key=self._length.__getitem__, reverse=True):
            link = self._link[state]
            if found[state] and link > 0:
                found[link] = max(found[link], self._length[link])
        for states in self._ends:
            lengths = []
            for state in states:
                while state and not found[state]:
                    state = self._link[state]
                lengths.append(found[state] if state and found[state] >= SHORTEST else 0)
            yield lengths
