"""Stage 4: report the outcome of the run."""

from __future__ import annotations

import logging

from azllm_lightning.callbacks.panels import end_panel
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.build import Parts

log = logging.getLogger("azllm_lightning")


def report(parts: Parts, run: Run) -> None:
    """Write summary.json, and show the end panel with what to do next.

    Raises OSError if the last checkpoint could not be saved.
    """
    summary = parts.summary.write(parts.trainer, parts.module, "done")
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
