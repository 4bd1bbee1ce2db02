"""report.html of a run that is training: written again at every validation and at the end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.health import RollBack
from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.panels import branch_texts
from azllm_lightning.callbacks.tensorboard import writers
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.memory import is_out_of_memory
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.report.events import RunEvents
from azllm_lightning.report.marks import BRANCH, RESUME, ROLLBACK
from azllm_lightning.report.page import page
from azllm_lightning.report.record import read_record
from azllm_lightning.runs.atomic import write_text
from azllm_lightning.runs.paths import REPORT
from azllm_lightning.training.causal_lm import CausalLM

log = logging.getLogger(__name__)

SHARE = 10.0
"""The page is not written again before this many times what it took has passed."""

USUAL_SECONDS = 0.1
"""What it is assumed to take before the first time."""


class LivePage(Callback):
    """Writes the page of the run in `folder`, and logs where sessions start.

    It comes after the callbacks that log what it shows. It reads only what is new in the event
    files. Where validations follow each other within a second, it skips some.
    A page that cannot be written is one warning.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder = folder
        self.history = history
        self.rolled_back: str | None = None
        """Why this fit starts from an earlier checkpoint of the same session."""
        self._events = RunEvents(folder)
        self._failed = False
        self._written_at = time.monotonic()
        self._seconds = USUAL_SECONDS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log as a text, at the step of this start, that the run was resumed or rolled back."""
        start = self.history.starts_from
        tag, text = (RESUME, start) if self.rolled_back is None else (ROLLBACK, self.rolled_back)
        if text is None:
            return
        for writer in writers(trainer):
            writer.add_text(tag, text, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """After the first step of a branch, log as a text where it began."""
        assert isinstance(pl_module, CausalLM)
        if pl_module.step_report is None or not pl_module.began_branch(steps_ago=1):
            return
        assert pl_module.branching is not None
        text = "; ".join(branch_texts(pl_module.branching, trainer.global_step - 1))
        for writer in writers(trainer):
            writer.add_text(BRANCH, text, trainer.global_step - 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page with this validation on it."""
        for writer in writers(trainer):
            if time.monotonic() - self._written_at >= SHARE * self._seconds:
                writer.flush()
                self._write(is_training=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the page: the run no longer trains, unless another fit of the session follows.

        It does after a rollback and with a smaller micro-batch; `session.attempts`, which may find
        that it cannot, then writes the last page.
        """
        is_training = isinstance(exception, RollBack) or is_out_of_memory(exception)
        for writer in writers(trainer):
            writer.flush()
            self._write(is_training)

    def write_last(self, trainer: Trainer) -> None:
        """Write the page after the end of training, with the status in summary.json if there is
        one.
        """
        if trainer.is_global_zero:
            self._write(is_training=False)

    def _write(self, is_training: bool) -> None:
        """Write the page if there is anything to show, with a warning the first time it fails."""
        started = time.monotonic()
        try:
            record = read_record(self.folder, self._events, is_training)
            if record.events.scalars:
                write_text(self.folder / REPORT, page(record))
        except Exception as error:  # a picture of the run must never end it
            if not self._failed:
                self._failed = True
                reason = system_reason(error)
                message = tr(
                    "{file} could not be written: {reason}. Training continues without it",
                    file=self.folder / REPORT,
                    reason=reason,
                )
                log.warning(paragraph(message))
        self._written_at = time.monotonic()
        self._seconds = self._written_at - started
