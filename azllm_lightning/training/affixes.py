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
from torch import Tensor

from azllm_lightning.azerbaijani.morphology import lower
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.training.sparse_rows import SparseRows

LONGEST_BEGINNING = 5
LONGEST_ENDING = 4

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
        self._by_token = SparseRows(affix, per_token, entries)
        order = torch.argsort(affix, stable=True)
        per_affix = torch.tensor([counts[affix] for affix in numbers], dtype=torch.long)
        self._by_affix = SparseRows(token[order], per_affix, entries[order])

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
