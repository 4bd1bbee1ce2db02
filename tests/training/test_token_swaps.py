"""Tokens that change places with others that are used alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from azllm_lightning.training import token_swaps
from azllm_lightning.training.token_swaps import GROUP_SIZE, TokenSwaps, token_groups

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]

GROUP = torch.tensor([-1, 1, 0, 0, -1, 1, 1, 0, 2, 2, -1], dtype=torch.int32)
"""The tokens 2, 3, 7; 1, 5, 6; and 8, 9. 0, 4 and 10 stay."""


def some_windows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(len(GROUP), (count, 33), generator=generator)


def test_a_window_shifts_each_group_or_leaves_it() -> None:
    windows = some_windows(400)
    swapped = TokenSwaps(GROUP, 1).swapped(windows, np.arange(400), 0.4)
    moved = torch.zeros(3)
    for before, after in zip(windows.tolist(), swapped.tolist(), strict=True):
        other = dict(zip(before, after, strict=True))
        assert len(set(other.values())) == len(other), "two tokens became one"
        assert [other[token] for token in before] == after, "a token became several"
        for token, became in other.items():
            assert GROUP[token] == GROUP[became]
            assert token == became or GROUP[token] >= 0
        for group in range(3):
            changes = {
                token != became for token, became in other.items() if int(GROUP[token]) == group
            }
            assert len(changes) <= 1, "a part of a group moved"
            moved[group] += changes == {True}
    assert (moved / 400).tolist() == pytest.approx([0.4] * 3, abs=0.1)


def test_all_others_of_a_group_are_as_likely() -> None:
    windows = torch.full((3000, 1), 3)
    swapped = TokenSwaps(GROUP, 1).swapped(windows, np.arange(3000), 1 - 1e-9)
    counts = [int((swapped == token).sum()) for token in (2, 7)]
    assert sum(counts) == 3000
    assert counts == pytest.approx([1500, 1500], rel=0.1)


def test_swaps_follow_from_seed_and_position_alone() -> None:
    windows = some_windows(8)
    swapped = TokenSwaps(GROUP, 1).swapped(windows, np.arange(8), 0.5)
    swaps = TokenSwaps(GROUP, 1)
    halves = [swaps.swapped(windows[i : i + 4], np.arange(i, i + 4), 0.5) for i in (4, 0)]
    assert torch.equal(torch.cat(halves[::-1]), swapped)
    assert not torch.equal(TokenSwaps(GROUP, 2).swapped(windows, np.arange(8), 0.5), swapped)
    assert not torch.equal(swaps.swapped(windows, np.arange(8, 16), 0.5), swapped)
    assert torch.equal(swaps.swapped(windows, np.arange(8), 0.0), windows)


def test_without_groups_nothing_is_swapped() -> None:
    windows = some_windows(4)
    none = torch.full((len(GROUP),), -1, dtype=torch.int32)
    assert torch.equal(TokenSwaps(none, 1).swapped(windows, np.arange(4), 0.9), windows)


def sentences() -> Tensor:
    """Windows of "the" NAME VERB and "a" THING ADJECTIVE, GROUP_SIZE different words each."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(GROUP_SIZE, (2400, 2, 2), generator=generator)
    words += 2 + GROUP_SIZE * torch.arange(4).view(2, 2)
    first = torch.arange(2).view(1, 2, 1).expand(2400, 2, 1)
    return torch.cat([first, words], dim=2).reshape(-1, 60)


def test_groups_are_of_tokens_with_the_same_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_swaps, "MOST_FREQUENT", 0.1)
    group = token_groups(sentences(), 40, seed=1)
    assert group[:2].tolist() == [-1, -1], "the most frequent stay"
    assert (group[2 + 4 * GROUP_SIZE :] == -1).all(), "what the text does not have"
    for number in range(int(group.max()) + 1):
        members = (group == number).nonzero().flatten()
        classes = (members - 2) // GROUP_SIZE
        assert 2 <= len(members) <= GROUP_SIZE
        assert len(set(classes.tolist())) == 1


def test_a_group_has_tokens_about_as_frequent() -> None:
    generator = torch.Generator().manual_seed(0)
    share = 1 / torch.arange(1, 501).double()
    windows = torch.multinomial(share.expand(200, -1), 100, True, generator=generator)
    counts = torch.bincount(windows.flatten(), minlength=500)
    group = token_groups(windows, 500, seed=1)
    assert (counts[group >= 0] <= token_swaps.MOST_FREQUENT * windows.numel()).all()
    assert int(group.max()) > 10
    for number in range(int(group.max()) + 1):
        of_group = counts[group == number]
        assert of_group.max() < 2 * of_group.min()


def test_groups_are_the_same_with_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(token_groups(sentences(), 40, seed=1))
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])


def test_swaps_become_fewer_as_the_learning_rate_falls(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    swap = TokenSwaps.swapped

    def watched(self: TokenSwaps, windows: Tensor, *settings: Any) -> Tensor:
        asked.append(settings[1])
        return swap(self, windows, *settings)

    monkeypatch.setattr(TokenSwaps, "swapped", watched)
    train_tiny(
        "data.token_swaps=0.8",
        "trainer.max_steps=4",
        "schedule=linear",
        "schedule.warmup_steps=0",
    )
    steps = asked[:: len(asked) // 4]
    assert steps == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_resume_has_the_groups_that_the_run_began_with(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others could be found on another machine, where sums differ in their last digits."""
    made: list[Tensor] = []
    init = TokenSwaps.__init__

    def watched(self: TokenSwaps, group: Tensor, seed: int) -> None:
        made.append(group.clone())
        init(self, group, seed)

    monkeypatch.setattr(TokenSwaps, "__init__", watched)
    train_tiny("data.token_swaps=0.8", "trainer.max_steps=2")
    assert (made[0] >= 0).any()
    monkeypatch.setattr(token_swaps, "neighbor_embeddings", SimpleNamespace())
    train_tiny("ckpt_path=last", "trainer.max_steps=3", "schedule.total_steps=3")
    assert len(made) == 2
    assert torch.equal(made[0], made[1])
