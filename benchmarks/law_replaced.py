"""The windows of the law's runs, with a share of the tokens replaced that the model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from law_windows import open_data, windows
from torch import Tensor

from azllm_lightning.planning import rule

__all__ = ["batch", "windows"]


def batch(settings: dict[str, Any], step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of a step, rule.REPLACED of them random, and what they should predict."""
    folder = str(Path(settings["data_root"]) / settings["data"])
    data = open_data(folder, settings["block"], settings["seed"])
    generator = torch.Generator().manual_seed(1_000_003 * settings["seed"] + step)
    other = torch.randint(data.tokenizer.vocab_size, x.shape, generator=generator)
    chosen = torch.rand(x.shape, generator=generator) < rule.REPLACED
    return torch.where(chosen.to(x.device), other.to(x.device), x), y
