"""What a person sees in the terminal: one bar, a line at each validation; in English or Azerbaijani."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from azllm_lightning.callbacks.panels import Validation, duration, ppl, prose, validation_line
from azllm_lightning.callbacks.remaining import RemainingTime
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.callbacks.words import Words
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.metrics import perplexity

log = logging.getLogger("azllm_lightning.console")

LINE_EVERY_SECONDS = 30.0
"""Where no terminal is, a plain line this often takes the place of the bar."""

SECONDS_TO_JUDGE, WORTH_TELLING = 10.0, 30.0
"""After how many seconds of steps the expected time is told, and from how many that are left."""

PLAIN = str.maketrans("↓↑", "-+")
"""What stands for the arrows where they cannot be written."""


class Console(Callback):
    """A bar over optimizer steps with loss, val_loss, perplexity, tokens/s and the time left; a line a validation.

    Its state is the table of validations, and what the last one took, so that a resumed run can tell the time left.
    """

    def __init__(self, words: Words, throughput: Throughput) -> None:
        self.words, self.remaining = words, RemainingTime(throughput)
        self.validations: list[Validation] = []
        self._bar: tqdm[Any] | None = None
        self._line_at = 0.0
        self._time_told = False
        self._postfix = ""

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, and seconds of the last."""
        rows = [list(row) for row in self.validations]
        return {"validations": rows, "validation_seconds": self.remaining.validation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the table of earlier sessions."""
        self.validations = [Validation(*row) for row in state_dict.get("validations", [])]
        self.remaining.validation_seconds = state_dict.get("validation_seconds", 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
                mininterval=0.5,
                disable=_no_bar(),
                **_size(),
            )
            self._line_at = time.monotonic()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """A validation is over now, if there was one."""
        self.remaining.go_on()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Move the bar by a step, or print a line now and then where there is none."""
        assert isinstance(pl_module, CausalLM)
        report, bar, words = pl_module.step_report, self._bar, self.words
        if report is None or bar is None:
            return
        line_is_due = time.monotonic() - self._line_at >= LINE_EVERY_SECONDS
        if bar.disable and self._time_told and not line_is_due:
            return
        left = self.remaining.seconds(trainer)
        self._tell_time(left)
        rate = self.remaining.throughput.rate
        ends = [] if rate is None else [words("rate", rate=rate)]
        ends += [] if left is None else [words("left", time=tqdm.format_interval(left))]
        if not bar.disable:
            losses = [words("bar", loss=report.loss), f"ppl {ppl(perplexity(report.loss))}"]
            if self.validations:
                losses.insert(1, f"val {self.validations[-1].val_loss:.3f}")
            bar.set_postfix_str(" ".join([*losses, *ends]), refresh=False)
            bar.update(1)
        elif line_is_due:
            self._line_at = time.monotonic()
            facts = {
                "step": trainer.global_step,
                "steps": trainer.max_steps,
                "loss": report.loss,
                "lr": report.lr,
            }
            log.info("  ".join([words("progress", **facts), *ends]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the bar stands still."""
        self.remaining.pause()
        if self._bar is not None and not self._bar.disable:
            self._postfix = str(self._bar.postfix or "")
            self._bar.set_postfix_str(self.words("validating"))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Measure."""
        self.remaining.batch_over()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line: the step, its losses, and whether they are the best so far."""
        assert isinstance(pl_module, CausalLM)
        values = pl_module.last_validation
        gap = values.get("generalization_gap")
        train_loss = None if gap is None else values["val_loss"] - gap
        row = Validation(
            trainer.global_step,
            train_loss,
            values["val_loss"],
            values["val_ppl"],
            values["val_bpb"],
        )
        self.validations.append(row)
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix, refresh=False)
        if trainer.is_global_zero:
            log.info(validation_line(self.words, self.validations, trainer.max_steps))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar, without figures that are over."""
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that what follows starts on a line of its own."""
        self._close()

    def _tell_time(self, left: float | None) -> None:
        """Once a session, when enough was measured: how long it will take, and when it ends."""
        if (
            self._time_told
            or left is None
            or sum(self.remaining.throughput.step_seconds[1:]) < SECONDS_TO_JUDGE
        ):
            return
        self._time_told = True
        if left >= WORTH_TELLING:
            now = datetime.now()
            end = now + timedelta(seconds=left)
            clock = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"
            about = duration(self.words, left)
            log.info(
                "\n".join(prose(self.words("time"), self.words("ends", time=about, clock=clock)))
            )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TqdmHandler(logging.Handler):
    """Prints log lines above an open bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write to standard output what is said, to standard error what is warned of; never fail for a letter."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        text, encoding = self.format(record), getattr(stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:  # a Windows console of an old code page
            text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        tqdm.write(text, file=stream)
        sys.stdout.flush()


def _size() -> dict[str, Any]:
    """The terminal's size; one that tells none, as a notebook's `!command` may, is taken for 80 x 24."""
    with contextlib.suppress(OSError, ValueError):  # no terminal
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 79, "nrows": 24}
    return {"dynamic_ncols": True}


def _no_bar() -> bool | None:
    """Whether a bar would do harm; None: unless standard error is a terminal."""
    if (
        os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    ):  # nobody looks, and each of its moves is kept in a log
        return True
    return False if "ipykernel" in sys.modules else None
