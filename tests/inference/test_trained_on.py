"""How much of a text was trained on: runs of its tokens are looked for in the training text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from azllm_lightning.data import shards
from azllm_lightning.data.cleaning import cut
from azllm_lightning.data.corpus import Document
from azllm_lightning.data.shards import VERSION, Manifest, ShardWriter, Split
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.inference import trained_on
from azllm_lightning.inference.trained_on import Overlap

Share = Callable[..., float]

_SYLLABLES = "ba də gö ki la mə nu or pa rı sə tü ul və xa yı zə çi şa ğı".split()


def written(seed: int, words: int) -> str:
    """A text of random words, which has no run of many tokens in common with another."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(_SYLLABLES, k=3)) for _ in range(words))


BOOK = written(0, 3000)
OTHER = written(1, 3000)
PIECES = cut(BOOK, 4000)
SHORT = ["Bakı gözəl şəhərdir.", "Kür çayı axır."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([BOOK, OTHER, *SHORT], vocab_size=400)


def longest(tokenizer: Tokenizer) -> list[str]:
    """Documents of the most tokens that are less than a run.

    Chunks of 7 tokens begin at each place in one of them.
    """
    length = trained_on.RUN_TOKENS - 1
    texts = (tokenizer.decode(tokenizer.encode(written(seed, 30))[:length]) for seed in range(2, 9))
    return [text for text in texts if len(tokenizer.encode(text)) == length]


@pytest.fixture(params=[(7, 1000), (1 << 20, 1 << 20)], ids=["small chunks and files", "one"])
def share(
    request: pytest.FixtureRequest,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Share:
    """share(*texts): that of some documents, of a model trained on PIECES, SHORT and `longest`."""
    chunk_tokens, shard_tokens = request.param
    monkeypatch.setattr(shards, "CHUNK_TOKENS", chunk_tokens)
    with ShardWriter(tmp_path, "train", shard_tokens) as writer:
        for text in [SHORT[0], *PIECES, SHORT[1], *longest(tokenizer)]:
            tokens = np.array([*tokenizer.encode(text), tokenizer.eot_id])
            writer.write(tokens, 1, len(text.encode()))
        splits = {"train": writer.close(), "val": Split(0, 0, 0, ())}
    manifest = Manifest(VERSION, tokenizer.fingerprint, tokenizer.vocab_size, splits, (), {}, {})
    manifest.write(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")

    def measured(*texts: str) -> float:
        overlap = Overlap(tmp_path)
        documents = [Document(text, "a", "train") for text in texts]
        assert list(overlap.watch(documents)) == documents
        return overlap.share()

    return measured


def test_an_excerpt_is_found_wherever_it_begins(share: Share) -> None:
    for start in (0, 1, 7001, 12_345):
        assert share(BOOK[start : start + 3000]) > 0.98


def test_a_long_text_is_found_although_it_is_cut_elsewhere(share: Share) -> None:
    assert len(PIECES) > 3
    assert share(BOOK) > 0.99
    assert share(*cut(BOOK, 2500)) > 0.99


def test_another_text_has_no_share(share: Share) -> None:
    assert share(OTHER) == 0
    assert share() == 0


def test_the_share_is_that_of_the_bytes(share: Share) -> None:
    read, new = BOOK[5000:9000], OTHER[5000:7000]
    of_read = len(read.encode()) / len((read + new).encode())
    assert share(read, new) == pytest.approx(of_read, abs=0.01)
    assert share(f"{new} {read}") == pytest.approx(of_read, abs=0.01)


def test_a_run_counts_from_its_length_on(share: Share, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(BOOK[:4000])
    strange = tokenizer.decode(tokenizer.encode(OTHER)[:100])
    for length, is_long in ((trained_on.RUN_TOKENS - 1, False), (trained_on.RUN_TOKENS, True)):
        read = tokenizer.decode(ids[500 : 500 + length])
        text = f"{strange}\n\n{read}\n\n{strange}"
        assert tokenizer.encode(read) == ids[500 : 500 + length]
        expected = len(read.encode()) / len(text.encode()) if is_long else 0
        assert share(text) == pytest.approx(expected, abs=0.002), length


def test_a_short_document_is_found_whole_or_not_at_all(share: Share) -> None:
    assert share(*SHORT) == 1
    assert share(SHORT[0][:-5]) == share(SHORT[0] + " Bəli.") == 0
    assert share(BOOK[5000:5020]) == 0  # as any short phrase would be
    assert share(SHORT[1], OTHER) == pytest.approx(
        len(SHORT[1].encode()) / len((SHORT[1] + OTHER).encode())
    )


def test_the_longest_of_the_short_documents_are_found(share: Share, tokenizer: Tokenizer) -> None:
    texts = longest(tokenizer)
    assert len(texts) == 7
    assert share(*texts) == 1


def test_a_run_ends_with_its_document(share: Share, tokenizer: Tokenizer) -> None:
    before, after = (tokenizer.encode(text) for text in PIECES[:2])
    assert share(tokenizer.decode(before[-25:]), tokenizer.decode(after[:25])) == 0


@pytest.mark.thorough
def test_a_long_text_is_compared_part_by_part(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*cut(BOOK, 1000), *cut(OTHER, 1000), *SHORT, SHORT[0]]
    at_once = share(*texts)
    assert 0.45 < at_once < 0.55
    monkeypatch.setattr(trained_on, "PART_TOKENS", 3000)
    assert share(*texts) == at_once
