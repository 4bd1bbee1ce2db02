from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_texts import make_texts

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages in English, unless the test chooses a language."""
    monkeypatch.delenv("AZLLM_LANG", raising=False)
    yield
    use_language(None)


@pytest.fixture
def small(tmp_path: Path) -> DataConfig:
    """300 documents in one .txt file, and settings that suit them."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_texts(300)), encoding="utf-8")
    return DataConfig(path=str(path), vocab_size=320, block_size=32, val_fraction=0.1)


@pytest.fixture(scope="session")
def prepare_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """prepare_small(**settings): a folder with 300 prepared documents, for tests that only read."""
    base = tmp_path_factory.mktemp("prepared")
    path = base / "text.txt"
    path.write_text("\n\n".join(make_texts(300)), encoding="utf-8")

    def run(**settings: Any) -> Path:
        folder = base / ("-".join(f"{key}={value}" for key, value in settings.items()) or "default")
        defaults = {"vocab_size": 320, "block_size": 32, "val_fraction": 0.1}
        return prepare(
            DataConfig(**{"path": str(path), "dir": str(folder), **defaults, **settings})
        )

    return run


@pytest.fixture(scope="session")
def prepared(prepare_small: Callable[..., Path]) -> Path:
    """A folder with 300 prepared documents, for tests that only read."""
    return prepare_small()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(make_texts(200), 600)
