"""A plain PyTorch state_dict with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

STATE_DICT = "best_model.pt"


def write_state_dict(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write best_model.pt (only `model.state_dict()`) and tokenizer.json."""
    with (folder / STATE_DICT).open("wb") as file:
        torch.save(model.state_dict(), file)
    tokenizer.save(folder / "tokenizer.json")
