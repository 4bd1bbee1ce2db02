"""transformers' Trainer with GPT2LMHeadModel, otherwise its defaults; `python hf.py RACE_JSON` in
its own venv.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
import transformers
from clock import Clock, Race
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Windows(torch.utils.data.Dataset):
    """The token windows of a race; the model shifts the labels itself."""

    def __init__(self, race: Race) -> None:
        self.race = race

    def __len__(self) -> int:
        return self.race.num_windows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.race.window(index)[:-1]
        return {"input_ids": ids, "labels": ids}


class StepClock(TrainerCallback):
    """Records the end of each optimizer step."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record it."""
        self.clock.tick()


def main() -> None:
    """Train and report."""
    race = Race(**json.loads(sys.argv[1]))
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # as all here
    config = GPT2Config(
        vocab_size=race.vocab_size,
        n_positions=race.block_size,
        n_layer=race.n_layer,
        n_head=race.n_head,
        n_embd=race.n_embd,
        bos_token_id=0,
        eos_token_id=0,
        **no_dropout,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=race.steps,
            per_device_train_batch_size=race.batch_size,
            bf16=race.is_bf16,
            use_cpu=True,  # bf16 is refused without it
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = GPT2LMHeadModel(config)
        timer = StepClock()
        Trainer(model=model, args=arguments, train_dataset=Windows(race), callbacks=[timer]).train()
    details = {"transformers": transformers.__version__, "parameters": model.num_parameters()}
    timer.clock.report(race, "bf16" if arguments.bf16 else "fp32", **details)


if __name__ == "__main__":
    main()
