from __future__ import annotations

import random
import unicodedata

import pytest

from azllm_lightning.data.cleaning import clean, cut


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("s\u04d9h\u01ddr", "səhər"),
        ("\u04d8li, \u018eli, \u018fli", "Əli, Əli, Əli"),
        (unicodedata.normalize("NFD", "gözüçü"), "gözüçü"),
        ("bir\r\niki\rüç\u2028dörd\x0cbeş", "bir\niki\nüç\ndörd\nbeş"),
        ("a\x00b\x07c\x1bd\x7fe\x9ff\ufeffg", "abcdefg"),
        ("\tsətir\n", "\tsətir\n"),
        ("yarım \ud83d hərf", "yarım \ufffd hərf"),
        ("e\x00\u0301", "é"),
        ("İI ıi 😀 «sitat»", "İI ıi 😀 «sitat»"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned


def test_a_single_unusual_character_is_enough_to_clean_a_text() -> None:
    """The quick check for printable text misses no character that is to be changed."""
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category in ("Cc", "Cs", "Zl", "Zp") or code == 0xFEFF:
            kept = chr(code) in "\n\t"
            assert (clean(f"a{chr(code)}b") == f"a{chr(code)}b") == kept, hex(code)


def test_cut_keeps_short_text_in_one_piece() -> None:
    assert cut("bir\n\niki", 64) == ["bir\n\niki"]
    assert cut("  \n ", 64) == []


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("aaaa\nbbbb\n\ncccc\ndddd", 16, ["aaaa\nbbbb", "cccc\ndddd"]),  # paragraphs
        ("aaaa\nbbbb\ncccc", 10, ["aaaa\nbbbb", "cccc"]),  # lines
        ("Aaa bbb. Ccc ddd. Eee fff ggg.", 22, ["Aaa bbb. Ccc ddd.", "Eee fff ggg."]),  # sentences
        ("aaa bbb ccc", 8, ["aaa bbb", "ccc"]),  # words
        ("əəəəə", 5, ["əə", "əə", "ə"]),  # characters: two bytes each
    ],
)
def test_cut_uses_the_coarsest_boundary(text: str, limit: int, pieces: list[str]) -> None:
    assert cut(text, limit) == pieces


def test_cut_loses_nothing_and_respects_the_limit() -> None:
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(
            rng.choice(["ə", "a", "😀", " ", "\n", "\n\n", ". ", "söz"]) for _ in range(400)
        )
        pieces = cut(text, 64)
        assert all(0 < len(piece.encode("utf-8")) <= 64 for piece in pieces)
        assert "".join("".join(pieces).split()) == "".join(text.split())
