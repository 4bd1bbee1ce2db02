"""Guards a run against numbers that are not finite: counts the steps left out, warns of spikes, asks to roll back."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.words import Words
from azllm_lightning.config.callbacks import HealthConfig
from azllm_lightning.training.causal_lm import CausalLM

log = logging.getLogger(__name__)

SCALE_FLOOR = 1.0
"""An fp16 overflow above this scale is the scaler finding its level; at or below it, the run is broken."""


class RollBack(Exception):
    """Steps `first_step` to `last_step` (1 is the run's first) were not finite: go back before them, leave them out."""

    def __init__(self, first_step: int, last_step: int) -> None:
        super().__init__(
            f"steps {first_step} to {last_step} had a loss or gradient that is not finite"
        )
        self.first_step, self.last_step = first_step, last_step


class Health(Callback):
    """Counts steps whose loss or gradient was not finite (they change no weight), and warns when the loss jumps.

    After `patience` such steps in a row it raises RollBack. All it knows is in its state, so that a resumed run decides
    as the uninterrupted one would.
    """

    def __init__(self, config: HealthConfig, words: Words) -> None:
        self.config, self.words, self.rollbacks = config, words, 0
        self.skipped_steps = 0
        self._in_a_row = 0
        self._mean: float | None = None  # of the loss, over about the last 50 steps
        self._jumped = False  # so that a loss that stays up is told once

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the mean that a spike is measured from."""
        return {
            "rollbacks": self.rollbacks,
            "skipped_steps": self.skipped_steps,
            "in_a_row": self._in_a_row,
            "mean": self._mean,
            "jumped": self._jumped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, without forgetting the rollback that may have led to it."""
        self.rollbacks = max(self.rollbacks, state_dict["rollbacks"])
        self.skipped_steps, self._in_a_row = state_dict["skipped_steps"], state_dict["in_a_row"]
        self._mean, self._jumped = state_dict["mean"], state_dict.get("jumped", False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Look at the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        report, step = pl_module.step_report, trainer.global_step
        if report is None:
            return
        if report.finite:
            self._in_a_row = 0
            jumps = self._mean is not None and report.loss > self._mean + self.config.spike
            if jumps and not self._jumped:
                log.warning(self.words("loss_jump", step=step, loss=report.loss, mean=self._mean))
            self._jumped = jumps
            self._mean = (
                report.loss if self._mean is None else 0.98 * self._mean + 0.02 * report.loss
            )
            return
        if math.isfinite(report.loss) and report.loss_scale > SCALE_FLOOR:
            return  # an ordinary overflow: the scaler lowers its scale
        self.skipped_steps += 1
        self._in_a_row += 1
        told = {"loss": report.loss, "norm": report.grad_norm, "patience": self.config.patience}
        log.warning(self.words("left_out", step=step, in_a_row=self._in_a_row, **told))
        if self._in_a_row >= self.config.patience:
            raise RollBack(step - self._in_a_row + 1, step)
