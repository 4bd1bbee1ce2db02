"""Callbacks that prove that nothing is lost: one ends its own run, one breaks a restore."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Interrupt(Callback):
    """Stops the run by SIGTERM after optimizer step `step`, or with `kill` without warning."""

    def __init__(self, step: int, kill: bool) -> None:
        self.step = step
        self.kill = kill

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Send the signal to this process; with several processes, to the first."""
        if trainer.global_step == self.step and trainer.is_global_zero:
            if self.kill:
                # On Windows, which has no SIGKILL, SIGTERM ends a process just as abruptly.
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            signal.raise_signal(signal.SIGTERM)


class BrokenRestore(Callback):
    """Forgets the optimizer's moments when a run is resumed: the negative control of a proof."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Zero what was restored."""
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.dim() > 0:
                        value.zero_()
