"""Stage 4: report the outcome of the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from azllm_lightning.callbacks.gap import Point, gap_text
from azllm_lightning.callbacks.panels import end_panel, longer_command
from azllm_lightning.callbacks.rules import against_overfitting, more_steps_help
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.formats.load import read_checkpoint, stored_config
from azllm_lightning.runs.folder import Run, relative_to_current
from azllm_lightning.runs.listing import read_summary
from azllm_lightning.session.build import Parts
from azllm_lightning.session.resolve import Resolved, Source
from azllm_lightning.training.schedule import twice_as_long

log = logging.getLogger("azllm_lightning")


LONG_AGO = 0.8
"""Share of a finished run before which its best step shows that more steps do not help."""


SESSION = frozenset(("run_name", "ckpt_path", "init_from", "logs_dir", "lang"))
"""Settings that change nothing about how a run goes on."""


def finished_run(resolved: Resolved, typed: Sequence[str]) -> Path | None:
    """The folder of a run that has reported its end and has no step left, or that early stopping
    has ended and would end again after what is `typed`, or that was stopped and now has a last step
    that it has passed; else None.

    Its folder then stays as it is: opening it would replace what TensorBoard and summary.json say
    about the sessions that trained it.
    """
    source = resolved.source
    if source is None:
        return None
    folder = source.path.resolve().parent.parent
    if source.step < resolved.config.trainer.max_steps:
        is_finished = _has_reported(source) and _stops_again(resolved, typed)
    else:
        is_finished = _has_reported(source) or _own_last_step(source) is not None
    return relative_to_current(folder) if is_finished else None


def _has_reported(source: Source) -> bool:
    """Whether a session has ended at the checkpoint, by its last step or early stopping."""
    summary = read_summary(source.path.resolve().parent.parent)
    return (summary.get("status"), summary.get("steps")) == ("done", source.step)


def _own_last_step(source: Source) -> int | None:
    """The last step of the run as its checkpoint has it, where that is yet to come; None if it has
    been reached, and for a file in no run folder.
    """
    if source.path.resolve().parent.name != "checkpoints":
        return None
    last_step = int(stored_config(read_checkpoint(source.path))["trainer"]["max_steps"])
    return last_step if last_step > source.step else None


def _stops_again(resolved: Resolved, typed: Sequence[str]) -> bool:
    """Whether early stopping is still on, and nothing is `typed` that the run did not have."""
    assert resolved.source is not None
    if not resolved.config.callbacks.early_stopping:
        return False
    stored = stored_config(read_checkpoint(resolved.source.path))
    new = [text for text in typed if text not in stored.get("overrides", [])]
    return typed_keys(new) <= SESSION


def warn_that_it_is_finished(resolved: Resolved, folder: Path) -> None:
    """Say why nothing is trained in `folder`, which `finished_run` has found."""
    assert resolved.source is not None
    step = resolved.source.step
    last_step = resolved.config.trainer.max_steps
    own_last_step = _own_last_step(resolved.source)
    if step >= last_step and own_last_step is not None and not _has_reported(resolved.source):
        message = tr(
            "trainer.max_steps={last} trains nothing: this run is already at step {step:,}. "
            "Without that setting it goes on to step {own_last:,}",
            last=last_step,
            step=step,
            own_last=own_last_step,
        )
        log.warning(paragraph(message))
        return
    if step >= last_step:
        warn_that_it_is_done(step, read_summary(folder).get("best_step"))
        return
    message = tr(
        "early stopping has ended this run at step {step:,} of {last:,}: "
        "callbacks.early_stopping=false continues it",
        step=step,
        last=last_step,
    )
    log.warning(paragraph(message))


def warn_that_it_is_done(step: int, best_step: int | None = None) -> None:
    """Say how a run that is at its last step can be trained longer, or that this would not help."""
    if best_step is not None and best_step < LONG_AGO * step:
        message = tr(
            "this run is already at its last step, {step:,}, and its best is step {best:,}: more "
            "steps would not help",
            step=step,
            best=best_step,
        )
        log.warning(paragraph(message))
        return
    message = tr(
        "this run is already at its last step, {step:,}: to train it longer, set "
        "trainer.max_steps and schedule.total_steps to the new length",
        step=step,
    )
    log.warning(paragraph(message))


def report(parts: Parts, run: Run, config: RunConfig) -> None:
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
    validations = parts.history.validations
    is_complete = parts.io.diverged is None and summary.steps == parts.trainer.max_steps
    longer = None
    if is_complete and more_steps_help(validations, parts.diagnosis.present):
        steps = twice_as_long(config.schedule.branches, summary.steps)
        longer = longer_command(run, steps, config.overrides)
    sample = parts.samples.latest if parts.samples is not None else ""
    last = parts.module.last_validation
    better = better_command(parts, config)
    gap = "" if parts.diagnosis.overfitting else _gap(parts)
    log.info(end_panel(run, validations, last, summary, longer, better, sample, gap))


def _gap(parts: Parts) -> str:
    """What the gap between the two losses means, in a sentence; "" where it is small."""
    points = [
        Point(row.step, row.val_loss, math.nan if row.gap is None else row.gap)
        for row in parts.history.validations
    ]
    windows = parts.data.train_windows
    return gap_text(
        points,
        windows.windows_per_reading / parts.data.global_batch_size,
        is_student=parts.module.teachers is not None,
        is_mixed=windows.mix is not None,
    )


def better_command(parts: Parts, config: RunConfig) -> str | None:
    """The command of a new run without the problem that this one ended with; None if healthy."""
    settings = remedy(
        parts.diagnosis.present,
        config.optimizer,
        config.shape.dropout,
        bool(config.teachers),
        parts.io.diverged is not None,
    )
    if not settings:
        return None
    changed = {setting.partition("=")[0] for setting in settings}
    changed |= {"ckpt_path", "run_name"}
    kept = [text for text in config.overrides if text.partition("=")[0].lstrip("+") not in changed]
    return command("train", [*kept, f"run_name={config.run_name}", *settings])


def remedy(
    present: Collection[str],
    optimizer: OptimizerConfig,
    dropout: float,
    is_student: bool,
    has_diverged: bool,
) -> list[str]:
    """The settings to change for a problem that `Diagnosis` reported, which is not over."""
    if has_diverged or "lr_too_high" in present:
        return [f"optimizer.lr={optimizer.lr / 3:.1g}"]
    if "overfitting" in present:
        return against_overfitting(optimizer, dropout, is_student).split()
    if "too_small" in present:
        return [f"optimizer.lr={optimizer.lr * 3:.1g}"]
    return []
