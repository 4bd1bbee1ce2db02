"""Protects a run from non-finite losses and gradients, and warns of spikes."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.callbacks import HealthConfig
from azllm_lightning.training.causal_lm import CausalLM, StepReport

log = logging.getLogger(__name__)

SCALE_FLOOR = 1.0
"""Above this loss scale, an fp16 overflow is a normal adjustment of the scaler; at or below it, the
run is broken."""


class RollBack(Exception):
    """Steps `first_step` to `last_step` were non-finite: roll back before them and skip their
    batches.

    Steps are counted from 1.
    """

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step = first_step
        self.last_step = last_step
        if first_step == last_step:
            text = tr("non-finite loss or gradient in step {step:,}", step=first_step)
        else:
            text = tr(
                "non-finite loss or gradient in steps {first:,} to {last:,}",
                first=first_step,
                last=last_step,
            )
        super().__init__(text)


class Health(Callback):
    """Counts non-finite steps, which change no weight, and warns when the loss jumps.

    After `patience` such steps in a row it raises RollBack. Its counts are in every checkpoint, so
    that a resumed run decides as an uninterrupted one would.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.rollbacks = 0
        self._in_a_row = 0
        self._mean: float | None = None  # of the loss, over about the last 50 steps
        self._jumped = False  # so that a loss that stays high is reported once

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the mean that a spike is compared with."""
        return {
            "rollbacks": self.rollbacks,
            "in_a_row": self._in_a_row,
            "mean": self._mean,
            "jumped": self._jumped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, without forgetting a rollback that led back to it."""
        self.rollbacks = max(self.rollbacks, state_dict["rollbacks"])
        self._in_a_row = state_dict["in_a_row"]
        self._mean = state_dict["mean"]
        self._jumped = state_dict["jumped"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Check the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        report = pl_module.step_report
        if report is None:
            return
        if report.finite:
            self._check_spike(report, trainer.global_step)
        elif not (math.isfinite(report.loss) and report.loss_scale > SCALE_FLOOR):
            self._count_skipped(report, trainer.global_step)

    def _check_spike(self, report: StepReport, step: int) -> None:
        self._in_a_row = 0
        mean = report.loss if self._mean is None else self._mean
        jumps = report.loss > mean + self.config.spike
        if jumps and not self._jumped:
            text = tr(
                "step {step:,}: the loss jumped to {loss:.3f} from a mean of {mean:.3f}",
                step=step,
                loss=report.loss,
                mean=mean,
            )
            log.warning(paragraph(text))
        self._jumped = jumps
        self._mean = 0.98 * mean + 0.02 * report.loss

    def _count_skipped(self, report: StepReport, step: int) -> None:
        self._in_a_row += 1
        if self._in_a_row == 1:  # a row of them is reported once
            self._warn_of_skipping(report, step)
        if self._in_a_row >= self.config.patience:
            raise RollBack(step - self._in_a_row + 1, step)

    def _warn_of_skipping(self, report: StepReport, step: int) -> None:
        text = tr(
            "step {step:,} skipped: loss {loss:.4g}, gradient norm {norm:.4g} "
            "(after {patience} in a row, callbacks.health.patience, the run rolls back)",
            step=step,
            loss=report.loss,
            norm=report.grad_norm,
            patience=self.config.patience,
        )
        log.warning(paragraph(text))
