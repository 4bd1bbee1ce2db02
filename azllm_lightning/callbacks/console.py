"""What the terminal shows during a run: a progress bar, and a line at each validation."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from datetime import datetime
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.panels import branch_texts, sample_line, validation_line
from azllm_lightning.callbacks.samples import Samples
from azllm_lightning.callbacks.text import duration, labeled, perplexity_text
from azllm_lightning.cli.colors import YELLOW, has_colors, highlight, paint
from azllm_lightning.cli.durations import local_time
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.streams import NAMES
from azllm_lightning.training.causal_lm import CausalLM, StepReport
from azllm_lightning.training.metrics import perplexity

log = logging.getLogger("azllm_lightning.console")

LINE_EVERY_SECONDS = 30.0
"""Interval of the plain lines that replace the bar without a terminal."""

SECONDS_TO_PREDICT = 10.0
"""Seconds of measured steps after which the expected end is announced, once per session."""

WORTH_ANNOUNCING = 30.0
"""Seconds that must be left for an announcement."""

PLAIN = str.maketrans("↓↑▁▂▃▄▅▆▇█…", "-+_.-:=+*#~")
"""Replacements for arrows and curves where they cannot be written."""

SHOWN = {"already_shown": True}
"""`extra` of a log line that only train.log lacks: the terminal has it."""


class Console(Callback):
    """A bar over optimizer steps with losses, speed and the time left; a line per validation.

    The line under it has the curve of val_loss and the latest text of `samples`.
    """

    def __init__(
        self,
        history: History,
        samples: Samples | None = None,
        compiles: bool = False,
        deadline: float | None = None,
    ) -> None:
        self.history = history
        self.samples = samples
        self._first_work = tr("compiling") if compiles else tr("first step")
        self._compiles = compiles
        self._deadline = deadline
        self._bar: tqdm[Any] | None = None
        self._line_at = 0.0
        self._end_announced = False
        self._postfix = ""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar before the validation at step 0, which may compile for a minute."""
        self._open(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the current step, if it is not."""
        self._open(trainer)
        if self._bar is not None:
            self._bar.set_postfix_str(self._first_work)
            self._line_at = time.monotonic()

    def _open(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self._bar is None:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
                mininterval=0.5,
                disable=_no_bar(),
                **_size(),
            )
            if self._bar.disable and self._compiles:
                log.info(
                    tr(
                        "compiling the model: the first step takes up to a minute longer, and less "
                        "in a later run of the same size"
                    )
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Advance the bar by a step; without a terminal, print a line now and then. After the first
        step of a branch, say that it went back to an earlier state, as the losses will show.
        """
        assert isinstance(pl_module, CausalLM)
        report = pl_module.step_report
        bar = self._bar
        if report is None or bar is None:
            return
        if pl_module.began_branch(steps_ago=1):
            assert pl_module.branching is not None
            before = trainer.global_step - 1
            texts = branch_texts(pl_module.branching, before)
            log.info(f"{tr('step {step:,}', step=before)}  " + "\n  ".join(texts))
        line_is_due = time.monotonic() - self._line_at >= LINE_EVERY_SECONDS
        if bar.disable and self._end_announced and not line_is_due:
            return
        left = self.remaining_seconds(trainer)
        if left is not None:
            self._announce_end(left)
        if not bar.disable:
            bar.set_postfix_str(self._bar_text(report, left), refresh=False)
            bar.update(1)
        elif line_is_due:
            self._line_at = time.monotonic()
            line = tr(
                "step {step}/{steps}  train_loss {loss:.4f}  lr {lr:.2e}",
                step=trainer.global_step,
                steps=trainer.max_steps,
                loss=report.loss,
                lr=report.lr,
            )
            log.info("  ".join([line, *self._speed(left)]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show on the bar that a validation is running."""
        if self._bar is not None and not self._bar.disable:
            self._postfix = str(self._bar.postfix or "")
            is_first = not self.history.clock.step_seconds and self._compiles
            self._bar.set_postfix_str(self._first_work if is_first else tr("validating"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the validation in one line, and under it what the model writes now."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix, refresh=False)
        if trainer.is_global_zero:
            text = self.samples.latest if self.samples is not None else ""
            lines = [validation_line(self.history.validations, trainer.max_steps)]
            lines += filter(None, [sample_line(self.history.validations, text)])
            log.info("\n".join(lines))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar, without figures that are no longer true."""
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the next message starts on a line of its own."""
        self._close()

    def remaining_seconds(self, trainer: Trainer) -> float | None:
        """Seconds from the end of this step to the end of the run; None if not yet known."""
        every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        return self.history.clock.remaining(trainer.global_step, trainer.max_steps, every)

    def _bar_text(self, report: StepReport, left: float | None) -> str:
        losses = [f"loss {report.loss:.3f}"]
        if self.history.validations:
            losses.append(f"val {self.history.validations[-1].val_loss:.3f}")
        losses.append(f"ppl {perplexity_text(perplexity(report.loss))}")
        return " ".join([*losses, *self._speed(left)])

    def _speed(self, left: float | None) -> list[str]:
        rate = self.history.tokens_per_sec
        parts = [] if rate is None else [tr("{rate:,.0f} tokens/s", rate=rate)]
        if left is not None:
            parts.append(tr("{time} left", time=tqdm.format_interval(left)))
        return parts

    def _announce_end(self, left: float) -> None:
        """Once per session, after enough steps: how long the run will take, and when it ends."""
        if self._end_announced or sum(self.history.clock.step_seconds[1:]) < SECONDS_TO_PREDICT:
            return
        self._end_announced = True
        if left < WORTH_ANNOUNCING:
            return
        end = local_time(time.time() + left)
        if self._deadline is not None and time.time() + left > self._deadline:
            clock = datetime.fromtimestamp(self._deadline)
            text = tr(
                "about {time}, but trainer.deadline stops it at {clock}",
                time=duration(left),
                clock=f"{clock:%Y-%m-%d %H:%M}",
            )
        elif end is None:
            text = tr("about {time}", time=duration(left))
        elif end.date() == datetime.now().date():
            text = tr(
                "about {time}, ends around {clock}", time=duration(left), clock=f"{end:%H:%M}"
            )
        else:
            date = f"{end:%Y-%m-%d %H:%M}"
            text = tr("about {time}, ends around {date}", time=duration(left), date=date)
        log.info(labeled(tr("time"), text))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TqdmHandler(logging.Handler):
    """Prints log lines above an open bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write warnings to standard error, the rest to standard output, in their encodings."""
        if getattr(record, "already_shown", False):
            return
        is_warning = record.levelno >= logging.WARNING
        stream = sys.stderr if is_warning else sys.stdout
        text = self.format(record)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:  # an old code page, or a name that is not UTF-8
            if encoding.lower().replace("-", "") != "utf8":
                text = text.translate(PLAIN)
            text = text.encode(encoding, NAMES).decode(encoding)
        if has_colors(stream):
            text = paint(text, YELLOW) if is_warning else highlight(text)
        # The terminal may be gone; training goes on, and train.log has the line too.
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=stream)
            sys.stdout.flush()


def _size() -> dict[str, Any]:
    """tqdm's size settings; 80 x 24 where a terminal reports none, as in a notebook."""
    with contextlib.suppress(OSError, ValueError):  # no terminal
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 79, "nrows": 24}
    return {"dynamic_ncols": True}


def _no_bar() -> bool | None:
    """tqdm's `disable`: True for no bar, None for a bar if standard error is a terminal."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return True  # nobody watches, and the log would keep every refresh of the bar
    return False if "ipykernel" in sys.modules else None
