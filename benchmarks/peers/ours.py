"""Callbacks by which throughput.py looks into the real `python -m azllm_lightning.train`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from clock import Clock, Race
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.optimizer import build_optimizer


class StepClock(Callback):
    """Notes the end of each optimizer step."""

    def __init__(self, out: str) -> None:
        self.out, self.clock = out, Clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Note it."""
        if pl_module.step_report is not None:
            self.clock.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self.clock.report(self.out, parameters=pl_module.model_config.num_params())


class HandLoop(Callback):
    """Halts the run after every `segment` steps, and trains as many with the shortest loop that does the same work.

    The loop has the run's model, precision, compile setting, optimizer and clipping, and batches of the same shape.
    Both are timed from one halt to the next, so that all that happens between two steps counts, and what else the
    machine does in the meantime falls on both alike. `race` is a Race as JSON.
    """

    def __init__(self, race: str, segment: int) -> None:
        self.race, self.segment = Race(**json.loads(race)), segment
        self.seconds: list[tuple[float, float]] = []  # of each segment: ours, the loop's
        self._step, self._mark = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the loop's own model, with the same weights."""
        assert isinstance(pl_module, CausalLM)
        self.net = GPT(pl_module.model_config)
        self.net.load_state_dict(pl_module.net.state_dict())
        self.optimizer = build_optimizer(self.net, pl_module.optimizer_config)
        if self.race.compiled:
            self.net.compile()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Every `segment` steps, let the loop have its turn."""
        if pl_module.step_report is None or trainer.global_step % self.segment:
            return
        halted = time.perf_counter()
        bf16 = trainer.precision_plugin.precision == "bf16-mixed"
        for _ in range(self.segment):
            self._train_step(bf16)
        ended = time.perf_counter()
        if trainer.global_step > self.segment:  # the first segment compiles and warms up
            self.seconds.append((halted - self._mark, ended - halted))
        self._mark = time.perf_counter()

    def _train_step(self, bf16: bool) -> None:
        batch = self.race.batch(self._step)
        self._step += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = self.net(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        told = {
            "parameters": pl_module.model_config.num_params(),
            "threads": torch.get_num_threads(),
        }
        report = {"seconds": self.seconds, "told": told}
        Path(self.race.out).write_text(json.dumps(report), encoding="utf-8")
