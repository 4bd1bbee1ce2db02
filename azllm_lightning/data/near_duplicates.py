"""Near-duplicates by MinHash (Broder, 1997) with banded locality-sensitive hashing.

A document is the set of its word triples, without case and punctuation. The share of equal hashes
in two signatures estimates the Jaccard similarity of the sets, with a standard error of at most
0.045.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from azllm_lightning.azerbaijani.morphology import lower

NUM_HASHES = 128

_SEED = 1
_SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
_RECALL = 0.95
_BUCKETS = 1 << 12
_BUCKET_BYTES = 2
_TAIL_BYTES = 6
_ENTRY_BYTES = _TAIL_BYTES + 4


class Similar(NamedTuple):
    """A document of the index, by its number, and the estimated Jaccard similarity to it."""

    number: int
    similarity: float


def shingles(text: str) -> list[str]:
    """The word triples of `text` in lower case; its words, if they are fewer than three."""
    words = _WORD.findall(lower(text))
    shifted = (words[start:] for start in range(_SHINGLE_WORDS))
    return [" ".join(triple) for triple in zip(*shifted, strict=False)] or [" ".join(words)]


def signatures(texts: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The MinHash of each text (N, NUM_HASHES)."""
    from rensa import RMinHash

    rows = []
    for text in texts:
        # One by one: the batches of rensa start threads, which do not survive a fork.
        minhash = RMinHash(NUM_HASHES, _SEED)
        minhash.update(shingles(text))
        rows.append(minhash.digest())
    return np.array(rows, np.uint32).reshape(-1, NUM_HASHES)


class SignatureIndex:
    """Signatures in the order in which they were added, and a quick way to those like a given one.

    Takes about 1.2 kB per signature at a threshold of 0.8.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows = _rows_per_band(threshold)
        bands = NUM_HASHES // self._rows
        self._bands = [[bytearray() for _ in range(_BUCKETS)] for _ in range(bands)]
        self._signatures = np.empty((1024, NUM_HASHES), np.uint32)
        self._count = 0

    def find(self, signature: npt.NDArray[np.uint32]) -> Similar | None:
        """The first signature at least as similar as the threshold, if there is one."""
        found: set[int] = set()
        for bucket, tail in self._entries(signature):
            found.update(_numbers(bucket, tail))
        if not found:
            return None
        numbers = np.array(sorted(found))
        similarity = (self._signatures[numbers] == signature).mean(axis=1)
        similar = np.flatnonzero(similarity >= self._threshold)
        if not len(similar):
            return None
        return Similar(int(numbers[similar[0]]), float(similarity[similar[0]]))

    def add(self, signature: npt.NDArray[np.uint32]) -> None:
        """Add a signature; the first one is number 0."""
        if self._count == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[self._count] = signature
        number = self._count.to_bytes(_ENTRY_BYTES - _TAIL_BYTES, "big")
        for bucket, tail in self._entries(signature):
            bucket += tail + number
        self._count += 1

    def _entries(self, signature: npt.NDArray[np.uint32]) -> Iterator[tuple[bytearray, bytes]]:
        """For each band, the bucket of `signature` and how its entry there begins."""
        data = signature.tobytes()
        size = len(data) // NUM_HASHES * self._rows
        for number, buckets in enumerate(self._bands):
            band = data[number * size : (number + 1) * size]
            key = blake2b(band, digest_size=_BUCKET_BYTES + _TAIL_BYTES).digest()
            bucket = int.from_bytes(key[:_BUCKET_BYTES], "big") % _BUCKETS
            yield buckets[bucket], key[_BUCKET_BYTES:]


def _numbers(bucket: bytearray, tail: bytes) -> list[int]:
    """The numbers in the entries of `bucket` that begin with `tail`."""
    numbers = []
    at = bucket.find(tail)
    while at >= 0:
        if at % _ENTRY_BYTES == 0:
            numbers.append(int.from_bytes(bucket[at + _TAIL_BYTES : at + _ENTRY_BYTES], "big"))
            at += _ENTRY_BYTES - 1
        at = bucket.find(tail, at + 1)
    return numbers


def _rows_per_band(threshold: float) -> int:
    """The most hashes per band with which a pair at the threshold is still found.

    It shares a band with probability 1 - (1 - threshold^rows)^bands, which is at least _RECALL.
    """
    return max(
        rows
        for rows in range(1, NUM_HASHES + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (NUM_HASHES // rows) >= _RECALL
    )
