"""`litgpt pretrain` with its defaults (compiled) and a Pythia of the race's sizes; run in its own
venv.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import litgpt.pretrain
import torch
from clock import Clock, Race
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule


class Windows(DataModule):
    """The token windows of a race, in the form in which litgpt takes custom data."""

    def __init__(self, race: Race) -> None:
        super().__init__()
        self.race = race

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the race has all settings."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Batches (B, T + 1), in the order of the file."""
        windows = [self.race.window(i) for i in range(self.race.num_windows)]
        return torch.utils.data.DataLoader(windows, batch_size=self.race.batch_size, drop_last=True)

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """The same: litgpt validates on two batches before it starts."""
        return self.train_dataloader()


def main() -> None:
    """Train and report."""
    race = Race(**json.loads(sys.argv[1]))
    clock = Clock()
    rate_of_step = litgpt.pretrain.get_lr

    def get_lr(*args: Any, **kwargs: Any) -> float:
        """Litgpt asks for the rate at the beginning of an iteration: the one before has ended."""
        clock.tick()
        return rate_of_step(*args, **kwargs)

    litgpt.pretrain.get_lr = get_lr
    sizes = {"n_layer": race.n_layer, "n_head": race.n_head, "n_embd": race.n_embd}
    config = Config.from_name(
        "pythia-14m",
        **sizes,
        intermediate_size=4 * race.n_embd,
        block_size=race.block_size,
        vocab_size=race.vocab_size,
        padded_vocab_size=race.vocab_size,
    )
    train = TrainArgs(
        save_interval=None,
        global_batch_size=race.batch_size,
        micro_batch_size=race.batch_size,
        max_tokens=(race.steps + 1) * race.batch_size * race.block_size,
        lr_warmup_steps=2,
        max_norm=1.0,
        min_lr=4e-5,
        tie_embeddings=True,
    )
    precision = "bf16-mixed" if race.is_bf16 else "32-true"
    with tempfile.TemporaryDirectory() as folder:
        litgpt.pretrain.setup(
            "pythia-14m",
            config,
            out_dir=Path(folder),
            precision=precision,
            data=Windows(race),
            train=train,
            eval=EvalArgs(interval=1_000_000, max_iters=2, final_validation=False),
        )
    clock.report(race, race.number_type, litgpt=importlib.metadata.version("litgpt"))


if __name__ == "__main__":
    main()
