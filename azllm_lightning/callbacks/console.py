"""What a person sees in the terminal: one bar, a line at each validation; in English or Azerbaijani."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from azllm_lightning.settings import one_of
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.metrics import perplexity

log = logging.getLogger("azllm_lightning.console")

WORDS = {
    "en": {
        "step": "step",
        "train_loss": "train_loss",
        "val_loss": "val_loss",
        "ppl": "ppl",
        "lr": "lr",
        "best": "best",
        "tokens": "tokens/s",
        "loss": "loss",
    },
    "az": {
        "step": "addım",
        "train_loss": "təlim itkisi",
        "val_loss": "validasiya itkisi",
        "ppl": "perpleksiya",
        "lr": "öyrənmə sürəti",
        "best": "ən yaxşı",
        "tokens": "token/s",
        "loss": "itki",
    },
}
LINE_EVERY_SECONDS = 30.0
"""Where no terminal is, a plain line this often takes the place of the bar."""


class Console(Callback):
    """A tqdm bar over optimizer steps with loss, val_loss, perplexity, tokens/s and the time left."""

    def __init__(self, lang: str = "en") -> None:
        one_of("lang", lang, WORDS)
        self.words = WORDS[lang]
        self._bar: tqdm[Any] | None = None
        self._best = math.inf
        self._val_loss: float | None = None
        self._line_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The best val_loss so far, for the mark behind it."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best of earlier sessions."""
        self._best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
                dynamic_ncols=True,
                mininterval=0.5,
                smoothing=0.05,
                disable=None if not _in_notebook() else False,  # None: off unless stderr is a terminal
            )
            self._line_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Move the bar by a step, or print a line now and then where there is none."""
        assert isinstance(pl_module, CausalLM)
        report, bar, words = pl_module.step_report, self._bar, self.words
        if report is None or bar is None:
            return
        measured = trainer.callback_metrics.get("tokens_per_sec")
        rate = "" if measured is None else f"{float(measured):,.0f}"
        ppl = f"{perplexity(report.loss):.1f}"
        if bar.disable:
            if time.monotonic() - self._line_at >= LINE_EVERY_SECONDS:
                self._line_at = time.monotonic()
                log.info(
                    f"{words['step']} {trainer.global_step}/{trainer.max_steps}  "
                    f"{words['train_loss']} {report.loss:.4f}  {words['ppl']} {ppl}  {words['lr']} {report.lr:.2e}"
                    + (f"  {rate} {words['tokens']}" if rate else "")
                )
            return
        parts = [f"{words['loss']} {report.loss:.3f}"]  # short: the bar must fit 80 columns
        parts += [] if self._val_loss is None else [f"val {self._val_loss:.3f}"]
        parts += [f"ppl {ppl}", *([f"{rate} tok/s"] if rate else [])]
        bar.set_postfix_str(" ".join(parts), refresh=False)
        bar.update(1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line: the step, its losses, and whether they are the best so far."""
        assert isinstance(pl_module, CausalLM)
        values, words = pl_module.last_validation, self.words
        self._val_loss = values["val_loss"]
        best = values["val_loss"] < self._best
        if not trainer.sanity_checking:
            self._best = min(self._best, values["val_loss"])
        if trainer.is_global_zero:
            log.info(
                f"{words['step']} {trainer.global_step}  {words['val_loss']} {values['val_loss']:.4f}  "
                f"{words['ppl']} {values['val_ppl']:.2f}  bpb {values['val_bpb']:.4f}"
                + (f"  {words['best']}" if best and not trainer.sanity_checking else "")
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that what follows starts on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TqdmHandler(logging.Handler):
    """Prints log lines above an open bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write to standard output what is said, to standard error what is warned of."""
        tqdm.write(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)
        sys.stdout.flush()


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
