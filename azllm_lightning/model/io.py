"""A checkpoint becomes a model and its tokenizer, without Lightning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from azllm_lightning.model.config import GPTConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.settings import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer

FORMAT = 1  # of what a checkpoint carries under "azllm"; a higher number is refused
PREFIX = "net."  # where CausalLM keeps the GPT


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """The model and the tokenizer of a .ckpt file or of a run folder, the model on `device` and ready to generate.

    Of a run folder it takes checkpoints/best.ckpt, else the newest checkpoints/step_*.ckpt. Code in a checkpoint
    is never run.

    Raises ValueError where there is no checkpoint or it is not a whole one of this project.
    """
    from azllm_lightning.data.tokenizer import Tokenizer

    path = checkpoint_of(Path(path))
    checkpoint = read_checkpoint(path)
    config = from_mapping(GPTConfig, checkpoint["hyper_parameters"]["model"], f"{path}: model")
    model = GPT(config)
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the sizes stored beside them. {error}") from None
    return model.to(device).eval(), Tokenizer.from_json(checkpoint["azllm"]["tokenizer"], str(path))


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that `load` takes for a file or a run folder. Raises ValueError where there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a .ckpt file or a run folder")
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    numbers = {p.stem.removeprefix("step_"): p for p in path.glob("checkpoints/step_*.ckpt")}
    steps = {int(number): p for number, p in numbers.items() if number.isdecimal()}
    if not steps:
        raise ValueError(
            f"{path} has neither checkpoints/best.ckpt nor checkpoints/step_*.ckpt: a run folder is "
            "lightning_logs/<run_name>/version_<k>"
        )
    return steps[max(steps)]


def read_checkpoint(path: Path, mmap: bool = os.name != "nt") -> dict[str, Any]:
    """What a checkpoint file of this project holds, its tensors on the CPU and, with `mmap`, read when they are used.

    The default spares Windows, which lets nobody replace a file while it is mapped. Raises ValueError where the file
    is damaged, of another program, or of a newer format than this one reads, and OSError where the system does not
    let it be read.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # reading damaged bytes fails in a dozen ways, struct.error and IndexError among them
        raise ValueError(
            f"{path} is not a whole checkpoint: it is cut short, damaged or of another kind. Copy it again, or take "
            "an older step_*.ckpt"
        ) from error
    if not isinstance(checkpoint, dict) or "azllm" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of azllm-lightning: it carries no tokenizer and no config")
    found = checkpoint["azllm"]["format"]
    if found > FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {found}, and this version reads up to {FORMAT}: upgrade azllm-lightning"
        )
    return checkpoint
