from __future__ import annotations

import random

import pytest
from sample_texts import make_texts

from azllm_lightning.data import encoding
from azllm_lightning.data.encoding import Encoder, pieces_of
from azllm_lightning.data.tokenizer import Tokenizer

AWKWARD = (
    "aZəİıŞß²Ⅷ1٣_-'’.,;…»(«/\n\r\t \u00a0\u2003\u200b\u00ad\u0301\u0327ёЖ字😀\u180e\u1680\u01c5ªº"
)
WORDS = [
    "Bakı",
    "Bakı'dan",
    "e-poçt",
    "GƏLDİ",
    "azLLM",
    "2024-cü",
    "m²",
    "I",
    "s\u0327",
    "\n\n",
    "  ",
]


def random_text(draw: random.Random) -> str:
    parts = [
        draw.choice(WORDS) if draw.random() < 0.3 else draw.choice(AWKWARD)
        for _ in range(draw.randrange(1, 30))
    ]
    return "".join(part + " " * (draw.random() < 0.4) for part in parts)


@pytest.fixture(scope="module")
def awkward_tokenizer() -> Tokenizer:
    draw = random.Random(1)
    return Tokenizer.train([*make_texts(50), *(random_text(draw) for _ in range(500))], 1000)


def test_the_ids_are_those_of_the_tokenizer(awkward_tokenizer: Tokenizer) -> None:
    draw = random.Random(2)
    texts = [random_text(draw) for _ in range(4000)] + make_texts(50) + [""]
    expected: list[int] = []
    for ids in awkward_tokenizer.encode_batch(texts):
        expected += [*ids, awkward_tokenizer.eot_id]
    encoder = Encoder(awkward_tokenizer)
    for _ in ("first seen", "known"):
        assert encoder.encode_documents(texts).tolist() == expected


def test_the_pieces_are_the_text() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        text = random_text(draw)
        assert "".join(pieces_of(text)) == text


def test_words_are_pieces_of_their_own() -> None:
    text = "Bakı gözəldir, düzdür?\nHə. (Bəli)"
    assert pieces_of(text) == [
        "Bakı", " gözəldir", ",", " düzdür", "?\n", "Hə", ".", " (Bəli)"
    ]  # fmt: skip


def test_the_memory_is_bounded(
    awkward_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CACHE_ENTRIES", 50)
    encoded: list[str] = []
    original = awkward_tokenizer.encode_batch

    def spy(texts: list[str]) -> list[list[int]]:
        encoded.extend(texts)
        return original(texts)

    monkeypatch.setattr(awkward_tokenizer, "encode_batch", spy)
    encoder = Encoder(awkward_tokenizer)
    many = [f"söz{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(100)]
    encoder.encode_documents(many)
    assert sorted(encoded) == sorted(many)
    encoder.encode_documents(["yeni"])  # forgets the others
    encoder.encode_documents(many[:1])
    assert encoded[100:] == ["yeni", many[0]]
    long = "x" * (encoding.LONGEST + 1)
    encoder.encode_documents([long])
    encoder.encode_documents([long])
    assert encoded[102:] == [long, long]
