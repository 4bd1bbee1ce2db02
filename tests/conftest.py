from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side, and so do their subprocesses


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this test run: what is slow to make is made in it once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def tiny(shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for the smallest useful run; the test's folder is the current one, the data are made once for all."""
    monkeypatch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
    monkeypatch.chdir(tmp_path)
    data = "tales_bytes=60_000 vocab_size=300 block_size=32 batch_size=4 val_windows=8 val_fraction=0.1"
    model = "n_layer=1 n_head=2 n_embd=32"
    trainer = "max_steps=8 val_every_steps=4 checkpoint_every_steps=4 log_every_steps=1 compile=false accelerator=cpu"
    groups = {"data": data, "model": model, "trainer": f"{trainer} precision=32-true", "schedule": "warmup_steps=2"}
    return ["run_name=tiny", *(f"{group}.{pair}" for group, pairs in groups.items() for pair in pairs.split())]


@pytest.fixture
def train_tiny(tiny: list[str]) -> Callable[..., Path]:
    """train_tiny(*overrides): train or resume the tiny run in this process; returns its folder."""
    from azllm_lightning.cli import compose
    from azllm_lightning.train import train

    def run(*overrides: str) -> Path:
        # A resume takes its settings from the stored config; only what is typed now may be laid over it.
        typed = [text for text in overrides if text.startswith("ckpt_path=")]
        given = ["run_name=tiny", *overrides] if typed else [*tiny, *overrides]
        return train(compose(given), given)

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """command(*args): `python -m azllm_lightning.train ARGS` in this process; returns its exit code."""
    from azllm_lightning import cli
    from azllm_lightning.train import train

    def run(*args: str, run: Callable[[dict[str, Any], list[str]], object] = train) -> int:
        monkeypatch.setattr(sys, "argv", ["azllm-train", *args])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as `main` sets it, but for this test only
        try:
            cli.main("train", run)
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    return run
