"""Callbacks with which throughput.py times `python -m azllm_lightning.train`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from clock import Clock, Race
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.data.datamodule import datamodule_of
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.threads import mean_loss


class StepClock(Callback):
    """Records the end of each optimizer step of our command; `race` is a Race as JSON."""

    def __init__(self, race: str) -> None:
        self.race = Race(**json.loads(race))
        self.clock = Clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Record it."""
        if pl_module.step_report is not None:
            self.clock.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        parameters = pl_module.model_config.num_params()
        self.clock.report(self.race, number_type(trainer), parameters=parameters)


class HandLoop(Callback):
    """Pauses the run after every `segment` steps, and trains as many steps in the shortest loop
    that does the same work.

    The loop has the run's model, precision, optimizer and clipping, and batches of the same shape.
    Each is timed from one pause to the next, so that everything between two steps counts, and other
    load on the machine affects both alike. `race` is a Race as JSON.
    """

    def __init__(self, race: str, segment: int) -> None:
        self.race = Race(**json.loads(race))
        self.segment = segment
        self.seconds: list[tuple[float, float]] = []  # of each segment: ours, the loop's
        self._step = 0
        self._mark = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the loop's own model, with the same weights."""
        assert isinstance(pl_module, CausalLM)
        self.net = GPT(pl_module.model_config)
        self.net.load_state_dict(pl_module.net.state_dict())
        tokenizer = datamodule_of(trainer).tokenizer
        settings = pl_module.optimizer_config
        self.optimizer = build_optimizer(self.net, settings, tokenizer=tokenizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Every `segment` steps, run the loop."""
        if pl_module.step_report is None or trainer.global_step % self.segment:
            return
        paused = time.perf_counter()
        for _ in range(self.segment):
            self._train_step()
        ended = time.perf_counter()
        if trainer.global_step > self.segment:  # the first segment warms up
            self.seconds.append((paused - self._mark, ended - paused))
        self._mark = time.perf_counter()

    def _train_step(self) -> None:
        batch = self.race.batch(self._step)
        self._step += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.race.is_bf16):
            loss = mean_loss(self.net, batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        report = {"seconds": self.seconds, "type": number_type(trainer)}
        Path(self.race.out).write_text(json.dumps(report), encoding="utf-8")


def number_type(trainer: Trainer) -> str:
    """ "bf16" or "fp32": what the run really trains in."""
    return "bf16" if trainer.precision_plugin.precision == "bf16-mixed" else "fp32"
