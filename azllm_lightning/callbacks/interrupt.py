"""A callback that ends its own run at a chosen step, for proving that nothing is lost by it."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Interrupt(Callback):
    """Stops the run by SIGTERM when optimizer step `step` is over, or kills it outright, as a power cut would."""

    def __init__(self, step: int, kill: bool) -> None:
        self.step, self.kill = step, kill

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Send the signal to this process; on several, to the first of them."""
        if trainer.global_step == self.step and trainer.is_global_zero:
            if self.kill:
                os.kill(
                    os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM)
                )  # either is a hard end on Windows
            signal.raise_signal(signal.SIGTERM)
