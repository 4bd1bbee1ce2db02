"""Tokens replaced by random ones: how many, by which, and from what they follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from azllm_lightning.data.replacement import replace_tokens


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
def test_a_share_of_the_tokens_is_replaced_by_any_of_the_vocabulary(share: float) -> None:
    vocab = 50
    windows = torch.full((1000, 257), -1)
    found = replace_tokens(windows, np.arange(1000), share, vocab, seed=1)
    assert (windows == -1).all()
    is_new = found != -1
    for axis in (0, 1):  # everywhere in the windows, and in all windows
        counts = is_new.double().mean(dim=axis)
        spread = (share * (1 - share) / windows.shape[axis]) ** 0.5
        assert abs(float(counts.mean()) - share) < 0.1 * share
        assert float(counts.std()) == pytest.approx(spread, rel=0.2)
    counts = torch.bincount(found[is_new], minlength=vocab).double()
    assert len(counts) == vocab
    expected = float(is_new.sum()) / vocab
    assert float(((counts - expected) ** 2 / expected).sum()) < 2 * vocab  # chi-squared
    # neighbours are independent
    both = (is_new[:, 1:] & is_new[:, :-1]).double().mean()
    assert float(both) == pytest.approx(share**2, rel=0.15)


def test_the_draws_follow_from_seed_and_position_alone() -> None:
    windows = torch.arange(8 * 33).view(8, 33)

    def replaced(rows: list[int], seed: int = 1) -> torch.Tensor:
        return replace_tokens(windows[rows], np.array(rows), 0.5, 1000, seed)

    together = replaced(list(range(8)))
    apart = torch.cat([replaced([5, 6, 7]), replaced([0]), replaced([1, 2, 3, 4])])
    assert torch.equal(apart, together[[5, 6, 7, 0, 1, 2, 3, 4]])
    assert not torch.equal(replaced(list(range(8)), seed=2), together)
    same = windows[:1].expand(2, -1)
    one, other = replace_tokens(same, np.array([3, 11]), 0.5, 1000, seed=1)
    assert not torch.equal(one, other)


def test_the_draws_never_change() -> None:
    """A run resumed with a later version must continue with the tokens it would have read."""
    zeros = torch.zeros(2, 12, dtype=torch.int64)
    found = replace_tokens(zeros, np.array([0, 10**9]), 0.5, 8192, seed=1234)
    assert found.tolist() == [
        [7196, 0, 3147, 0, 161, 1148, 3100, 0, 0, 0, 0, 3535],
        [0, 7226, 1981, 0, 2619, 57, 0, 0, 0, 0, 353, 924],
    ]
