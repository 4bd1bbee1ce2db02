"""The windows of the law's runs (benchmarks/law.py), cut out on the GPU so that no time goes by."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from azllm_lightning import compose
from azllm_lightning.data.datamodule import TokenDataModule


def windows(settings: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """What `trials.windows` gives: the windows of all steps (N, T + 1), those of validation, and
    the vocabulary. Cut out on the GPU, so that no time goes by.
    """
    data = open_data(
        str(Path(settings["data_root"]) / settings["data"]), settings["block"], settings["seed"]
    )
    shards = data.train_windows.shards
    tokens = torch.from_numpy(shards.read(0, len(shards)).astype("int64")).to(settings["device"])
    count = settings["steps"] * settings["batch"]
    starts = torch.tensor([data.train_windows.start(index) for index in range(count)])
    places = (starts[:, None] + torch.arange(settings["block"] + 1)) % len(tokens)  # a ring
    val = data.val_windows.__getitems__(data.chosen_val_windows()[: settings["val_windows"]])
    return tokens[places.to(tokens.device)], val, data.tokenizer.vocab_size


@cache
def open_data(path: str, block_size: int, seed: int) -> TokenDataModule:
    """The prepared data in a folder."""
    config = compose(["data=text"]).data
    data = TokenDataModule(
        replace(config, dir=path, block_size=block_size, val_windows=None), 1, seed
    )
    data.setup()
    return data
