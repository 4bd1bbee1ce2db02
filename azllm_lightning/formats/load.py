"""A checkpoint or an exported folder becomes a model and its tokenizer, without Lightning."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.model.gpt import GPT

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer

FORMAT = 1  # of what a checkpoint carries under "azllm"; a higher number is refused
PREFIX = "net."  # where CausalLM keeps the GPT

HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"
HF_NAMES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "eos_id": "eos_token_id",
}
"""What transformers' Qwen3Config calls the fields of GPTConfig."""
HF_FIXED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
}
"""What a GPTConfig cannot vary."""


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """The model and the tokenizer of a .ckpt file, of a run folder, or of a folder that `export format=hf` wrote.

    The model is on `device` and ready to generate. Of a run folder it takes checkpoints/best.ckpt, else the newest
    checkpoints/step_*.ckpt. Code in a checkpoint is never run. An exported folder needs the safetensors package.

    Raises ValueError where there is no checkpoint or it is not a whole one of this project.
    """
    path = checkpoint_of(Path(path))
    config, weights, tokenizer = _read_exported(path) if path.is_dir() else _read_own(path)
    model = GPT(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the sizes stored beside them. {error}"
        ) from None
    return model.to(device).eval(), tokenizer


def _read_own(path: Path) -> tuple[GPTConfig, dict[str, Tensor], Tokenizer]:
    from azllm_lightning.data.tokenizer import Tokenizer

    checkpoint = read_checkpoint(path)
    config = from_mapping(GPTConfig, checkpoint["hyper_parameters"]["model"], f"{path}: model")
    weights = {
        k.removeprefix(PREFIX): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith(PREFIX)
    }
    return config, weights, Tokenizer.from_json(checkpoint["azllm"]["tokenizer"], str(path))


def _read_exported(folder: Path) -> tuple[GPTConfig, dict[str, Tensor], Tokenizer]:
    from azllm_lightning.data.tokenizer import Tokenizer

    try:
        text = (folder / HF_CONFIG).read_text(encoding="utf-8")
        theirs: dict[str, Any] = {"rope_scaling": None, **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder / HF_CONFIG} is not a whole config.json ({error}): export the model again"
        ) from None
    theirs = {
        **theirs,
        **(theirs.get("rope_parameters") or {}),
    }  # where transformers 5 keeps rope_theta
    foreign = [
        f"{key}={theirs.get(key)!r}" for key, value in HF_FIXED.items() if theirs.get(key) != value
    ]
    if not foreign:
        values = {ours: theirs[name] for ours, name in HF_NAMES.items() if name in theirs}
        config = from_mapping(GPTConfig, values, str(folder / HF_CONFIG))
        if theirs.get("head_dim") != config.head_dim:
            foreign = [f"head_dim={theirs.get('head_dim')}"]
    if foreign:
        raise ValueError(
            f"{folder} holds a model of another kind ({', '.join(foreign)}): only Qwen3 in our shape is read"
        )
    tokenizer = Tokenizer.from_file(folder)
    safetensors = optional("safetensors.torch")
    try:
        weights: dict[str, Tensor] = safetensors.load_file(folder / HF_WEIGHTS)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {HF_WEIGHTS}: copy the folder again, whole") from None
    except optional("safetensors").SafetensorError as error:
        raise ValueError(
            f"{folder / HF_WEIGHTS} is cut short or damaged ({error}): copy it again"
        ) from None
    if config.tie_embeddings:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return config, weights, tokenizer


def optional(module: str) -> Any:
    """A module of a package that only exported files need; ValueError with the command that installs the package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            f"this needs the package {package} ({error}): pip install {package}"
        ) from None


def checkpoint_of(path: Path) -> Path:
    """The file or exported folder that `load` takes for `path`. Raises ValueError where there is none."""
    if path.is_file() or (path / HF_CONFIG).is_file():
        return path
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: give a .ckpt file, a run folder or an exported folder"
        )
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
        if "GLOBAL" in str(error):  # torch's word for a name that the pickle wants to import
            raise ValueError(
                f"{path} holds more than tensors and plain values: loading it would run code, so it was refused. Take "
                "checkpoints from people you trust, and only those of azllm-lightning"
            ) from error
        raise ValueError(
            f"{path} is not a whole checkpoint: it is cut short, damaged or of another kind. Copy it again, or take "
            "an older step_*.ckpt"
        ) from error
    if (
        not isinstance(checkpoint, dict)
        or not {"format", "tokenizer"} <= checkpoint.get("azllm", {}).keys()
    ):
        raise ValueError(
            f"{path} is not a checkpoint of azllm-lightning: it carries no tokenizer and no config"
        )
    found = checkpoint["azllm"]["format"]
    if found > FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {found}, and this version reads up to {FORMAT}: upgrade azllm-lightning"
        )
    return checkpoint
