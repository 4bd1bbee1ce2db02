"""Stage 4: what came out of the run."""

from __future__ import annotations

import logging
import shlex

from azllm_lightning.callbacks.panels import end_panel
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import command
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.build import Parts

log = logging.getLogger("azllm_lightning")


def report(parts: Parts, run: Run) -> None:
    """Write summary.json, and show the end panel with what to do next.

    Raises OSError if the last checkpoint could not be saved.
    """
    summary = parts.summary.write(parts.trainer, parts.module, "done")
    if parts.io.failed:
        message = tr(
            "training is done, but its last checkpoint was not saved: {reason}",
            reason=parts.io.failed,
        )
        raise OSError(message)
    twice = 2 * summary["steps"]  # the rate is at its end: its schedule is stretched as well
    longer = ["ckpt_path=last", f"trainer.max_steps={twice}", f"schedule.total_steps={twice}"]
    commands = {
        "watch": f"tensorboard --logdir {shlex.quote(str(run.logs))}",
        "talk": command("generate", run.address),
        "export": command("export", [*run.address, f"out={run.name}_hf"]),
        "longer": command("train", [*run.address, *longer]),
    }
    console = parts.console
    last = parts.module.last_validation
    log.info(end_panel(console.words, run, console.validations, last, summary, commands))
