"""Sparse matrices times dense ones, in a fixed order of additions on every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_BAG = 64
"""Entries that are added up one after the other."""


class SparseRows:
    """A sparse matrix by rows, which have `sizes` entries: `columns` and `entries`.

    Multiplied by PyTorch's embedding_bag, which adds in a fixed order on a GPU as well. One thread
    adds up a bag, so a long row is several, whose sums are added.
    """

    def __init__(self, columns: Tensor, sizes: Tensor, entries: Tensor) -> None:
        starts = sizes.cumsum(0) - sizes
        self.parts = [columns, starts, entries]
        if not (sizes > LONGEST_BAG).any():
            return
        bags = (sizes / LONGEST_BAG).ceil().long()
        row = torch.repeat_interleave(torch.arange(len(sizes)), bags)  # of each bag
        first_bags = bags.cumsum(0) - bags
        numbers = torch.arange(len(row)) - first_bags[row]  # of a bag within its row
        starts = starts[row] + LONGEST_BAG * numbers
        self.parts = [columns, starts, entries, torch.arange(len(row)), first_bags]

    def times(self, x: Tensor) -> Tensor:
        """The matrix times x: (columns, C) to (rows, C)."""
        if self.parts[0].device != x.device:
            self.parts = [part.to(x.device) for part in self.parts]
        columns, starts, entries, *second = self.parts
        x = x.contiguous()  # six times as fast
        weights = entries.to(x.dtype)
        sums = F.embedding_bag(columns, x, starts, mode="sum", per_sample_weights=weights)
        if not second:
            return sums
        bags, first_bags = second
        return F.embedding_bag(bags, sums, first_bags, mode="sum")
