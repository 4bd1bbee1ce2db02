from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.tokenizer import Tokenizer

STEMS = (
    "Bakı şəhər kitab oxu gəl göz üçün və ilə nənə ağac günəş dəniz yol uşaq məktəb ev su çörək alma İlqar Ələkbər",
    "qırmızı böyük kiçik gözəl yaxşı bir iki üç dörd beş sabah axşam gecə gündüz yağış qar külək bulud ulduz ay",
)
WORDS = " ".join(STEMS).split()
SUFFIXES = (
    "",
    "lar",
    "lər",
    "da",
    "də",
    "dan",
    "dən",
    "ın",
    "in",
    "un",
    "nın",
    "ımız",
    "iniz",
    "'dan",
    "-nın",
)


def sentence(rng: random.Random) -> str:
    return (
        " ".join(rng.choice(WORDS) + rng.choice(SUFFIXES) for _ in range(rng.randint(4, 12))) + "."
    )


def _texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{number}. " + " ".join(sentence(rng) for _ in range(rng.randint(2, 6)))
        for number in range(count)
    ]


@pytest.fixture(scope="session")
def texts() -> Callable[..., list[str]]:
    """texts(count, seed=0): `count` different documents of a few sentences."""
    return _texts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path: Path) -> DataConfig:
    """300 documents in one .txt file, and settings that fit them."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(_texts(300)), encoding="utf-8")
    return DataConfig(path=str(path), vocab_size=512, block_size=32, val_fraction=0.1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(_texts(200), 600)
