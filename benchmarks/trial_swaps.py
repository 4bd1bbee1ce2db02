"""Tokens that change places with others that are used alike, as a trial reads its text
(benchmarks/LOG.md, 2026-11-29). What they gain is not settled, so that the package has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.training.neighbors import (
    MOST_DIMENSIONS,
    SCALE,
    counted,
    neighbor_embeddings,
)

GROUP_SIZE = 8

MOST_FREQUENT = 0.0015
"""A larger share of the text is that of function words, endings and punctuation: they stay."""


class TokenSwaps:
    """Swaps tokens within groups, `group` (V,): the number of each token's, -1 for one that stays.

    In a window a token is the same other one wherever it is.
    """

    def __init__(self, group: Tensor) -> None:
        by_group = torch.argsort(group, stable=True)
        self.members = by_group[group[by_group] >= 0]
        self.group = group[self.members]
        self.sizes = torch.unique_consecutive(self.group, return_counts=True)[1]

    @classmethod
    def of(cls, data: TokenDataModule) -> TokenSwaps:
        """The groups of the tokens in the training text of `data`; the end of a document stays."""
        tokenizer = data.tokenizer
        group = token_groups(counted(data.train_windows), tokenizer.vocab_size)
        group[tokenizer.eot_id] = -1
        return cls(group)

    def swapped(self, windows: Tensor, probability: float, order: str, seed: int) -> Tensor:
        """`windows` (B, T + 1) in which each group has changed places in a window with this
        probability: in any order ("random"), or each token for the one some places later ("shift").
        """
        generator = torch.Generator().manual_seed(seed)
        count, number = len(windows), len(self.sizes)
        moves = torch.rand(count, number, generator=generator) < probability
        if order == "random":
            draws = torch.rand(count, len(self.members), generator=generator)
            places = torch.argsort(self.group.double() * 2 + draws, dim=1)
        else:
            draws = torch.rand(count, number, generator=generator)
            shifts = 1 + (draws * (self.sizes - 1)).long()
            first = (self.sizes.cumsum(0) - self.sizes)[self.group]
            rank = torch.arange(len(self.members)) - first
            places = first + (rank + shifts[:, self.group]) % self.sizes[self.group]
        others = torch.where(moves[:, self.group], self.members[places], self.members)
        largest = max(int(windows.max()), int(self.members.max()))
        tables = torch.arange(largest + 1).repeat(count, 1)
        tables[:, self.members] = others
        return tables.to(windows.device).gather(1, windows)


def token_groups(windows: Tensor, vocab_size: int) -> Tensor:
    """Groups of GROUP_SIZE tokens, fewer at the end, by their neighbors in `windows` (N, T): (V,).

    Counts within a group differ by less than a factor of two. The most frequent token that is still
    free takes the free ones that are most like it.
    """
    tokens = windows.flatten()
    counts = torch.zeros(vocab_size, dtype=torch.long).index_add_(
        0, tokens, torch.ones_like(tokens)
    )
    width = min(vocab_size, MOST_DIMENSIONS)
    generator = torch.Generator().manual_seed(0)
    vectors = neighbor_embeddings(windows, vocab_size, width, SCALE, generator)
    vectors = F.normalize(vectors - vectors.mean(0), dim=1)
    group = torch.full((vocab_size,), -1)
    number, least, limit = 0, 1, int(MOST_FREQUENT * len(tokens))
    while least <= limit:
        found = ((counts >= least) & (counts <= min(2 * least - 1, limit))).nonzero().flatten()
        found = found[torch.argsort(counts[found], descending=True, stable=True)]
        for members in _alike(vectors[found]):
            group[found[members]] = number
            number += 1
        least *= 2
    return group


def _alike(vectors: Tensor) -> Iterator[Tensor]:
    """The rows of each group; one that is left over is in none."""
    is_free = torch.ones(len(vectors), dtype=torch.bool)
    for leader in range(len(vectors)):
        size = min(GROUP_SIZE, int(is_free.sum()))
        if size < 2:
            return
        if is_free[leader]:
            likeness = torch.where(is_free, vectors @ vectors[leader], -torch.inf)
            likeness[leader] = torch.inf
            members = likeness.topk(size).indices
            is_free[members] = False
            yield members
