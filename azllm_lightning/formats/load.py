"""Load a model and its tokenizer from a checkpoint or an exported folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import with_near_path
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import HF_CONFIG, read_hf
from azllm_lightning.model.gpt import GPT

FORMAT = 1
"""Version of what a checkpoint stores under "azllm"; a newer one is refused."""

PREFIX = "net."
"""Prefix of the GPT's parameters in a checkpoint: CausalLM stores it as `net`."""


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """The model, on `device` and in eval mode, and the tokenizer of a checkpoint.

    `path` is a .ckpt file, a run folder (its checkpoints/best.ckpt, else its newest
    checkpoints/step_*.ckpt) or a folder written by `export format=hf`. Code in a checkpoint is
    never run, and Lightning is not imported.

    Raises ValueError if there is no checkpoint, or it is damaged or was not written by this
    project, or if its weights are not finite.
    """
    path = checkpoint_of(Path(path))
    config, weights, tokenizer = read_hf(path) if path.is_dir() else _read_model(path)
    model = GPT(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            tr(
                "{path}: the weights do not match the model's stored sizes. {error}",
                path=path,
                error=error,
            )
        ) from None
    check_finite(model.state_dict(), path)
    return model.to(device).eval(), tokenizer


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError, which names `path`, if `weights` has values that are not finite."""
    if (name := first_not_finite(weights)) is not None:
        raise ValueError(
            tr(
                "{path}: the weights are not finite ({name} has NaN or infinity), so this model "
                "is of no use: the training that wrote it had diverged. Use an earlier checkpoint, "
                "or train with a lower optimizer.lr",
                path=path,
                name=name,
            )
        )


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that has NaN or infinity; None if there is none.

    It waits for the device once.
    """
    floats = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    if not floats:
        return None
    # The largest magnitude: it cannot overflow, and NaN prevails.
    norms = [torch.linalg.vector_norm(tensor.detach(), ord=math.inf) for tensor in floats.values()]
    is_finite = torch.stack([norm.float() for norm in norms]).isfinite().tolist()
    return next((name for name, fine in zip(floats, is_finite, strict=True) if not fine), None)


def tokenizer_of(path: str | Path) -> Tokenizer:
    """The tokenizer of what `load` reads for `path`, without the weights.

    Raises ValueError as `load` does.
    """
    found = checkpoint_of(Path(path))
    if found.is_dir():
        return Tokenizer.from_file(found)
    return Tokenizer.from_json(read_checkpoint(found)["azllm"]["tokenizer"], str(found))


def tokenizer_folder(path: str | Path) -> str:
    """What to type as data.tokenizer for the tokenizer of what `load` reads for `path`; a word in
    its place if no folder has it.
    """
    found = checkpoint_of(Path(path))
    places = [Path(path), found, found.parent, found.parent.parent]
    folders = [place for place in places if (place / "tokenizer.json").is_file()]
    return str(folders[0]) if folders else tr("FOLDER")


def checkpoint_of(path: Path) -> Path:
    """The file or exported folder that `load` reads for `path`. Raises ValueError if none."""
    if path.is_file() or (path / HF_CONFIG).is_file():
        return path
    if not path.exists():
        message = tr(
            "{path} does not exist: give a .ckpt file, a run folder or an exported folder",
            path=path,
        )
        raise ValueError(with_near_path(message, path, _may_be_model))
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    numbers = {p.stem.removeprefix("step_"): p for p in path.glob("checkpoints/step_*.ckpt")}
    steps = {int(number): p for number, p in numbers.items() if number.isdecimal()}
    if not steps:
        raise ValueError(
            tr(
                "{path} has neither checkpoints/best.ckpt nor checkpoints/step_*.ckpt: a run "
                "folder is lightning_logs/<run_name>/version_<k>",
                path=path,
            )
        )
    return steps[max(steps)]


def _may_be_model(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".ckpt"


def read_checkpoint(path: Path, mmap: bool = os.name != "nt") -> dict[str, Any]:
    """The contents of a checkpoint file of this project, with its tensors on the CPU.

    With `mmap` tensors are read when they are used; Windows cannot replace a file that is mapped.

    Raises ValueError if the file is damaged, of another program, or of a newer format, and OSError
    if the system cannot read it.
    """
    try:
        if "\\udc" in ascii(str(path)):  # torch opens no path with bytes that are not UTF-8
            with path.open("rb") as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise a dozen kinds, struct.error among them
        if "GLOBAL" in str(error):  # torch's word for a name that the pickle wants to import
            raise ValueError(
                tr(
                    "{path} was refused: it contains more than tensors and plain values, and "
                    "loading it would run code. Load only checkpoints of azllm-lightning, from "
                    "people you trust",
                    path=path,
                )
            ) from error
        raise ValueError(
            tr(
                "{path} is not a complete checkpoint: it is truncated, damaged or of another kind. "
                "Copy it again, or use an older step_*.ckpt",
                path=path,
            )
        ) from error
    content = checkpoint.get("azllm", {}) if isinstance(checkpoint, dict) else {}
    if not {"format", "tokenizer"} <= content.keys():
        raise ValueError(
            tr(
                "{path} is not a checkpoint of azllm-lightning: it has no tokenizer and no config",
                path=path,
            )
        )
    if content["format"] > FORMAT:
        raise ValueError(
            tr(
                "{path} has checkpoint format {found}, and this version reads formats up to "
                "{newest}: upgrade azllm-lightning",
                path=path,
                found=content["format"],
                newest=FORMAT,
            )
        )
    assert isinstance(checkpoint, dict)
    return checkpoint


def stored_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The composed config of the run that wrote `checkpoint`; empty if a plain Trainer wrote it."""
    return yaml.safe_load(checkpoint["azllm"]["config"]) or {}


def origin(path: Path) -> str:
    """A checkpoint for people: its path, and the step of its weights where that is recorded."""
    step = step_of(path)
    if step is None:
        return str(path)
    return tr("{path}, step {step:,}", path=path, step=step)


def name_of(path: Path) -> str:
    """What to call the model that `load` reads for `path`: as its run, or else as its file or
    folder.
    """
    found = checkpoint_of(path)
    config = {} if found.is_dir() else stored_config(read_checkpoint(found))
    return str(config.get("run_name") or path.absolute().name)


def step_of(path: Path) -> int | None:
    """The optimizer step of a checkpoint file; None for an exported folder, which has none."""
    if path.is_dir():
        return None
    step = read_checkpoint(path)["azllm"].get("step")
    return None if step is None else int(step)


def trained_on(path: Path) -> str | None:
    """The data.name of the run that wrote a checkpoint; None where that is not recorded."""
    if path.is_dir():
        return None
    name = stored_config(read_checkpoint(path)).get("data", {}).get("name")
    return None if name is None else str(name)


def data_fingerprint(path: Path) -> str | None:
    """The fingerprint of the data that a checkpoint was trained on; None where that is not
    recorded.
    """
    if path.is_dir():
        return None
    fingerprint = read_checkpoint(path)["azllm"].get("data")
    return None if fingerprint is None else str(fingerprint)


def _read_model(path: Path) -> tuple[GPTConfig, dict[str, Tensor], Tokenizer]:
    checkpoint = read_checkpoint(path)
    config = from_mapping(GPTConfig, checkpoint["hyper_parameters"]["model"], f"{path}: model")
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
    return config, weights, Tokenizer.from_json(checkpoint["azllm"]["tokenizer"], str(path))
