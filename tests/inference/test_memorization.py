from __future__ import annotations

import random

import numpy as np
import pytest

from azllm_lightning.inference.memorization import SHORTEST, SuffixAutomaton


def by_trying(sequences: list[list[int]], text: list[int]) -> list[list[int]]:
    """The definition: the longest part that ends at each token and occurs in `text`."""
    places = {
        tuple(text[start:stop])
        for start in range(len(text))
        for stop in range(start + SHORTEST, len(text) + 1)
    }
    return [
        [
            max(
                (n for n in range(SHORTEST, i + 2) if tuple(one[i + 1 - n : i + 1]) in places),
                default=0,
            )
            for i in range(len(one))
        ]
        for one in sequences
    ]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_stretches_are_those_found_by_trying_all(chunk: int) -> None:
    dice = random.Random(0)
    for _ in range(20):
        text = [dice.randrange(3) for _ in range(120)]
        sequences = [[dice.randrange(3) for _ in range(dice.randrange(25))] for _ in range(3)]
        sequences.append(text[30:60])
        automaton = SuffixAutomaton(sequences)
        automaton.read(
            np.array(text[i : i + chunk], dtype=np.uint16) for i in range(0, len(text), chunk)
        )
        assert list(automaton.stretches()) == by_trying(sequences, text)


def test_a_stretch_does_not_go_from_one_sequence_into_the_next() -> None:
    automaton = SuffixAutomaton([[1, 2, 3, 4], [5, 6, 7, 8]])
    automaton.read([np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.uint16)])
    assert list(automaton.stretches()) == [[0, 0, 0, 4], [0, 0, 0, 4]]


def test_nothing_to_look_for_and_nothing_to_read() -> None:
    automaton = SuffixAutomaton([[], [7]])
    automaton.read([np.array([1, 2, 3], dtype=np.uint16), np.array([], dtype=np.uint16)])
    assert list(automaton.stretches()) == [[], [0]]
    automaton = SuffixAutomaton([[1, 2, 3, 4, 5]])
    automaton.read([])
    assert list(automaton.stretches()) == [[0] * 5]
