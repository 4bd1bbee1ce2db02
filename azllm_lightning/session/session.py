"""A session of a run: from its config to the end of training, or to a stop that can be resumed."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from azllm_lightning.callbacks.console import SHOWN, TqdmHandler
from azllm_lightning.callbacks.panels import start_panel
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.entrance import EXIT_RESUMABLE, EXIT_USAGE, Resumable
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.planning import far_off, rule
from azllm_lightning.planning.models import models_with, named_models
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.attempts import attempts
from azllm_lightning.session.build import check_optional
from azllm_lightning.session.loggers import close_trackers
from azllm_lightning.session.open import LIGHTNING, EarlyLines, opened
from azllm_lightning.session.outcome import PeerLost, SmallerBatch, resume_command
from azllm_lightning.session.report import (
    finished_run,
    report,
    warn_that_it_is_done,
    warn_that_it_is_finished,
)
from azllm_lightning.session.resolve import (
    Located,
    Resolved,
    check_launcher,
    locate,
    num_processes,
    resolve,
    session_start,
)
from azllm_lightning.session.supervisor import supervise
from azllm_lightning.training.batch import free_memory
from azllm_lightning.training.hardware import determinism_restored
from azllm_lightning.training.processes import (
    Elsewhere,
    Notes,
    Processes,
    attempt_number,
    connect,
    first,
    has_lost_peer,
    joined,
    launched,
    together,
    wait_for_first,
)
from azllm_lightning.training.schedule import branching, lr_factor
from azllm_lightning.training.stopping import Stopped, StoppedAtOnce, StopRequest

log = logging.getLogger("azllm_lightning")


def run_session(config: RunConfig) -> Path:
    """Train or resume the run of `config`, and return its folder; see `azllm_lightning.train`.

    With several devices this starts a process for each and waits for them. A process that torchrun
    or srun started is one of the run's itself; then one process reports for all.
    """
    place = launched()
    if place is not None and place.size > 1:
        try:
            return run_as_one_of(config, place)
        except (Exception, Elsewhere) as error:
            if threading.current_thread() is threading.main_thread():
                # The launcher stops the others as soon as one has ended: not before its last words.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _end_quietly(error, place)
            raise
    _set_up_logging(Processes())
    use_language(config.lang)
    if place is not None:
        connect()
    with determinism_restored(), StopRequest() as stop:
        try:
            stop.begin()
            located = locate(config)
            count = num_processes(located.config) if place is None else 1
            if count == 1:
                return _run(config, Processes(), stop, located)
        except Stopped:
            raise _start_again(config) from None
        except StoppedAtOnce:
            raise KeyboardInterrupt from None
    try:
        return supervise(config, located, count)
    except Stopped:
        raise _start_again(config) from None


def run_as_one_of(config: RunConfig, place: Processes, located: Located | None = None) -> Path:
    """The part of this process in a run of several; returns the run folder.

    `located` is given to all if their launcher knows it.

    Raises PeerLost if another process ended, and SmallerBatch if the memory of this one is full.
    """
    _set_up_logging(place)
    use_language(config.lang)
    with (
        joined(place, use_gpus=config.trainer.accelerator != "cpu") as complete_place,
        # The first may be interrupted while it prepares data; the others wait for it.
        StopRequest(interruptible=place.is_first) as stop,
    ):
        return _run(config, complete_place, stop, located)


def _run(
    config: RunConfig, place: Processes, stop: StopRequest, located: Located | None = None
) -> Path:
    typed = config
    run = None
    start = None
    try:
        stop.begin()
        free_memory()  # of a training before in this process: its compiled code, the peak on a GPU
        stop.started = first(lambda: session_start(stop.started))
        first(lambda: check_launcher(typed, place))
        found = located or first(lambda: locate(typed))
        together(lambda: check_optional(found.config))
        start = found.source.step if found.source is not None else None
        resolved = resolve(found, stop, place)
        if (folder := first(lambda: finished_run(resolved, typed.overrides))) is not None:
            warn_that_it_is_finished(resolved, folder)
            return folder
        with opened(resolved) as (run, config):
            _announce(resolved, config, run)
            with _resume_shown(typed, run, start, place):
                try:
                    parts = attempts(resolved, config, run, stop)
                except Stopped:
                    raise _resumable(typed, run, start) from None
                finally:
                    close_trackers(config.logger)
                report(parts, run, config)
            return run.folder
    except Stopped:
        raise _resumable(typed, run, start) from None
    except RuntimeError as error:
        if not has_lost_peer(error):
            raise
        raise PeerLost(_lost(error), _resumable(typed, run, start)) from None


@contextlib.contextmanager
def _resume_shown(
    typed: RunConfig, run: Run, start: int | None, place: Processes
) -> Iterator[None]:
    """Show how to resume after an error that ends the training of a single process; those who
    started several say so themselves.

    Not after one that comes before the first step or is about the settings: it would come again.
    """
    try:
        yield
    except (ValueError, Resumable):
        raise
    except Exception:
        resume = resume_command(run, typed.overrides, start)
        if place.size == 1 and run.has_trained and resume is not None:
            log.error(tr("resume: {command}", command=resume))
        raise


def _resumable(typed: RunConfig, run: Run | None, start: int | None) -> Resumable:
    """The end of a session that stopped early, with the command that goes on."""
    resume = resume_command(run, typed.overrides, start) if run is not None else None
    return _start_again(typed) if resume is None else Resumable(resume)


def _start_again(config: RunConfig) -> Resumable:
    """The end of a session that saved nothing yet."""
    start_again = command("train", config.overrides)
    return Resumable(start_again, tr("start again: {command}", command=start_again))


def _lost(error: RuntimeError) -> str:
    reason = tr(
        "the processes of this run lost the connection to each other: one of them ended, or the "
        "connection itself failed"
    )
    return f"{error}\n{reason}"


def _end_quietly(error: BaseException, place: Processes) -> None:
    """End this process without a word if another one reports the end that it has in common."""
    subject = "error"
    if isinstance(error, (PeerLost, SmallerBatch)):
        code = error.exit_code
        subject = type(error).__name__
    elif isinstance(error, Resumable):  # all stopped together
        if not place.is_first:
            wait_for_first(seconds=10)
            raise Elsewhere(EXIT_RESUMABLE) from None
        return
    elif isinstance(error, Elsewhere):
        wait_for_first(seconds=10)
        return
    else:
        code = EXIT_USAGE if isinstance(error, (ValueError, OSError)) else 1
    if not Notes().is_first_to(f"report/{attempt_number()}/{subject}"):
        raise Elsewhere(code) from None


def _announce(resolved: Resolved, config: RunConfig, run: Run) -> None:
    for message in config.ignored():
        log.info(message, extra=SHOWN)  # by the entrance
    log.info(start_panel(config, run, resolved.data, resolved.device, resolved.devices))
    last_step = config.trainer.max_steps
    source = resolved.source
    if source is None:
        warn_if_far_off(config, resolved.data)
    if source is not None and source.step >= last_step:
        warn_that_it_is_done(source.step)
        return
    if (warning := schedule_warning(config.schedule, last_step)) is not None:
        log.warning(paragraph(warning))


def schedule_warning(schedule: ScheduleConfig, last_step: int) -> str | None:
    """What keeps a run that ends at `last_step` from learning at a useful rate; None if nothing."""
    if lr_factor(last_step - 1, schedule) == 0:
        return tr(
            "from step {step:,} on the learning rate is 0, so nothing is learned: add "
            "schedule.total_steps={max_steps}",
            step=schedule.total_steps,
            max_steps=last_step,
        )
    # A constant rate has no other length than that of the run.
    steps = last_step if schedule.name == "constant" else schedule.total_steps
    assert steps is not None, "total_steps was resolved before training"
    if schedule.branches > 1 and branching(schedule.branches, steps) is None:
        return tr(
            "schedule.branches={branches}: {steps:,} steps are too few for that, so the last fifth "
            "of the training is run once",
            branches=schedule.branches,
            steps=steps,
        )
    if schedule.warmup_steps < max(steps, 2):  # a single step is at the peak
        return None
    return tr(
        "schedule.warmup_steps={warmup} is not less than the length of the schedule, {steps:,}: "
        "the learning rate rises until the last step. Add schedule.warmup_steps={better}",
        warmup=schedule.warmup_steps,
        steps=steps,
        better=rule.warmup_steps(steps),
    )


def warn_if_far_off(config: RunConfig, data: TokenDataModule) -> None:
    """One warning, with a better command, if the settings are far from what a plan would choose."""
    manifest = data.train_windows.shards.manifest
    train = manifest.splits["train"]
    val = manifest.splits["val"]
    text = far_off.TextSize(
        tokens=data.train_windows.unique_windows * config.shape.block_size,
        num_bytes=train.text_bytes,
        bytes_per_token=val.text_bytes / max(1, val.tokens),
    )
    found = far_off.advice(config, text, named_models())
    if found is not None and "model" in typed_keys(found.overrides):
        # Next to what was typed, a model may be another one, or refused.
        found = far_off.advice(config, text, models_with(config.overrides))
    if found is not None:
        keys = typed_keys(found.overrides)
        kept = [text for text in config.overrides if not typed_keys([text]) & keys]
        better = tr("Better: {command}", command=command("train", [*kept, *found.overrides]))
        log.warning("\n".join([paragraph(" ".join(found.sentences)), better]))


def _set_up_logging(place: Processes) -> None:
    """Let one process write to the terminal; the others have a file each, see `opened`."""
    log.setLevel(logging.INFO if place.is_first else logging.WARNING)
    log.propagate = False
    if not place.is_first:
        log.addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")
    elif not any(isinstance(handler, TqdmHandler) for handler in log.handlers):
        log.addHandler(TqdmHandler())
    for earlier in [found for found in log.handlers if isinstance(found, EarlyLines)]:
        log.removeHandler(earlier)  # of a session that ended before it had a folder
    if place.is_first:
        log.addHandler(EarlyLines())
    for noisy in LIGHTNING:  # the start panel has the same information
        logging.getLogger(noisy).setLevel(logging.WARNING if place.is_first else logging.ERROR)
