"""The tables of the user guide that say what happens to each kind of file, and the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.data.content import REFUSED
from azllm_lightning.data.folders import COMPRESSIONS, FORMATS

DOCS = Path(__file__).parents[2] / "docs"
REFUSES = {"en": "refused", "az": "qəbul edilmir"}


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    use_language(request.param)
    yield request.param
    use_language(None)


def guide(language: str) -> str:
    return (DOCS / language / "your_text.md").read_text(encoding="utf-8")


def table_rows(language: str) -> list[list[str]]:
    lines = guide(language).splitlines()
    return [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]


def test_every_ending_that_is_read_is_in_the_guide(language: str) -> None:
    first_cells = [row[0] for row in table_rows(language)]
    cells = [cell for cell in first_cells if re.fullmatch(r"(\.\w+(, )?)+", cell)]
    assert sorted(", ".join(cells).split(", ")) == sorted(FORMATS)
    assert f"({', '.join(COMPRESSIONS)})" in guide(language)


def test_every_kind_that_is_refused_is_in_the_guide_with_its_way_out(language: str) -> None:
    """In the words of the message, so that a reader finds it."""
    rows = table_rows(language)
    for kind in REFUSED:
        what, _, advice = kind.message().partition("; ")
        fate = f"{REFUSES[language]}: {advice}" if advice else REFUSES[language]
        assert [what, fate] in rows
