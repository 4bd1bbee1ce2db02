"""A look at a text before anything is prepared: how much there is, and of what kind."""

from __future__ import annotations

import lzma
import math
import random
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import Document, Stream, documents, stored_bytes, streams
from azllm_lightning.data.enough import too_little
from azllm_lightning.data.shards import SPLITS, VERSION, Manifest, Split, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.planning.law import DOCUMENT_SPREAD

MOST_BYTES = 60_000_000
MOST_SECONDS = 20.0
"""How much of the text is read; the rest is estimated from how much of the files that took."""

SAMPLE_BYTES = 2_000_000
"""Text for the tokenizer, spread evenly over what is read."""

HELD_OUT = 5
"""One document in so many is not for the tokenizer, so that it shows how new text is divided."""

REFERENCE_VOCABULARY = 8192

TOKEN_BYTES = {
    1024: 0.57,
    2048: 0.735,
    4096: 0.87,
    8192: 1.0,
    16_384: 1.115,
    32_000: 1.2,
}
"""Bytes per token of Azerbaijani with a vocabulary, relative to REFERENCE_VOCABULARY; measured on
the text of the law's runs.
"""

LITTLE_TOKEN_BYTES = 1.5
"""Bytes of the tokens that a text makes which hardly fills a window."""

KIND_BYTES = 200_000
KIND_COMPRESSED = 1.93
"""LZMA's bits per byte of KIND_BYTES of the text of the law's runs: mean and median of 16 draws of
its documents are 1.95 and 1.91.
"""

KIND_DRAWS = 3
"""A text may begin with one kind and go on with another: so many draws of its documents."""

KIND_SLOPE = 0.79
"""How the loss follows from that, on a scale of logarithms: one text that LZMA needs 1.21 times as
many bits for has 1.165 times the loss (`log` in coefficients.json).
"""

SPREAD_BYTES = 500
"""Documents shorter than that say little about how hard they are."""

SPREAD_DOCUMENTS = (20, 400)
"""At least so many documents are compared, and at most."""

READ_TOKENS = 8_000_000
SLICES = 64
"""Prepared text above so many tokens is looked at in so many pieces."""

SPREAD_START = 6000
"""Characters of a document that are compared."""

DICTIONARY_BYTES = 32_768
"""What zlib looks back on: so much of other documents comes before each."""

SPREAD_SLOPE = 2.0
"""How the bits that a model needs for a document follow from those of zlib, on a scale of
logarithms: 2.3 to 2.8 between kinds (Wikipedia's literature takes zlib 1.46 times as many as laws,
and a model of 14 MB of them 2.45 times as many: docs/en/results.md), and 1.3 between documents of
one kind, where more of the differences are zlib's own.
"""


@dataclass(frozen=True)
class Text:
    """A text that a model is to be trained on."""

    name: str
    train_bytes: float
    """Of training text, duplicates left out."""
    val_bytes: float
    num_documents: int
    num_duplicates: int
    is_estimate: bool
    """Whether only a part of it was read."""
    token_bytes: float
    """Bytes per token of new text, with REFERENCE_VOCABULARY tokens."""
    train_token_bytes: float
    """The same of the training text."""
    scale: float
    """Bits per byte for each one of the text of the law's runs."""
    val_documents: float
    """Of new text; a few long ones count as fewer than there are."""
    document_spread: float = DOCUMENT_SPREAD
    """Standard deviation of the bits per byte between documents, as a share of their mean."""
    vocab_size: int | None = None
    """The vocabulary, if the text is prepared already."""

    def bytes_per_token(self, vocab_size: int) -> float:
        """Of new text, with a vocabulary of that size."""
        return self.token_bytes * relative_token_bytes(vocab_size)

    def unique_tokens(self, vocab_size: int) -> float:
        """Tokens of the training text."""
        return self.train_bytes / (self.train_token_bytes * relative_token_bytes(vocab_size))

    def with_more(self, factor: float) -> Text:
        """`factor` times as much text of the same kind."""
        values = {**self.__dict__, "train_bytes": self.train_bytes * factor}
        val = {"val_bytes": self.val_bytes * factor, "val_documents": self.val_documents * factor}
        return Text(**{**values, **val})


def survey(config: DataConfig, seconds: float = MOST_SECONDS) -> Text:
    """Read the text of `config`, or as much as `seconds` allow.

    Raises ValueError if there is none to train on, or if it cannot be read.
    """
    sample = Sample()
    counts: Counter[str] = Counter()
    started = time.monotonic()
    read = {split: Read() for split in SPLITS}
    is_estimate = False
    with closing(documents(config, counts)) as found:  # which fills `counts` when it is closed
        for document in found:
            size = len(document.text.encode("utf-8"))
            read[document.split].add(document, size)
            sample.add(document, size)
            text_bytes = sum(each.text_bytes for each in read.values())
            is_enough = text_bytes > MOST_BYTES or time.monotonic() - started > seconds
            # Of one text for both, some is for training.
            if is_enough and (read["train"].documents or config.val_paths):
                is_estimate = True
                break
    whole = _whole(config, read) if is_estimate else read
    if whole["train"].text_bytes < LITTLE_TOKEN_BYTES * (config.block_size + 1):
        raise too_little(replace(config, dir=None), _manifest(read, counts), "train")
    train, new = sample.token_bytes()
    number = sum(each.documents for each in whole.values())
    factor = number / sum(each.documents for each in read.values())
    return Text(
        name=config.name,
        train_bytes=whole["train"].text_bytes,
        val_bytes=whole["val"].text_bytes,
        num_documents=round(number),
        num_duplicates=round(counts["duplicates"] * factor),
        is_estimate=is_estimate,
        token_bytes=new,
        train_token_bytes=train,
        scale=sample.scale(),
        val_documents=whole["val"].text_bytes ** 2 / max(1.0, whole["val"].squares),
        document_spread=spread_of(sample.texts),
    )


def prepared(config: DataConfig, folder: Path) -> Text:
    """The text of the shards in `folder`, of whose documents some are decoded.

    Raises ValueError if a split has none, or if the folder is damaged.
    """
    manifest = Manifest.read(folder)
    for split, content in manifest.splits.items():
        if not content.tokens:
            raise too_little(config, manifest, split)
    train = manifest.splits["train"]
    val = manifest.splits["val"]
    relative = relative_token_bytes(manifest.vocab_size)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    shards = {split: TokenShards.open(folder, split, tokenizer, config.verify) for split in SPLITS}
    sample = _decoded([*shards.values()], tokenizer)
    return Text(
        name=config.name,
        train_bytes=train.text_bytes,
        val_bytes=val.text_bytes,
        num_documents=train.documents + val.documents,
        num_duplicates=manifest.cleaning.get("duplicates", 0),
        is_estimate=False,
        token_bytes=val.text_bytes / val.tokens / relative,
        train_token_bytes=train.text_bytes / train.tokens / relative,
        scale=sample.scale(),
        val_documents=_effective_documents(shards["val"], tokenizer),
        document_spread=spread_of(sample.texts),
        vocab_size=manifest.vocab_size,
    )


def _some_documents(shards: TokenShards, eot_id: int) -> Iterator[np.ndarray]:
    """The tokens of each document of a split; of a large one, of those that are whole in SLICES
    evenly spaced pieces of it.
    """
    size = len(shards)
    length = size if size <= READ_TOKENS else READ_TOKENS // SLICES
    for start in dict.fromkeys(np.linspace(0, size - length, SLICES).astype(int).tolist()):
        tokens = shards.read(start, length)
        ends = (np.flatnonzero(tokens == eot_id) + 1).tolist()
        edges = ([0] if start == 0 else []) + ends  # elsewhere, it begins within a document
        whole = [tokens[one:other] for one, other in pairwise(edges)]
        yield from whole or [tokens]


def _effective_documents(shards: TokenShards, tokenizer: Tokenizer) -> float:
    """How many documents of one size say as much as those of a split."""
    documents = _some_documents(shards, tokenizer.eot_id)
    sizes = np.array([tokenizer.token_bytes[tokens].sum() for tokens in documents], dtype=float)
    seen = sizes.sum() / shards.manifest.splits[shards.split].text_bytes
    return float(sizes.sum() ** 2 / (sizes**2).sum() / seen)


def _decoded(shards: Sequence[TokenShards], tokenizer: Tokenizer) -> Sample:
    """The text of every n-th document, as much as a sample holds."""
    sample = Sample()
    for split in shards:
        found = list(_some_documents(split, tokenizer.eot_id))
        share = SAMPLE_BYTES * len(split) / sum(map(len, shards))
        size = sum(int(tokenizer.token_bytes[tokens].sum()) for tokens in found)
        for tokens in found[:: max(1, math.ceil(size / share))]:
            text = tokenizer.decode(tokens.tolist())
            sample.add(Document(text, "", split.split), len(text.encode("utf-8")))
    return sample


@dataclass
class Read:
    """What was read of a text, or what there should be of it."""

    documents: float = 0
    text_bytes: float = 0
    squares: float = 0
    """Of the bytes of the documents."""
    stored_bytes: float = 0
    """Of the files."""

    def add(self, document: Document, size: int) -> None:
        """A document of `size` bytes."""
        self.documents += 1
        self.text_bytes += size
        self.squares += size**2
        self.stored_bytes += document.stored_bytes

    def __add__(self, other: Read) -> Read:
        return Read(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Read:
        return Read(*(factor * value for value in astuple(self)))


class Sample:
    """Documents spread evenly over a text of unknown length: every n-th, with n doubled whenever
    they are more than SAMPLE_BYTES.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._bytes = 0
        self._stride = 1
        self._seen = 0

    def scale(self) -> float:
        """`scale_of` documents from all of the text: the median of several draws."""
        found = []
        for seed in range(KIND_DRAWS):
            drawn = random.Random(seed).sample(self.texts, len(self.texts))
            found.append(scale_of("\n".join(drawn)))
        return statistics.median(found)

    def add(self, document: Document, size: int) -> None:
        """The next document of the text."""
        if self._seen % self._stride == 0:
            self.texts.append(document.text)
            self._bytes += size
        self._seen += 1
        if self._bytes > SAMPLE_BYTES and len(self.texts) > 2 * HELD_OUT:
            self.texts = self.texts[::2]
            self._bytes = sum(len(text.encode("utf-8")) for text in self.texts)
            self._stride *= 2

    def token_bytes(self) -> tuple[float, float]:
        """Bytes per token of the training text and of new text, with REFERENCE_VOCABULARY."""
        held_out = self.texts[::HELD_OUT]
        train = [text for index, text in enumerate(self.texts) if index % HELD_OUT] or held_out
        tokenizer = Tokenizer.train(train, REFERENCE_VOCABULARY)
        # The text may be too small for so many tokens.
        relative = relative_token_bytes(tokenizer.vocab_size)
        found = [_bytes_per_token(texts, tokenizer) / relative for texts in (train, held_out)]
        return found[0], found[1]


def relative_token_bytes(vocab_size: int) -> float:
    """Bytes per token with a vocabulary, relative to REFERENCE_VOCABULARY."""
    sizes = sorted(TOKEN_BYTES)
    low = max([size for size in sizes[:-1] if size <= vocab_size], default=sizes[0])
    high = sizes[sizes.index(low) + 1]
    share = math.log(vocab_size / low) / math.log(high / low)
    return TOKEN_BYTES[low] + share * (TOKEN_BYTES[high] - TOKEN_BYTES[low])


def scale_of(text: str) -> float:
    """How many bits per byte a model needs for `text`, for each one of the text of the law's runs.

    Estimated from how well LZMA compresses it; 1 for less than KIND_BYTES, which compress worse.
    """
    sample = text.encode("utf-8")[:KIND_BYTES]
    if len(sample) < KIND_BYTES:
        return 1.0
    compressed: float = 8 * len(lzma.compress(sample, preset=9)) / len(sample)
    return float((compressed / KIND_COMPRESSED) ** KIND_SLOPE)


def spread_of(texts: Sequence[str]) -> float:
    """The standard deviation between `texts` of the bits per byte that a model needs for them, as
    a share of their mean; longer ones count for more.

    Estimated from how well zlib compresses each of them after parts of others; DOCUMENT_SPREAD for
    too few.
    """
    chosen = [text[:SPREAD_START] for text in texts if len(text) >= SPREAD_BYTES]
    random.Random(0).shuffle(chosen)
    half = len(chosen) // 2
    least, most = SPREAD_DOCUMENTS
    if half < least:
        return DOCUMENT_SPREAD
    others = b"\n".join(text[:SPREAD_BYTES].encode("utf-8") for text in chosen[half:])
    sizes = []
    logs = []
    for text in chosen[: min(half, most)]:
        content = text.encode("utf-8")
        compressor = zlib.compressobj(9, zdict=others[-DICTIONARY_BYTES:])
        compressed = len(compressor.compress(content)) + len(compressor.flush())
        sizes.append(len(content))
        logs.append(math.log(compressed / len(content)))
    mean = sum(size * value for size, value in zip(sizes, logs, strict=True)) / sum(sizes)
    squares = [size * (value - mean) ** 2 for size, value in zip(sizes, logs, strict=True)]
    return SPREAD_SLOPE * math.sqrt(sum(squares) / sum(sizes))


def _bytes_per_token(texts: list[str], tokenizer: Tokenizer) -> float:
    tokens = sum(map(len, tokenizer.encode_batch(texts))) + len(texts)
    return sum(len(text.encode("utf-8")) for text in texts) / tokens


def _manifest(read: Mapping[str, Read], counts: Mapping[str, int]) -> Manifest:
    """About what `prepare` would make of what was read."""
    splits = {
        split: Split(
            documents=round(found.documents),
            text_bytes=round(found.text_bytes),
            tokens=round(found.text_bytes / LITTLE_TOKEN_BYTES),
            files=(),
        )
        for split, found in read.items()
    }
    return Manifest(VERSION, "", 0, splits, (), dict(counts), {})


def _whole(config: DataConfig, read: Mapping[str, Read]) -> dict[str, Read]:
    """About what each split has if the rest of the files is like what was read of them."""
    if not config.val_paths:
        (stream,) = streams(config)
        factor = _factor(config, stream, read["train"] + read["val"])
        return {split: read[split] * factor for split in SPLITS}
    val, train = streams(config)
    if read["train"].documents:  # data.val_path was read to its end
        return {"train": read["train"] * _factor(config, train, read["train"]), "val": read["val"]}
    return {
        split: read["val"] * _factor(config, stream, read["val"])
        for split, stream in (("train", train), ("val", val))
    }


def _factor(config: DataConfig, stream: Stream, read: Read) -> float:
    """How many times as much text as `read` there is in `stream`; 1 if that is not known."""
    size = stored_bytes(config, stream)
    if size is None or not read.stored_bytes:
        return 1.0
    factor = size / read.stored_bytes
    return factor if stream.max_bytes is None else min(factor, stream.max_bytes / read.text_bytes)
