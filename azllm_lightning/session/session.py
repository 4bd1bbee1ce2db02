"""A session of a run: from its config to the end of training, or to a stop that can be resumed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from azllm_lightning.callbacks.console import TqdmHandler
from azllm_lightning.callbacks.panels import start_panel
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.attempts import attempts
from azllm_lightning.session.open import opened
from azllm_lightning.session.report import finished_run, report, warn_that_it_is_done
from azllm_lightning.session.resolve import Resolved, joined_run, resolve
from azllm_lightning.training.hardware import determinism_restored
from azllm_lightning.training.schedule import lr_factor
from azllm_lightning.training.stopping import Stopped, StopRequest

log = logging.getLogger("azllm_lightning")


def run_session(config: RunConfig) -> Path:
    """Train or resume the run of `config`, and return its folder; see `azllm_lightning.train`."""
    _set_up_logging()
    use_language(config.lang)
    start_again = command("train", config.overrides)
    resume = None
    try:
        interruptible = joined_run() is None
        with determinism_restored(), StopRequest(interruptible) as stop:
            resolved = resolve(config, stop)
            if (folder := finished_run(resolved)) is not None:
                assert resolved.source is not None
                warn_that_it_is_done(resolved.source.step)
                return folder
            with opened(resolved) as (run, config):
                _announce(resolved, config, run)
                try:
                    parts = attempts(resolved, config, run, stop)
                    report(parts, run)
                finally:
                    if step_files(run.checkpoints):
                        resume = command("train", [*run.address, "ckpt_path=last"])
                return run.folder
    except Stopped:
        if resume is None:  # nothing was saved yet
            message = tr("start again: {command}", command=start_again)
            raise Resumable(start_again, message) from None
        raise Resumable(resume) from None


def _announce(resolved: Resolved, config: RunConfig, run: Run) -> None:
    log.info(start_panel(config, run, resolved.data, resolved.device))
    last_step = config.trainer.max_steps
    source = resolved.source
    if source is not None and source.step >= last_step:
        warn_that_it_is_done(source.step)
        return
    if lr_factor(last_step - 1, config.schedule) == 0:
        message = tr(
            "from step {step:,} on the learning rate is 0, so nothing is learned: add "
            "schedule.total_steps={max_steps}",
            step=config.schedule.total_steps,
            max_steps=last_step,
        )
        log.warning(paragraph(message))


def _set_up_logging() -> None:
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    log.setLevel(logging.INFO if is_first else logging.WARNING)  # one process reports progress
    log.propagate = False
    if not any(isinstance(handler, TqdmHandler) for handler in log.handlers):
        log.addHandler(TqdmHandler())
    for noisy in (
        "lightning.pytorch",
        "lightning.fabric",
    ):  # the start panel has the same information
        logging.getLogger(noisy).setLevel(logging.WARNING)
