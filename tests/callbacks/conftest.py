from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from events import Finished

from azllm_lightning.cli.messages import use_language

Train = Callable[..., Path]
NO_SAMPLES = "callbacks.samples.max_new_tokens=0"


_finished: list[Finished] = []


@pytest.fixture
def train_short(train_tiny: Train) -> Train:
    """`train_tiny` without samples, which take most of a tiny run's time."""

    def run(*overrides: str) -> Path:
        resumes = any(text.startswith("ckpt_path=") for text in overrides)
        return train_tiny(*overrides, *([] if resumes else [NO_SAMPLES]))

    return run


@pytest.fixture
def finished(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> Finished:
    """One run for all tests that only look at one; trained by the first of them."""
    if not _finished:
        folder = train_tiny("callbacks.samples.max_new_tokens=12").absolute()
        captured = capsys.readouterr()
        _finished.append(Finished(folder, captured.out, captured.err))
    return _finished[0]


@pytest.fixture(autouse=True)
def starts_in_english(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts in English, whatever the one before chose."""
    monkeypatch.delenv("AZLLM_LANG", raising=False)
    use_language(None)
    yield
    use_language(None)
