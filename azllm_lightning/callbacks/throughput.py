"""Tokens per second and MFU of the training steps alone: validation, saving and compiling are not counted."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.saving import AtomicCheckpointIO


class Throughput(Callback):
    """Logs tokens_per_sec and mfu, each over the steps since it last logged, and peak_memory_gb (10^9 bytes).

    mfu is the model's FLOPs per second (`GPTConfig.flops_per_token`, PaLM's count) over `peak_flops` of all devices.
    The first step of a session, which compiles and warms up, counts for nothing.
    """

    def __init__(self, io: AtomicCheckpointIO, peak_flops: float) -> None:
        self.io, self.peak_flops = io, peak_flops
        self.step_seconds: list[float] = []
        self.rate: float | None = None
        """Tokens per second as last logged."""
        self._logged = 0
        self._validation_started = self._paused = self._mark = 0.0
        self._saving_before = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Time the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        if pl_module.step_report is None:
            return
        elapsed = (
            time.perf_counter()
            - self._mark
            - self._paused
            - (self.io.seconds - self._saving_before)
        )
        self._restart()
        self.step_seconds.append(elapsed)
        recent = self.step_seconds[max(1, self._logged) :]
        if pl_module.logs_now and recent:
            self.rate = len(recent) * self._tokens_per_step(trainer, pl_module) / sum(recent)
            mfu = (
                self.rate
                * pl_module.model_config.flops_per_token()
                / (self.peak_flops * trainer.world_size)
            )
            values = {"tokens_per_sec": self.rate, "mfu": mfu}
            if (peak := peak_memory_bytes()) is not None:
                values["peak_memory_gb"] = peak / 1e9
            pl_module.log_pinned(values)
            self._logged = len(self.step_seconds)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._paused += time.perf_counter() - self._validation_started

    def median(self, trainer: Trainer, pl_module: CausalLM) -> float | None:
        """Tokens per second of the median step of this session; None before its second step."""
        seconds = self.step_seconds[1:]
        return (
            self._tokens_per_step(trainer, pl_module) / statistics.median(seconds)
            if seconds
            else None
        )

    def _tokens_per_step(self, trainer: Trainer, pl_module: CausalLM) -> int:
        windows = trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        return int(windows * pl_module.model_config.block_size)

    def _restart(self) -> None:
        self._mark, self._paused, self._saving_before = time.perf_counter(), 0.0, self.io.seconds


def peak_memory_bytes() -> int | None:
    """Most memory held so far: of the GPU's where one is used, else of this process (unknown on Windows)."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
