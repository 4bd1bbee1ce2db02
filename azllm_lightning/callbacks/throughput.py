"""Tokens per second, MFU and peak memory, for TensorBoard."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.history import History
from azllm_lightning.training.causal_lm import CausalLM


class Throughput(Callback):
    """Logs tokens_per_sec, mfu and peak_memory_gb (10^9 bytes) at the steps that are logged.

    mfu is the model's FLOPs per second (`GPTConfig.flops_per_token`, PaLM's count) over
    `peak_flops` of all devices.
    """

    def __init__(self, history: History, peak_flops: float) -> None:
        self.history = history
        self.peak_flops = peak_flops

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        rate = self.history.tokens_per_sec
        if pl_module.step_report is None or not pl_module.logs_now or rate is None:
            return
        flops = rate * pl_module.model_config.flops_per_token()
        values = {"tokens_per_sec": rate, "mfu": flops / (self.peak_flops * trainer.world_size)}
        if (peak := peak_memory_bytes(pl_module.device.type)) is not None:
            values["peak_memory_gb"] = peak / 1e9
        pl_module.log_pinned(values)


def peak_memory_bytes(device: str) -> int | None:
    """Peak memory of the GPU if `device` is "cuda", else of this process (None on Windows)."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserved_share() -> float:
    """The share of the GPU's memory that this process has reserved; above 1 if Windows keeps some
    of it on the host.
    """
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return float(torch.cuda.memory_reserved() / total)
