"""Stage 4: report the outcome of the run."""

from __future__ import annotations

import logging
from pathlib import Path

from azllm_lightning.callbacks.panels import end_panel
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr
from azllm_lightning.runs.folder import Run, relative_to_current
from azllm_lightning.runs.listing import read_summary
from azllm_lightning.session.build import Parts
from azllm_lightning.session.resolve import Resolved

log = logging.getLogger("azllm_lightning")


def finished_run(resolved: Resolved) -> Path | None:
    """The folder of a run that has reported its end and has no step left; else None.

    Its folder then stays as it is: opening it would replace what TensorBoard and summary.json say
    about the sessions that trained it.
    """
    source = resolved.source
    if source is None or source.step < resolved.config.trainer.max_steps:
        return None
    folder = source.path.resolve().parent.parent
    summary = read_summary(folder)
    if (summary.get("status"), summary.get("steps")) != ("done", source.step):
        return None
    return relative_to_current(folder)


def warn_that_it_is_done(step: int) -> None:
    """Say how a run that is at its last step can be trained longer."""
    message = tr(
        "this run is already at its last step, {step:,}: to train it longer, set "
        "trainer.max_steps and schedule.total_steps to the new length",
        step=step,
    )
    log.warning(paragraph(message))


def report(parts: Parts, run: Run) -> None:
    """Write summary.json, and show the end panel with what to do next.

    Raises OSError if the last checkpoint could not be saved.
    """
    summary = parts.summary.write(parts.trainer, parts.module, "done")
    parts.page.write_last(parts.trainer)
    if parts.io.diverged is not None:
        message = tr(
            "training has diverged: the last weights are not finite. Start again with a lower "
            "optimizer.lr, or resume from an earlier checkpoint, if there is one"
        )
        log.warning(paragraph(message))
    elif parts.io.failed:
        message = tr(
            "training is done, but its last checkpoint was not saved: {reason}",
            reason=parts.io.failed,
        )
        raise OSError(message)
    # More steps do not help a run that overfits or has stopped improving.
    extendable = (
        parts.io.diverged is None
        and not parts.diagnosis.overfitting
        and summary.steps == parts.trainer.max_steps
    )
    last = parts.module.last_validation
    log.info(end_panel(run, parts.history.validations, last, summary, extendable))
