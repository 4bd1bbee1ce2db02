"""Reports what is going wrong in a run and what to try, and stops a run that no longer learns."""

from __future__ import annotations

import logging
import math
import statistics
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks import rules
from azllm_lightning.callbacks.history import CHECK_EVERY, LONG, History, Validation, best_of
from azllm_lightning.callbacks.tensorboard import writers
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.callbacks.throughput import reserved_share
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.callbacks import CallbacksConfig
from azllm_lightning.data.datamodule import datamodule_of
from azllm_lightning.training.causal_lm import CausalLM

log = logging.getLogger(__name__)

OVER = 0.5
"""Below this severity a problem is over; if it comes back, it is reported again."""

AT_THE_END = ("undertrained", "too_small")
"""Problems of a run as a whole, judged at its end: over as soon as it is trained longer."""


class Diagnosis(Callback):
    """Asks `rules` about the history, and reports each problem once per episode.

    A finding is a warning of at most two lines in the console, and in TensorBoard a text and a
    scalar `diagnosis/<name>` at that step, whose value is the loss there, so that it is a point of
    the loss chart; a healthy run has neither. Checkpoints store what was reported, so
    that a resumed run reports what an uninterrupted one would; waits for data are measured within a
    session.

    With `early_stopping`, the run stops when it overfits, and when val_loss has not fallen for
    `early_stopping_patience` validations.
    """

    def __init__(self, history: History, config: CallbacksConfig) -> None:
        self.history = history
        self.config = config
        self._reported: dict[str, float] = {}  # name -> severity when it was reported
        self._waits_judged = 0  # number of steps of this session whose waits were judged

    @property
    def present(self) -> frozenset[str]:
        """The problems that were reported and are not over."""
        return frozenset(self._reported)

    @property
    def overfitting(self) -> bool:
        """Whether the run was reported to overfit and has not recovered."""
        return "overfitting" in self._reported

    def state_dict(self) -> dict[str, Any]:
        """What was reported and is not over."""
        return {"reported": dict(self._reported)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was written."""
        self._reported = dict(state_dict["reported"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Judge the steps up to the one that this batch completed, if it did."""
        assert isinstance(pl_module, CausalLM)
        report = pl_module.step_report
        if report is None:
            return
        for name in AT_THE_END:
            self._reported.pop(name, None)
        is_check_step = trainer.global_step % CHECK_EVERY == 0
        if report.finite:
            self._check_learning_rate(trainer, pl_module, is_check_step)
            if is_check_step:
                self._check_learning(trainer, pl_module)
        self._check_scale(trainer, pl_module)
        if is_check_step:
            self._check_waits(trainer)
            if pl_module.device.type == "cuda":
                self._check_memory(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the validations up to this one; stop here if the run is to stop early."""
        assert isinstance(pl_module, CausalLM)
        validations = self.history.validations
        best = best_of(validations)
        if best is None or trainer.sanity_checking or pl_module.is_within_branch:
            return
        severity = rules.overfitting(validations, self.config.health.overfit_rise)
        if best is validations[-1]:
            self._reported.pop("overfitting", None)  # only a new best ends the episode
        if severity >= 1 and not self.overfitting:
            self._reported["overfitting"] = severity
            finite = [row for row in validations if math.isfinite(row.val_loss)]
            text = overfitting_text(finite[-1], best, pl_module)
            self._report(trainer, "overfitting", text, validations[-1].val_loss)
        since_best = sum(row.step > best.step for row in validations)
        should_stop = severity >= 1 or since_best >= self.config.early_stopping_patience
        if self.config.early_stopping and should_stop:
            trainer.should_stop = True
            text = tr(
                "step {step:,}: stopping early (callbacks.early_stopping): "
                "val_loss has not improved on {best:.3f} since step {best_step:,}",
                step=trainer.global_step,
                best=best.val_loss,
                best_step=best.step,
            )
            self._report(trainer, "early_stop", text, validations[-1].val_loss)
        elif trainer.global_step >= trainer.max_steps and severity < 1 and not self.overfitting:
            self._check_underfitting(trainer, pl_module)

    def _check_underfitting(self, trainer: Trainer, module: CausalLM) -> None:
        validations = self.history.validations
        found = rules.underfitting(
            validations, _chance_loss(module), module.schedule_config.warmup_steps
        )
        if found is None:
            return
        name, middle = found
        if name == "undertrained":
            text = undertrained_text(validations[-1], middle)
        else:
            text = too_small_text(validations[-1], middle, module.optimizer_config.lr)
        self._reported[name] = 1.0
        self._report(trainer, name, text, validations[-1].val_loss)

    def _check_learning_rate(self, trainer: Trainer, module: CausalLM, is_check_step: bool) -> None:
        losses = list(self.history.losses)
        norms = list(self.history.norms)
        lowest = self.history.lowest
        chance = _chance_loss(module)
        severity = rules.loss_rise(losses, lowest, chance)
        if is_check_step:
            severity = max(severity, rules.norm_growth(losses, norms))
        if not (is_check_step or severity >= 1) or not self._should_report("lr_too_high", severity):
            return
        lr = module.optimizer_config.lr
        text = tr(
            "step {step:,}: the learning rate looks too high: train_loss {loss:.2f} (was "
            "{lowest:.2f}), grad_norm {norm:.2g} (was {usual:.2g}). Try optimizer.lr={lower:.1g} "
            "(now {lr:g})",
            step=trainer.global_step,
            loss=statistics.fmean(losses[-rules.SHORT :]),
            lowest=chance if lowest is None else min(chance, lowest.value),
            norm=statistics.median(norms[-rules.SHORT :]),
            usual=statistics.median(norms[: -rules.SHORT] or norms),
            lower=lr / 3,
            lr=lr,
        )
        self._report(trainer, "lr_too_high", text)

    def _check_learning(self, trainer: Trainer, module: CausalLM) -> None:
        losses = list(self.history.losses)
        chance = _chance_loss(module)
        warmed_up = trainer.global_step >= module.schedule_config.warmup_steps + LONG
        if len(losses) < LONG or not warmed_up:
            return
        severity = rules.deadness(losses, chance)
        if self._should_report("dead", severity):
            text = tr(
                "step {step:,}: the model is not learning: "
                "train_loss {loss:.3f}, chance is {chance:.3f}. "
                "Check the text, and optimizer.lr (now {lr:g}, usual 1e-4 to 1e-2)",
                step=trainer.global_step,
                loss=statistics.fmean(losses[-LONG:]),
                chance=chance,
                lr=module.optimizer_config.lr,
            )
            self._report(trainer, "dead", text)

    def _check_scale(self, trainer: Trainer, module: CausalLM) -> None:
        severity = rules.scale_fall(self.history.scales)
        if self._should_report("scale_falls", severity):
            text = tr(
                "step {step:,}: the fp16 loss scale fell to {scale:g} ({halvings:.0f} halvings). "
                "Try trainer.precision=32-true or bf16-mixed, or a lower optimizer.lr (now {lr:g})",
                step=trainer.global_step,
                scale=self.history.scales[-1],
                halvings=severity * rules.HALVINGS,
                lr=module.optimizer_config.lr,
            )
            self._report(trainer, "scale_falls", text)

    def _check_waits(self, trainer: Trainer) -> None:
        clock = self.history.clock
        # With log_every_steps=1 no wait is known, however many steps there are.
        first = max(self._waits_judged, len(clock.waits) - rules.WATCHED_AT_MOST)
        share = rules.waiting_share(clock.waits[first:], clock.step_seconds[first:])
        if share is None:
            return
        self._waits_judged = len(clock.waits)
        severity = share / rules.WAITING
        if self._should_report("data_bound", severity):
            workers = datamodule_of(trainer).config.num_workers
            text = tr(
                "step {step:,}: {share:.0%} of the time is spent waiting for data. "
                "Try data.num_workers={more} (now {workers}), or data.dir on a faster disk",
                step=trainer.global_step,
                share=share,
                more=max(2, 2 * workers),
                workers=workers,
            )
            self._report(trainer, "data_bound", text)

    def _check_memory(self, trainer: Trainer) -> None:
        """Windows moves what does not fit on the GPU to the host, without an error."""
        clock = self.history.clock
        micro = datamodule_of(trainer).micro_batch_size
        reserved = reserved_share()
        slowdown = rules.slowdown(clock.waits, clock.step_seconds)
        if self._should_report("memory_spills", 1.0 if reserved > 1 else 0.0):
            text = tr(
                "step {step:,}: this run reserves {reserved:.0%} of the GPU's memory, so Windows "
                "keeps some on the host, which is slow. Try a smaller trainer.micro_batch_size "
                "(now {micro})",
                step=trainer.global_step,
                reserved=reserved,
                micro=micro,
            )
            self._report(trainer, "memory_spills", text)
        elif reserved <= 1 and self._should_report("slow_steps", slowdown / rules.SLOWER):
            text = tr(
                "step {step:,}: a step takes {seconds:.2g} s, {ratio:.0f} times as long as at "
                "first. Does another program use the GPU? If not, try a smaller "
                "trainer.micro_batch_size "
                "(now {micro})",
                step=trainer.global_step,
                seconds=clock.step_seconds[-1],
                ratio=slowdown,
                micro=micro,
            )
            self._report(trainer, "slow_steps", text)

    def _should_report(self, name: str, severity: float) -> bool:
        """Whether to report a problem, which is then remembered as reported.

        It must be present, and not have been reported since it began.
        """
        if severity < OVER:
            self._reported.pop(name, None)
        if severity < 1 or name in self._reported:
            return False
        self._reported[name] = severity
        return True

    def _report(self, trainer: Trainer, name: str, text: str, loss: float | None = None) -> None:
        """A warning in the console, and a point of the loss chart at this step in TensorBoard.

        `loss` is val_loss where that shows the problem; by default, train_loss.
        """
        if trainer.is_global_zero:
            log.warning(paragraph(text))
        for writer in writers(trainer):
            writer.add_text(f"diagnosis/{name}", text, trainer.global_step)
        if loss is None or not math.isfinite(loss):
            losses = list(self.history.losses)[-rules.SHORT :]
            loss = statistics.fmean(losses) if losses else 0.0
        for logger in trainer.loggers:
            logger.log_metrics({f"diagnosis/{name}": loss}, step=trainer.global_step)
            logger.save()


def overfitting_text(last: Validation, best: Validation, module: CausalLM) -> str:
    """The message that val_loss rises, and what to change next time."""
    remedy = rules.against_overfitting(
        module.optimizer_config, module.model_config.dropout, module.teachers is not None
    )
    return tr(
        "step {step:,}: overfitting. val_loss {val:.3f} (best {best:.3f} at step {best_step:,}), "
        "while train_loss falls. Try {remedy}",
        step=last.step,
        val=last.val_loss,
        best=best.val_loss,
        best_step=best.step,
        remedy=remedy,
    )


def undertrained_text(last: Validation, middle: Validation) -> str:
    """The message that the run ended while it was still learning fast."""
    return tr(
        "step {step:,}: undertrained. val_loss is still falling fast ({val:.3f}; {middle:.3f} at "
        "step {middle_step:,}). Try a new run with trainer.max_steps={longer}",
        step=last.step,
        val=last.val_loss,
        middle=middle.val_loss,
        middle_step=middle.step,
        longer=2 * last.step,
    )


def too_small_text(last: Validation, middle: Validation, lr: float) -> str:
    """The message that the losses stay high."""
    assert last.train_loss is not None
    return tr(
        "step {step:,}: underfitting. val_loss {val:.3f} and train_loss {train:.3f} are flat since "
        "step {middle_step:,}. Try a larger model or a higher optimizer.lr (now {lr:g})",
        step=last.step,
        val=last.val_loss,
        train=last.train_loss,
        middle_step=middle.step,
        lr=lr,
    )


def _chance_loss(module: CausalLM) -> float:
    """The loss of a uniform guess, ln V, in nats."""
    return math.log(module.model_config.vocab_size)
