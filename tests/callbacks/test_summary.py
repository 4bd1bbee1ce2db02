"""summary.json, beside what the tests of whole runs read in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from azllm_lightning.callbacks import summary
from azllm_lightning.callbacks.summary import RunSummary, Summary
from azllm_lightning.training.causal_lm import CausalLM


def test_the_peak_is_that_of_the_device_on_which_the_run_was(
    train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `fit` Lightning has moved the module to the CPU."""
    write = Summary.write

    def on_a_gpu(self: Summary, trainer: Trainer, module: CausalLM, status: str) -> RunSummary:
        monkeypatch.setattr(trainer.strategy, "_root_device", torch.device("cuda"))
        return write(self, trainer, module, status)

    monkeypatch.setattr(Summary, "write", on_a_gpu)
    monkeypatch.setattr(summary, "peak_memory_bytes", {"cuda": 7, "cpu": 1}.get)
    folder = train_tiny("trainer.max_steps=1")
    assert json.loads((folder / "summary.json").read_text())["peak_memory_bytes"] == 7


def test_the_best_loss_is_the_last_one_if_that_validation_was_the_best(
    train_tiny: Callable[..., Path],
) -> None:
    """To the last digit: summary.json has both."""
    first = json.loads((train_tiny() / "summary.json").read_text())
    assert first["best_step"] == first["steps"]
    assert first["best_val_loss"] == first["val_loss"]
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=9")
    second = json.loads((resumed / "summary.json").read_text())
    assert second["best_val_loss"] == min(first["val_loss"], second["val_loss"])
