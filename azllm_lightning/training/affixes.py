"""What tokens have in common by their spelling, so that they learn from each other.

Most tokens are rare, above all where words are built with suffixes: a short text has `lərindən` a
few times, but `lərində`, `lərini` and `sindən` often. fastText (Bojanowski et al. 2017,
arXiv:1607.04606) makes the vector of a word a sum over its character n-grams. Here a model stays as
it is, and such sums are in the updates of its token tables: what an affix learns moves every token
that has it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.azerbaijani.morphology import lower
from azllm_lightning.data.tokenizer import Tokenizer

LONGEST_BEGINNING = 5
LONGEST_ENDING = 4

LONGEST_BAG = 64
"""Entries that are added up one after the other."""

PER_TOKEN = 0.6
"""Affixes per token in vocabularies of 2,000 to 32,000, about; for planning."""


class Affixes:
    """The affixes that at least two of the tokens `texts` have: a sparse matrix S (tokens,
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
        self.digest = hashlib.blake2b("\n".join(numbers).encode(), digest_size=8).hexdigest()
        """Of the affixes in their order, which another version may find in another way."""
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
        weights = entries.to(x.dtype)
        sums = F.embedding_bag(columns, x, starts, mode="sum", per_sample_weights=weights)
        if not second:
            return sums
        bags, first_bags = second
        return F.embedding_bag(bags, sums, first_bags, mode="sum")


def affixes_of(text: str) -> list[str]:
    """What the token `text` may share with others; [] for a part of a character.

    Its letters as a whole, its beginnings and its endings, all without case, and three properties:
    what stands before its first letter, a capital, and its kind (letters, digits, other).
    """
    if not text.strip(" ") or "\ufffd" in text:
        return []
    has_lead = text[0] == " " or (not _is_letter(text[0]) and _is_letter(text[1:2]))
    lead, core = (text[0], text[1:]) if has_lead else ("", text)
    letters = lower(core)
    kind = "letters" if _is_letter(core[0]) else "digits" if core[0].isdigit() else "other"
    return [
        f"whole {letters}",
        *(f"begins {letters[:n]}" for n in range(1, min(LONGEST_BEGINNING, len(letters) - 1) + 1)),
        *(f"ends {letters[-n:]}" for n in range(1, min(LONGEST_ENDING, len(letters) - 1) + 1)),
        f"after {lead}",
        f"capital {core[0].isupper()}",
        f"kind {kind}",
    ]


def _is_letter(character: str) -> bool:
    """Also for the vowel signs of scripts that write them as marks."""
    return character != "" and unicodedata.category(character)[0] in "LM"
