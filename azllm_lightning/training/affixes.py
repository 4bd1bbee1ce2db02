"""What tokens have in common by their spelling, so that they learn from each other.

Most tokens are rare, above all where words are built with suffixes: a short text has `lərindən` a
few times, but `lərində`, `sindən` and `larından` often. fastText (Bojanowski et al. 2017,
arXiv:1607.04606) makes the vector of a word a sum over its character n-grams. Here a model stays as
it is, and such sums are in the updates of its token tables: what an affix learns moves every token
that has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.data.tokenizer import Tokenizer

LONGEST_BEGINNING = 5
LONGEST_ENDING = 4

LONGEST_BAG = 64
"""Entries that are added up one after the other."""

PER_TOKEN = 0.6
"""About as many affixes as tokens have a vocabulary of 2,000 to 32,000, for planning."""


class Affixes:
    """Those of tokens with these `texts` that at least two of them have: a sparse matrix S (tokens,
    affixes), whose rows have equal entries, and length 1.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        found = [affixes_of(text) for text in texts]
        counts = Counter(chain.from_iterable(found))
        numbers = {a: i for i, a in enumerate(a for a, count in counts.items() if count > 1)}
        pairs = [
            (token, numbers[affix])
            for token, affixes in enumerate(found)
            for affix in affixes
            if affix in numbers
        ]
        self.count = len(numbers)
        token, affix = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(dim=1)
        per_token = torch.tensor([sum(a in numbers for a in affixes) for affixes in found])
        entries = per_token[token].float().rsqrt()
        self._by_token = _Rows(affix, per_token, entries)
        order = torch.argsort(affix, stable=True)
        per_affix = torch.tensor([counts[affix] for affix in numbers], dtype=torch.long)
        self._by_affix = _Rows(token[order], per_affix, entries[order])

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Affixes:
        """Those of the tokens of `tokenizer`."""
        return cls([tokenizer.decode([token]) for token in range(tokenizer.vocab_size)])

    def collect(self, x: Tensor) -> Tensor:
        """S.T @ x: for each affix a sum over its tokens, (tokens, C) to (affixes, C)."""
        return self._by_affix.times(x)

    def spread(self, x: Tensor) -> Tensor:
        """S @ x: for each token a sum over its affixes, (affixes, C) to (tokens, C)."""
        return self._by_token.times(x)


class _Rows:
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
        if self.parts[0].device != x.device:
            self.parts = [part.to(x.device) for part in self.parts]
        columns, starts, entries, *second = self.parts
        sums = F.embedding_bag(columns, x, starts, mode="sum", per_sample_weights=entries)
        if not second:
            return sums
        bags, first_bags = second
        return F.embedding_bag(bags, sums, first_bags, mode="sum")


def affixes_of(text: str) -> list[str]:
    """What the token `text` may share with others; [] for a part of a character.

    Its letters as a whole, its beginnings and its endings, all without case, and three
    properties: a space before it, a capital letter, and its kind (letters, digits, other).
    """
    core = text.removeprefix(" ")
    if not core or "\ufffd" in core:
        return []
    letters = core.lower().replace("\u0307", "")  # the dot that lower() leaves of İ
    return [
        f"={letters}",
        *(f"{letters[:n]}-" for n in range(1, min(LONGEST_BEGINNING, len(letters) - 1) + 1)),
        *(f"-{letters[-n:]}" for n in range(1, min(LONGEST_ENDING, len(letters) - 1) + 1)),
        f"space {core != text}",
        f"capital {core[0].isupper()}",
        f"kind {'letters' if core.isalpha() else 'digits' if core.isdigit() else 'other'}",
    ]
