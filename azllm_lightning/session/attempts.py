"""Stage 3: fit until the run is done.

After too many non-finite steps, a fit restarts from an earlier checkpoint; if memory runs out, with
a smaller micro-batch.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from azllm_lightning.callbacks.console import SHOWN
from azllm_lightning.callbacks.health import RollBack
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.memory import is_out_of_memory
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.overrides import command
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.checkpoint_files import set_aside_after, step_files, valid_steps
from azllm_lightning.runs.curves import carry_curve
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.build import Parts, build
from azllm_lightning.session.open import describe
from azllm_lightning.session.outcome import SmallerBatch, resume_settings
from azllm_lightning.session.resolve import Resolved
from azllm_lightning.training import batch
from azllm_lightning.training.processes import Notes, first
from azllm_lightning.training.stopping import Stopped, StopRequest

log = logging.getLogger("azllm_lightning")


@dataclass(frozen=True)
class Done:
    """The fit finished."""


@dataclass(frozen=True)
class RolledBack:
    """The fit had too many non-finite steps in a row."""

    broken: RollBack


@dataclass(frozen=True)
class OutOfMemory:
    """The fit ran out of memory."""


Outcome = Done | RolledBack | OutOfMemory


@dataclass(frozen=True)
class Start:
    """Where a fit starts: its settled config, and the checkpoint of optimizer step `step`."""

    config: RunConfig
    checkpoint: Path | None
    step: int
    """-1 without a checkpoint: not even the validation at step 0 is kept."""
    resumed_from: Path | None
    """The checkpoint that the summary names; None if this session wrote it."""
    rollbacks: int = 0
    rolled_back: str | None = None
    """What the page of the run says about the rollback that led here."""


def attempts(resolved: Resolved, config: RunConfig, run: Run, stop: StopRequest) -> Parts:
    """Fit until the run is done, and return the objects of the last fit.

    Raises `Stopped` if a signal or the deadline ends it, and ValueError if it cannot continue.
    """
    source = resolved.source
    path = source.path if source else None
    start = Start(config, path, source.step if source else -1, path)
    clock = None
    while True:
        parts = _built(start, resolved, run, stop)
        if clock is not None:
            parts.history.clock.follow(clock)
        clock = parts.history.clock
        parts.health.rollbacks = start.rollbacks
        parts.history.starts_from = str(start.resumed_from) if start.resumed_from else None
        parts.page.rolled_back = start.rolled_back
        outcome = attempt(parts, start, run, stop)
        if isinstance(outcome, Done):
            return parts
        start = next_start(outcome, parts, start, run, resolved.devices)
        parts.data.trainer = None
        del parts, outcome
        batch.free_memory()  # the exception, whose frames kept tensors alive, has been dropped


def attempt(parts: Parts, start: Start, run: Run, stop: StopRequest) -> Outcome:
    """One fit from `start`.

    Raises `Stopped` after writing the summary.
    """
    if start.checkpoint is None:
        first(lambda: _initialize(parts, start.config))  # DDP copies the weights to the others
    try:
        with _quiet():
            parts.trainer.fit(
                parts.module,
                datamodule=parts.data,
                ckpt_path=start.checkpoint,
                weights_only=True,
            )
    except Stopped as stopped:
        _report_stop(parts, start, run, stopped, stop.shown)
        raise
    except RollBack as broken:
        return RolledBack(broken.with_traceback(None))
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemory()
    finally:
        run.has_trained |= parts.trainer.global_step > max(start.step, 0)
    return Done()


def _initialize(parts: Parts, config: RunConfig) -> None:
    """The first weights of a run, where they are not random."""
    if config.init_from is not None:
        parts.module.start_from(config.init_from)
        return
    if config.init_embeddings == "neighbors":
        parts.data.setup()
        parts.module.start_from_neighbors(parts.data.train_windows)
    if config.init_attention == "induction":
        parts.module.start_with_induction()


def next_start(
    outcome: RolledBack | OutOfMemory, parts: Parts, start: Start, run: Run, devices: int
) -> Start:
    """Where to restart after `outcome`.

    Raises SmallerBatch where all processes have to be started again, and ValueError if the run
    cannot continue, as its page then says.
    """
    try:
        if isinstance(outcome, RolledBack):
            return after_rollback(parts, start, run, outcome.broken)
        if devices > 1:
            leave_after_out_of_memory(parts, start, run)
        return after_out_of_memory(parts, start, run)
    except (ValueError, OSError):
        parts.page.write_last(parts.trainer)
        raise


def _built(start: Start, resolved: Resolved, run: Run, stop: StopRequest) -> Parts:
    """`build`; raises ValueError if the model itself does not fit in memory."""
    try:
        return build(start.config, resolved, run, stop, start.step)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
    raise ValueError(batch.model_does_not_fit(start.config))


def after_rollback(parts: Parts, start: Start, run: Run, broken: RollBack) -> Start:
    """Where to restart after non-finite steps: before them, and without their windows.

    Raises ValueError after too many rollbacks, and if there is nothing to go back to.
    """
    rollbacks = parts.health.rollbacks + 1
    # What a rollback went back to is at fault itself if no step could be taken from there.
    has_failed = start.rollbacks > 0 and broken.first_step == start.step + 1
    before = start.step if has_failed else broken.first_step

    def choose() -> tuple[int, Path | None]:
        complete: list[tuple[int, Path | None]] = [*_states_until(broken.last_step - 1, run)]
        earlier = [found for found in complete if found[0] < before]
        # If all are newer, take the oldest: the skipped steps have changed no weights.
        chosen = (earlier or complete[-1:] or [(start.step, start.checkpoint)])[0]
        set_aside_after(run.checkpoints, chosen[0])
        if rollbacks > parts.health.config.max_rollbacks or (has_failed and not earlier):
            raise ValueError(_at_fault(broken, rollbacks - 1, earlier[0][1] if earlier else None))
        carry_curve(run.folder, run.folder, chosen[0])
        return chosen

    step, checkpoint = first(choose)
    # Those up to `step` are in that checkpoint, which continues behind their windows.
    parts.data.skip_steps(max(broken.first_step, step + 1), broken.last_step)
    message = tr(
        "{problem}: rolling back to {place} and skipping those batches",
        problem=broken,
        place=checkpoint.name if checkpoint else tr("the start"),
    )
    log.warning(paragraph(message))
    mark = tr("{problem}: back to here, and those batches are skipped", problem=broken)
    return Start(start.config, checkpoint, step, checkpoint, rollbacks, mark)


def leave_after_out_of_memory(parts: Parts, start: Start, run: Run) -> NoReturn:
    """Leave the others, which wait for this process: all have to be started again.

    Raises SmallerBatch, or ValueError if no micro-batch is smaller. `session.supervisor` and
    torchrun, if it may restart, continue with the smaller one by themselves.
    """
    config = batch.halved(start.config, parts.trainer.world_size)
    size = f"trainer.micro_batch_size={config.trainer.micro_batch_size}"
    Notes().write("micro_batch_size", str(config.trainer.micro_batch_size))
    typed = start.config.overrides
    settings = resume_settings(run, typed, start.step) or typed
    resume = command("train", [*settings, size])
    message = tr(
        "process {rank} of {count} is out of memory with trainer.micro_batch_size={size}\n"
        "resume: {command}",
        rank=parts.trainer.global_rank,
        count=parts.trainer.world_size,
        size=start.config.trainer.micro_batch_size,
        command=resume,
    )
    raise SmallerBatch(resume, message)


def after_out_of_memory(parts: Parts, start: Start, run: Run) -> Start:
    """Where to restart with a smaller micro-batch.

    Raises ValueError if there is none.
    """
    reached = parts.trainer.global_step
    config = batch.halved(start.config, parts.trainer.world_size)
    parts.module.run_config = config.to_yaml()
    if reached > max(start.step, 0) and batch.is_between_steps(parts.trainer, parts.module):
        parts.periodic.save(parts.trainer)
    step, checkpoint = next(_states_until(reached, run), (start.step, start.checkpoint))
    # A checkpoint of this session already records what the session resumed from.
    resumed_from = None if step > start.step else start.resumed_from
    carry_curve(run.folder, run.folder, step)
    with contextlib.suppress(OSError):  # the disk may be full; the checkpoints have the settings
        describe(run, config, parts.data)
    assert isinstance(config.trainer.micro_batch_size, int)
    parts.data.micro_batch_size = config.trainer.micro_batch_size
    devices = parts.trainer.world_size
    message = batch.continuing(config.trainer, devices, reached, config.shape.dropout)
    log.warning(paragraph(message))
    return replace(
        start,
        config=config,
        checkpoint=checkpoint,
        step=step,
        resumed_from=resumed_from,
        rolled_back=None,
    )


def _states_until(step: int, run: Run) -> Iterator[tuple[int, Path]]:
    """The complete full states up to `step`, newest first.

    Raises ValueError if there are files of some and none is complete: the run would start again in
    their place.
    """
    until = [found for found in step_files(run.checkpoints) if found[0] <= step]
    has_complete = False
    for found in valid_steps(run.checkpoints):
        if found in until:
            has_complete = True
            yield found
    if until and not has_complete:
        raise ValueError(
            tr(
                "none of the full states in {folder} can be read, and the run would start again "
                "from its beginning: they stay as they are. Check the disk, then start a new run",
                folder=run.checkpoints,
            )
        )


def _at_fault(broken: RollBack, rollbacks: int, good: Path | None) -> str:
    """Why the run ends after so many `rollbacks`; `good` is the newest state that a run can
    continue from.
    """
    problem = str(broken)
    if rollbacks:
        problem = tr(
            "{problem}, and {reason}",
            problem=broken,
            reason=trn(
                "the same happened after {count} rollback",
                "the same happened after {count} rollbacks",
                rollbacks,
            ),
        )
    message = tr(
        "{problem}: the data or the settings are at fault. Check the last validations, lower "
        "optimizer.lr, or try trainer.precision=32-true",
        problem=problem,
    )
    if good is None:
        return message + ". " + tr("No checkpoint from before is left: start a new run")
    return message + ". " + tr("The last good checkpoint is {path}", path=good)


def _report_stop(
    parts: Parts, start: Start, run: Run, stopped: Stopped, shown: Sequence[str]
) -> None:
    """Log a stop and, if this session came further than its start, write the summary.

    `shown` is what the terminal has shown of it already.
    """
    for message in shown:
        log.info(message, extra=SHOWN)
    step = parts.trainer.global_step
    # A newer one is damaged, or a rollback has left it behind.
    saved = [number for number, _ in step_files(run.checkpoints) if number <= max(step, start.step)]
    if parts.io.failed is not None:
        message = tr(
            "stopped by {reason} at step {step:,}, which is not saved: {failed}",
            reason=stopped,
            step=step,
            failed=parts.io.failed,
        )
        log.warning(paragraph(message))
    elif saved:
        log.info(tr("stopped by {reason} at step {step:,}, saved", reason=stopped, step=saved[0]))
        if parts.trainer.global_step > start.step:
            _write_summary(parts, run)
            parts.page.write_last(parts.trainer)
    else:
        log.info(tr("stopped by {reason} before the first step", reason=stopped))


def _write_summary(parts: Parts, run: Run) -> None:
    """Write the summary of a stop; a warning where that is impossible: the state is saved."""
    try:
        parts.summary.write(parts.trainer, parts.module, "stopped")
    except OSError as error:
        message = tr(
            "{path} could not be written: {reason}",
            path=run.folder / "summary.json",
            reason=system_reason(error),
        )
        log.warning(paragraph(message))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide those of Lightning's warnings that do not apply here."""
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*isinstance\\(treespec.*",
            ".*exists and is not empty.*",
        ):
            warnings.filterwarnings("ignore", text)
        yield
