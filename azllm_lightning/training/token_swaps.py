"""Tokens that change places with others that are used alike, in training.

A model that reads a text many times learns its sentences by heart. If some of its tokens stand for
others in each reading, those with about the same neighbors and about as frequent, no sentence comes
twice, and what the tokens of a group have in common is learned from the text of all of them, as in
the word classes of Brown et al. 1992 (Computational Linguistics 18(4)). A token that a window
repeats is the same other one each time, since much of a text is predicted from what it repeats.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.data.datamodule import TrainingWindows
from azllm_lightning.data.replacement import GAMMA, on_device
from azllm_lightning.data.sampler import Indices, splitmix64
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.training.neighbors import (
    MOST_DIMENSIONS,
    SCALE,
    counted,
    neighbor_embeddings,
)

GROUP_SIZE = 8

MOST_FREQUENT = 0.0015
"""A larger share of the text is that of function words, endings and punctuation, on which the
grammar of a sentence depends: they stay."""


class TokenSwaps:
    """Swaps the tokens of training windows, as a pure function of (seed, position in the run): the
    same with any micro-batch, any number of processes and on any device.

    `group` (V,), int32, is the number of each token's group, -1 for one that stays as it is.
    """

    def __init__(self, group: Tensor, seed: int) -> None:
        self.group = group
        digest = hashlib.blake2b(f"{seed}/swaps".encode(), digest_size=8).digest()
        self._key = np.uint64(int.from_bytes(digest, "little"))
        of_token = group.long()
        sizes = torch.zeros(int(of_token.max()) + 1, dtype=torch.long)
        sizes.index_add_(0, of_token[of_token >= 0], torch.ones_like(of_token[of_token >= 0]))
        # Those of a group stand next to each other, and so do those that stay, at the beginning.
        by_group = torch.argsort(of_token, stable=True)
        first = len(of_token) - sizes.flip(0).cumsum(0).flip(0)
        place = torch.empty_like(by_group)
        place[by_group] = torch.arange(len(by_group))
        self._sizes = sizes.numpy()
        self._tables: tuple[Tensor, ...] = (of_token, by_group, place, first, sizes)

    @classmethod
    def of(cls, windows: TrainingWindows, tokenizer: Tokenizer, seed: int) -> TokenSwaps:
        """The groups of the tokens in the text of `windows`; the end of a document stays."""
        group = token_groups(counted(windows), tokenizer.vocab_size, seed)
        group[tokenizer.eot_id] = -1
        return cls(group, seed)

    def swapped(self, windows: Tensor, positions: Indices, probability: float) -> Tensor:
        """`windows` (B, T + 1) in which each group has changed places in a window with
        this probability: each of its tokens is the one that follows some places later in the group.

        `positions` (B,) are those of the windows in the run.
        """
        if not len(self._sizes):
            return windows
        self._tables = tuple(table.to(windows.device) for table in self._tables)
        of_token, by_group, place, first, sizes = self._tables
        shifts = on_device(windows.device, self._shifts(positions, probability))
        stays = of_token[windows] < 0
        group = of_token[windows].clamp_min(0)
        rank = place[windows] - first[group] + shifts.gather(1, group)
        other = by_group[(rank % sizes[group]) + first[group]]
        return torch.where(stays, windows, other)

    def _shifts(self, positions: Indices, probability: float) -> Indices:
        """How many places each group moves in each window: (B, G), 0 where it does not."""
        states = splitmix64(positions.astype(np.uint64) ^ self._key)
        steps = np.arange(1, len(self._sizes) + 1, dtype=np.uint64) * np.uint64(GAMMA)
        bits = splitmix64(states[:, None] + steps)
        # The upper half of the bits chooses the groups, the lower half the shifts.
        moves = (bits >> np.uint64(32)) < np.uint64(round(probability * 2**32))
        others = (self._sizes - 1).astype(np.uint64)
        shifts = 1 + (((bits & np.uint64(0xFFFFFFFF)) * others) >> np.uint64(32))
        return np.where(moves, shifts, 0).astype(np.int64)


def token_groups(windows: Tensor, vocab_size: int, seed: int) -> Tensor:
    """Groups of GROUP_SIZE tokens, fewer at the end, by their neighbors in `windows` (N, T): (V,),
    int32, the number of each token's group, -1 for one that is in none.

    Counts within a group differ by less than a factor of two. The most frequent token that is still
    free takes the free ones that are most like it.
    """
    group = torch.full((vocab_size,), -1, dtype=torch.int32)
    counts = torch.zeros(vocab_size, dtype=torch.long)
    counts.index_add_(0, windows.flatten(), torch.ones_like(windows.flatten()))
    generator = torch.Generator().manual_seed(seed)
    number = 0
    # The last digits decide which token is the most alike: they must not depend on the threads.
    with _one_thread():
        width = min(vocab_size, MOST_DIMENSIONS)
        vectors = neighbor_embeddings(windows, vocab_size, width, SCALE, generator)
        vectors = F.normalize(vectors - vectors.mean(0), dim=1)
        least = 1
        while least <= MOST_FREQUENT * windows.numel():
            most = min(2 * least - 1, int(MOST_FREQUENT * windows.numel()))
            tokens = ((counts >= least) & (counts <= most)).nonzero().flatten()
            tokens = tokens[torch.argsort(counts[tokens], descending=True, stable=True)]
            for members in _alike(vectors[tokens]):
                group[tokens[members]] = number
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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
