from __future__ import annotations

import pytest

from azllm_lightning.callbacks.text import (
    count_text,
    duration,
    labeled,
    paragraph,
    perplexity_text,
    ratio_text,
    size_text,
    verbatim,
)
from azllm_lightning.cli.messages import use_language


@pytest.mark.parametrize(
    ("seconds", "english", "azerbaijani"),
    [
        (0.4, "0 s", "0 san"),
        (59.6, "1 min 0 s", "1 dəq 0 san"),
        (146, "2 min 26 s", "2 dəq 26 san"),
        (6011, "1 h 40 min", "1 saat 40 dəq"),
        (3 * 86400 + 4 * 3600, "3 d 4 h", "3 gün 4 saat"),
    ],
)
def test_duration(seconds: float, english: str, azerbaijani: str) -> None:
    assert duration(seconds) == english
    use_language("az")
    assert duration(seconds) == azerbaijani


def test_numbers_have_the_digits_that_mean_something() -> None:
    values = (5.2249, 68.43, 300.12, 1998.2, 2.5e6)
    assert [perplexity_text(value) for value in values] == "5.22 68.43 300.1 1,998 2.5e+06".split()
    numbers = (26_112, 2_160_000, 152_000_000)
    assert [count_text(number) for number in numbers] == ["26,112", "2.2 M", "152 M"]
    assert [ratio_text(part, 100) for part in (1, 19, 1920)] == ["0.01", "0.2", "19.2"]
    assert [size_text(size) for size in (65_000_000, 5_200_000_000)] == ["65 MB", "5.2 GB"]


def test_text_is_broken_between_words_and_never_within_a_path() -> None:
    path = "/home/aygün/" + "uzun-qovluq" * 8
    for text in (labeled("run", f"a b {path} c"), paragraph(f"a b {path} c")):
        assert path in text
    lines = labeled("data", "token " * 40).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("data      token")
    assert all(line.startswith(" " * 10 + "token") for line in lines[1:])


def test_what_is_to_be_copied_stays_whole() -> None:
    assert verbatim("talk", "x" * 70) == "talk      " + "x" * 70
    assert verbatim("talk", "x" * 71) == "talk\n  " + "x" * 71
    assert verbatim("", "x" * 71) == "  " + "x" * 71
    assert verbatim("train longer", "x") == "train longer\n  x"  # no room next to this label
