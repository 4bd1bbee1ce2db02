"""Tells a person, once, in one line, what ails a run and what to try; and stops a run that learns no more."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks import rules as ailments
from azllm_lightning.callbacks.console import Console
from azllm_lightning.callbacks.panels import best_of, prose
from azllm_lightning.callbacks.tensorboard import writers
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.training.causal_lm import CausalLM

log = logging.getLogger(__name__)

WORSE = 4.0
"""How many times as bad as when it was told an ailment must be to be told again."""

WELL = 0.5
"""Below this an ailment is over, and may be told again when it comes back."""

CHECK_EVERY = 10
"""Optimizer steps between two looks at what changes slowly."""

WATCHED_STEPS, WATCHED_SECONDS = 50, 20.0
"""How many measured steps, and how much of their time, a judgement on waiting for data takes."""


class Diagnosis(Callback):
    """Watches the losses, the gradient norm, the fp16 scale and the waits for data, and says what `ailments` finds.

    Each finding is a line in the console, and in TensorBoard a text and a scalar `diagnosis/<ailment>` (how many times
    its threshold) at that step; a run in good health leaves neither. What it has seen and said is in its state, so that
    a resumed run says what the uninterrupted one would; waits for data are measured anew.

    With `patience`, the run stops when it overfits, and when val_loss has not fallen for so many validations.
    """

    def __init__(
        self,
        console: Console,
        throughput: Throughput,
        rise: float,
        best: Path,
        patience: int | None,
    ) -> None:
        self.console, self.throughput = console, throughput
        self.rise, self.best, self.patience = rise, best, patience
        self._told: dict[str, float] = {}
        self._losses: deque[float] = deque(maxlen=ailments.LONG + ailments.USUAL)
        self._norms: deque[float] = deque(maxlen=ailments.LONG + ailments.USUAL)
        self._lowest: tuple[float, float] | None = (
            None  # mean of LONG steps and their scatter, where that was lowest
        )
        self._scales: list[float] = []  # since it last grew
        self._batch_ended, self._waited = (
            0.0,
            math.nan,
        )  # NaN: something besides waiting was done before this step
        self._measured, self._idle, self._seconds = (
            0,
            0.0,
            0.0,
        )  # steps, their waits for data, their time

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said; the validations are in the console's state."""
        return {
            "told": dict(self._told),
            "losses": list(self._losses),
            "norms": list(self._norms),
            "lowest": None if self._lowest is None else list(self._lowest),
            "scales": list(self._scales),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching where the checkpoint was written."""
        self._told, self._scales = dict(state_dict["told"]), list(state_dict["scales"])
        self._losses.extend(state_dict["losses"])
        self._norms.extend(state_dict["norms"])
        lowest = state_dict["lowest"]
        self._lowest = None if lowest is None else (lowest[0], lowest[1])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the wait for this batch; while a step's later ones are waited for, a GPU still computes."""
        if batch_idx % trainer.accumulate_grad_batches == 0 or pl_module.device.type == "cpu":
            self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Look at the step that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        report = pl_module.step_report
        if report is not None:
            if report.finite:
                self._losses.append(report.loss)
                self._norms.append(report.grad_norm)
                self._look_at_losses(trainer, pl_module)
            self._look_at_scale(trainer, pl_module, report.loss_scale)
            self._look_at_waits(trainer)
            self._waited = math.nan if pl_module.logs_now else 0.0
        self._batch_ended = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation before a step is no wait for its data."""
        self._waited = math.nan

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the validations so far, this one included; stop here if the run is to stop early."""
        assert isinstance(pl_module, CausalLM)
        history, step = self.console.validations, trainer.global_step
        best = best_of(history)
        if best is None or trainer.sanity_checking:
            return
        severity, row = ailments.overfitting(history, self.rise), history[-1]
        told = {
            "val": row.val_loss,
            "train": row.train_loss,
            "best": best.val_loss,
            "best_step": best.step,
        }
        if self._is_news("overfitting", severity):
            remedy = ailments.against_overfitting(
                pl_module.optimizer_config, pl_module.model_config.dropout
            )
            self._say(trainer, "overfitting", severity, path=self.best, remedy=remedy, **told)
        since = sum(row.step > best.step for row in history)
        if self.patience is not None and (severity >= 1 or since >= self.patience):
            trainer.should_stop = True
            self._say(trainer, "early_stop", float(since), **told)
        elif step >= trainer.max_steps and severity < 1:
            schedule, guess = pl_module.schedule_config, math.log(pl_module.model_config.vocab_size)
            if (found := ailments.underfitting(history, guess, schedule.warmup_steps)) is not None:
                key, middle = found
                told |= {"middle": middle.val_loss, "middle_step": middle.step, "longer": 2 * step}
                self._say(trainer, key, 1.0, lr=pl_module.optimizer_config.lr, **told)

    def _look_at_losses(self, trainer: Trainer, pl_module: CausalLM) -> None:
        """A learning rate that is too high, and a run that learns nothing."""
        losses, norms, step = list(self._losses), list(self._norms), trainer.global_step
        vocab, schedule = pl_module.model_config.vocab_size, pl_module.schedule_config
        guess, lr = math.log(vocab), pl_module.optimizer_config.lr
        lowest, scatter = self._lowest or (guess, 0.0)
        severity = ailments.loss_rise(losses, lowest, scatter)
        if step % CHECK_EVERY == 0:
            severity = max(severity, ailments.norm_growth(losses, norms))
        if (step % CHECK_EVERY == 0 or severity >= 1) and self._is_news("lr_too_high", severity):
            loss, norm = (
                statistics.fmean(losses[-ailments.SHORT :]),
                statistics.median(norms[-ailments.SHORT :]),
            )
            usual = statistics.median(norms[: -ailments.SHORT] or norms)
            told = {
                "loss": loss,
                "lowest": lowest,
                "norm": norm,
                "usual": usual,
                "warmup": schedule.warmup_steps,
            }
            self._say(trainer, "lr_too_high", severity, lr=lr, lower=lr / 3, **told)
        recent = losses[-ailments.LONG :]
        if step % CHECK_EVERY or len(recent) < ailments.LONG:
            return
        if (mean := statistics.fmean(recent)) < lowest:
            self._lowest = (mean, statistics.pstdev(recent, mean))
        if step >= schedule.warmup_steps + ailments.LONG:
            severity = ailments.deadness(losses, guess)
            if self._is_news("dead", severity):
                self._say(trainer, "dead", severity, loss=mean, guess=guess, vocab=vocab, lr=lr)

    def _look_at_scale(self, trainer: Trainer, pl_module: CausalLM, scale: float) -> None:
        if not self._scales or scale > self._scales[-1]:
            self._scales = [scale]
        elif scale < self._scales[-1]:
            self._scales.append(scale)
        severity = ailments.scale_fall(self._scales)
        if self._is_news("scale_falls", severity):
            told = {
                "scale": scale,
                "halvings": severity * ailments.HALVINGS,
                "lr": pl_module.optimizer_config.lr,
            }
            self._say(trainer, "scale_falls", severity, **told)

    def _look_at_waits(self, trainer: Trainer) -> None:
        if math.isnan(self._waited):
            return
        self._measured += 1
        self._idle += self._waited
        self._seconds += self.throughput.step_seconds[-1]
        if self._measured < WATCHED_STEPS or self._seconds < WATCHED_SECONDS:
            return
        share = self._idle / self._seconds
        self._measured, self._idle, self._seconds = 0, 0.0, 0.0
        severity = share / ailments.WAITING
        if self._is_news("data_bound", severity):
            workers = trainer.datamodule.config.num_workers  # type: ignore[attr-defined]
            told = {"share": share, "workers": workers, "more": max(2, 2 * workers)}
            self._say(trainer, "data_bound", severity, **told)

    def _is_news(self, ailment: str, severity: float) -> bool:
        """Whether to speak of it: it is there, and was not told since it came or is far worse now."""
        if severity < WELL:
            self._told.pop(ailment, None)
        if severity < max(1.0, WORSE * self._told.get(ailment, 0.0)):
            return False
        self._told[ailment] = severity
        return True

    def _say(self, trainer: Trainer, key: str, value: float, **fields: object) -> None:
        """One line in the console, and a mark at this step in TensorBoard."""
        words, step = self.console.words, trainer.global_step
        text = words(key, step=step, **fields)
        if trainer.is_global_zero:
            log.warning("\n".join(prose(words("diagnosis"), text)))
        for writer in writers(trainer):
            writer.add_text(f"diagnosis/{key}", text, step)
        for logger in trainer.loggers:
            logger.log_metrics({f"diagnosis/{key}": value}, step=step)
            logger.save()
