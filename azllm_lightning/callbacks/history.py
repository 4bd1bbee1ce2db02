"""What happened in a run: its validations, the last of its steps, and the time they took."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.clock import Clock
from azllm_lightning.data.datamodule import datamodule_of
from azllm_lightning.training.causal_lm import CausalLM, StepReport
from azllm_lightning.training.saving import AtomicCheckpointIO

LONG = 50
"""Number of optimizer steps over which the loss is averaged."""

KEPT = 250
"""Steps whose losses and gradient norms are kept."""

CHECK_EVERY = 10
"""Optimizer steps between two checks of what changes slowly."""


class Validation(NamedTuple):
    """One validation, losses in nats per token; train_loss is the mean since the one before."""

    step: int
    train_loss: float | None
    val_loss: float
    val_ppl: float
    val_bpb: float

    @property
    def gap(self) -> float | None:
        """val_loss minus train_loss; None before the first step."""
        return None if self.train_loss is None else self.val_loss - self.train_loss


class Mean(NamedTuple):
    """The mean of LONG losses, and their standard deviation."""

    value: float
    deviation: float


def best_of(validations: Sequence[Validation]) -> Validation | None:
    """The one with the lowest val_loss; that of step 0, of an untrained model, does not count."""
    trained = [row for row in validations if row.step and math.isfinite(row.val_loss)]
    return min(trained, key=lambda row: row.val_loss, default=None)


class History(Callback):
    """Records a run for the other callbacks; its state is in every checkpoint.

    It is the first callback, so that the others see the step or validation just completed.
    """

    def __init__(self, io: AtomicCheckpointIO) -> None:
        self.clock = Clock(io)
        self.validations: list[Validation] = []
        self.losses: deque[float] = deque(maxlen=KEPT)
        """train_loss of the last finite steps."""
        self.norms: deque[float] = deque(maxlen=KEPT)
        """Gradient norms of the same steps."""
        self.lowest: Mean | None = None
        """The lowest mean of LONG losses."""
        self.scales: list[float] = []
        """The values that the fp16 loss scale took since it last grew."""
        self.tokens_per_sec: float | None = None
        """Over the steps between the last two that were logged, without the first of the session.
        """
        self.resumed_from: list[str] = []
        """The checkpoints that sessions of this run started from."""
        self.starts_from: str | None = None
        """The one that this session starts from."""
        self._tokens_per_step = 0
        self._steps_logged = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed session continues, as plain types."""
        return {
            "validations": [list(row) for row in self.validations],
            "losses": list(self.losses),
            "norms": list(self.norms),
            "lowest": None if self.lowest is None else list(self.lowest),
            "scales": list(self.scales),
            "validation_seconds": self.clock.validation_seconds,
            "wall_seconds": self.clock.wall_seconds,
            "resumed_from": list(self.resumed_from),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of earlier sessions."""
        self.validations = [Validation(*row) for row in state_dict["validations"]]
        self.losses = deque(state_dict["losses"], maxlen=KEPT)
        self.norms = deque(state_dict["norms"], maxlen=KEPT)
        self.lowest = None if state_dict["lowest"] is None else Mean(*state_dict["lowest"])
        self.scales = list(state_dict["scales"])
        self.clock.validation_seconds = state_dict["validation_seconds"]
        self.clock.add_earlier(state_dict["wall_seconds"])
        self.resumed_from = list(state_dict["resumed_from"])

    def median_tokens_per_sec(self) -> float | None:
        """Tokens per second of this session's median step; None before its second step."""
        seconds = self.clock.step_seconds[1:]
        return self._tokens_per_step / statistics.median(seconds) if seconds else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and note the resume now that the earlier state is restored."""
        assert isinstance(pl_module, CausalLM)
        if self.starts_from is not None:
            self.resumed_from.append(self.starts_from)
        sequences = datamodule_of(trainer).global_batch_size
        self._tokens_per_step = sequences * pl_module.model_config.block_size
        self.clock.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Time the wait for this batch; within a step, a GPU still computes during that time.

        Where a branch goes back to an earlier state, the losses since that one are not compared
        with those to come.
        """
        assert isinstance(pl_module, CausalLM)
        first_of_step = batch_idx % trainer.accumulate_grad_batches == 0
        if first_of_step and pl_module.began_branch():
            self.losses.clear()
            self.norms.clear()
            self.lowest = None
        self.clock.batch_starts(is_wait=first_of_step or pl_module.device.type == "cpu")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Record the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        report = pl_module.step_report
        if report is not None:
            self.clock.step_ends(pl_module.logs_now)
            if pl_module.logs_now:
                self._measure_rate()
            self._record(report, trainer.global_step)
        self.clock.batch_ends()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time it separately from the steps."""
        self.clock.validation_starts()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Time each batch, since the first may compile."""
        self.clock.validation_batch_ends()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the validation."""
        assert isinstance(pl_module, CausalLM)
        values = pl_module.last_validation
        gap = values.get("generalization_gap")
        self.validations.append(
            Validation(
                step=trainer.global_step,
                train_loss=None if gap is None else values["val_loss"] - gap,
                val_loss=values["val_loss"],
                val_ppl=values["val_ppl"],
                val_bpb=values["val_bpb"],
            )
        )

    def _record(self, report: StepReport, step: int) -> None:
        if not self.scales or report.loss_scale > self.scales[-1]:
            self.scales = [report.loss_scale]
        elif report.loss_scale < self.scales[-1]:
            self.scales.append(report.loss_scale)
        if not report.finite:
            return
        self.losses.append(report.loss)
        self.norms.append(report.grad_norm)
        if step % CHECK_EVERY or len(self.losses) < LONG:
            return
        recent = list(self.losses)[-LONG:]
        mean = statistics.fmean(recent)
        if self.lowest is None or mean < self.lowest.value:
            self.lowest = Mean(mean, statistics.pstdev(recent, mean))

    def _measure_rate(self) -> None:
        recent = self.clock.step_seconds[max(1, self._steps_logged) :]
        if recent:
            self.tokens_per_sec = len(recent) * self._tokens_per_step / sum(recent)
            self._steps_logged = len(self.clock.step_seconds)
