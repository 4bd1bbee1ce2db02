"""A callback that times the parts of each step, and stops the run after a given one."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.machine.busy import ProcessorTimes, others_share, processor_times
from azllm_lightning.training.causal_lm import CausalLM


class Stopwatch(Callback):
    """Times micro-batches and optimizer steps; between steps `stop_after` and the next one it
    writes them to the JSON file `path` and stops the run, as a signal from outside would.
    """

    def __init__(self, stop_after: int, path: str) -> None:
        self.stop_after = stop_after
        self.path = path
        self.times: dict[str, list[float]] = {"micro_batch": [], "optimizer": [], "step": []}
        self.non_finite = 0
        self.cpu_seconds: list[float] = []
        """Processor time of each step, of all threads."""
        self._second_step: ProcessorTimes | None = None
        self._cpu_started = 0.0
        self._batch_started = 0.0
        self._step_started = 0.0
        self._backward_done = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of a micro-batch, or stop."""
        is_first = batch_idx % trainer.accumulate_grad_batches == 0
        if is_first and len(self.times["step"]) == 1:  # the first step compiles and starts threads
            self._second_step = processor_times()
        self._batch_started = time.perf_counter()
        if not is_first:
            return
        self._step_started = self._batch_started
        self._cpu_started = time.process_time()
        if trainer.global_step == self.stop_after and trainer.is_global_zero:
            threads = torch.get_num_threads()
            report = {
                "seconds": self.times,
                "cpu_seconds": self.cpu_seconds,
                "threads": threads,
                "others_share": self._others(threads) if trainer.world_size == 1 else None,
                "non_finite_steps": self.non_finite,
            }
            Path(self.path).write_text(json.dumps(report), encoding="utf-8")
            # It is saved and ended when PeriodicCheckpoint, a later callback, sees the request.
            signal.raise_signal(signal.SIGTERM)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """The last micro-batch of a step has its gradients."""
        self._backward_done = _now(pl_module)
        self.times["micro_batch"].append(self._backward_done - self._batch_started)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """The step that this batch completed, if it did, is done."""
        assert isinstance(pl_module, CausalLM)
        if pl_module.step_report is None:
            return
        done = _now(pl_module)
        self.non_finite += not pl_module.step_report.finite
        self.times["optimizer"].append(done - self._backward_done)
        self.times["step"].append(done - self._step_started)
        self.cpu_seconds.append(time.process_time() - self._cpu_started)

    def _others(self, threads: int) -> float | None:
        """What other programs took of the cores since the first step; None if it is unknown."""
        end = processor_times()
        if self._second_step is None or end is None or len(self.times["step"]) < 2:
            return None
        return others_share(self._second_step, end, threads)


def _now(module: LightningModule) -> float:
    """The time when the device has done what it was given."""
    if module.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
