"""The two kinds of checkpoints: the best weights, and the full states to resume from."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.formats.load import first_not_finite, read_checkpoint
from azllm_lightning.runs.checkpoint_files import (
    BEST,
    LAST,
    check_readable,
    diverged_path,
    step_files,
    step_path,
    write_checkpoint,
)
from azllm_lightning.training.affixes import PER_TOKEN
from azllm_lightning.training.branches import kept_bytes
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.loops import use_own_signal_handlers
from azllm_lightning.training.processes import first
from azllm_lightning.training.stopping import NO_REQUESTS, Requests, Stopped, StopRequest

log = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

KEEP = 3
"""Number of full states that are kept; more than one, in case the newest is damaged."""


RETRY_SECONDS = 60.0
"""A save that failed is tried again after so long, if none is due before."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes each checkpoint to a temporary file next to its place, syncs it, and renames it.

    Lightning (2.6) stages files in $TMPDIR and builds them in memory; a kill while it copies leaves
    a truncated file under the final name. Here, the name refers to the old file, the new file, or
    none, and torch.save writes storage by storage without a second copy of the state.

    On a full disk, the oldest full states except the newest are removed, one by one, as long as
    that frees space, and the save is tried again. If it still fails, training continues with a
    warning, and `failed` is the reason until a later save succeeds.

    A state whose weights are not finite gets another name (`diverged_path`), so that it neither
    replaces nor outlives a good one; that counts as a failed save.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Time spent saving, which throughput excludes."""
        self.longest = 0.0
        """Duration of the longest save so far, which must fit before a deadline."""
        self.failed: str | None = None
        self.diverged: Path | None = None
        """The file of such a state, if the last save was one."""
        self._removing_helps = True
        """Whether the last file that was removed from a full disk freed space."""
        self._left_out: set[str] = set()
        """What has been warned of."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, completely or not at all.

        What a callback has put into it and could not be read again is left out, with a warning.
        """
        checkpoint = self._readable(checkpoint)
        target = Path(path)
        started = time.perf_counter()
        self.failed = None
        try:
            if (name := first_not_finite(checkpoint["state_dict"])) is not None:
                self._set_aside(checkpoint, target, name)
            else:
                self._write(checkpoint, target)
                self.diverged = None
        except OSError as error:
            self.failed = tr(
                "{path} could not be written: {reason}", path=target, reason=system_reason(error)
            )
            way_out = (
                tr(
                    "Free some disk space (on Google Drive, empty the bin): training continues, "
                    "and the save is tried again."
                )
                if error.errno in NO_SPACE
                else tr("Training continues, and the save is tried again.")
            )
            log.warning(f"{_not_saved(self.failed)} {way_out}")
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.longest = max(self.longest, seconds)

    def _readable(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """`checkpoint` without what would make all of it unreadable."""
        found = {
            key: value
            for key, value in checkpoint.items()
            if key == "callbacks" or self._is_readable({key: value})
        }
        if "callbacks" in found:
            found["callbacks"] = {
                key: state
                for key, state in found["callbacks"].items()
                if self._is_readable({"callbacks": {key: state}})
            }
        return found

    def _is_readable(self, part: dict[str, Any]) -> bool:
        try:
            check_readable(part)
        except ValueError as error:
            if str(error) not in self._left_out:
                log.warning(tr("This state is saved without a part: {reason}", reason=error))
            self._left_out.add(str(error))
            return False
        return True

    def _set_aside(self, checkpoint: dict[str, Any], target: Path, name: str) -> None:
        """Write a diverged state under its own name, where there is room; only the last is kept."""
        is_first = self.diverged is None
        self.diverged = diverged_path(target)
        for old in target.parent.glob(diverged_path(Path("*")).name):
            old.unlink()
        write_checkpoint(checkpoint, self.diverged)
        self.failed = tr(
            "the weights are not finite ({name}): training has diverged, and this state is only "
            "kept as {path}",
            name=name,
            path=self.diverged,
        )
        if is_first:
            log.warning(_not_saved(self.failed))

    def _write(self, checkpoint: dict[str, Any], target: Path) -> None:
        while True:
            try:
                write_checkpoint(checkpoint, target)
                self._removing_helps = True
                return
            except OSError as error:
                step = checkpoint.get("global_step", 0)
                removable = _removable(target.parent, step)
                is_full = error.errno in NO_SPACE
                if not (is_full and removable and self._removing_helps):
                    raise
                log.warning(
                    tr(
                        "saving {path} failed ({reason}); removing {oldest} to try again",
                        path=target,
                        reason=system_reason(error),
                        oldest=removable[0].name,
                    )
                )
                self._removing_helps = _remove(removable[0])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        """Load tensors and plain types; a pickle with code is refused for any `weights_only`.

        The first process reads, for the others may be on a machine without the file.
        """
        return first(lambda: read_checkpoint(Path(path), mmap=False))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it exists."""
        Path(path).unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: the weights with the lowest val_loss, and their step.

    Logs val_loss_best and val_loss_best_step at each validation, including that one. Lightning's
    own callback (2.6) forgets the best score when an interval or the folder changes, and keeps a
    first NaN as the best.
    """

    def __init__(self, folder: Path, io: AtomicCheckpointIO) -> None:
        self.io = io
        super().__init__(
            dirpath=folder,
            filename=Path(BEST).stem,
            monitor="val_loss",
            mode="min",
            save_top_k=1,
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.best_step: int | None = None
        """That of the file."""
        self._until_now: tuple[float, int] | None = None
        """The lowest val_loss and its step. Those of the file, unless a crash undid the steps up to
        the file's: then it has what was the best before, as in a run without the crash.
        """

    @property
    def state_key(self) -> str:
        """The same key for all settings; Lightning's depends on them."""
        return type(self).__qualname__

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if this validation is the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if loss is None or not math.isfinite(float(loss)):
            return
        before = self.best_model_score, self.best_step
        super().on_validation_end(trainer, pl_module)
        if first(lambda: self.io.failed is not None):  # the file is still the previous one
            self._set_best(*before)
        elif self._until_now is None or float(loss) < self._until_now[0]:
            self._until_now = float(loss), trainer.global_step
        if self._until_now is not None:
            score, step = self._until_now
            values = {"val_loss_best": score, "val_loss_best_step": float(step)}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: val_loss may be an old one by then."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.best_step = trainer.global_step
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        """The best score until now and its step; the path is known from the folder."""
        score, step = self._until_now or (None, None)
        return {"best_model_score": score, "best_step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, if there are weights in this run's folder, and read theirs, which
        may be better: those of a step that a crash undid.
        """
        # The first process alone sees the folder where machines share no disk.
        found = first(self._of_file)
        earlier = state_dict["best_model_score"]
        self._until_now = None
        if found is not None and earlier is not None:
            self._until_now = earlier, state_dict["best_step"]
        score, step = found or (None, None)
        exact = None if score is None else torch.tensor(score, dtype=torch.float64)
        self._set_best(exact, step)

    def _of_file(self) -> tuple[float, int] | None:
        """val_loss and step of best.ckpt, if there is one that can be read."""
        assert self.dirpath is not None
        path = Path(self.dirpath) / BEST
        if not path.is_file():
            return None
        try:
            state = read_checkpoint(path)["azllm"]
        except (OSError, ValueError) as error:
            log.warning(
                tr(
                    "the best weights until now cannot be read ({reason}); from here on the best "
                    "are searched from scratch",
                    reason=system_reason(error),
                )
            )
            return None
        return state["metrics"]["val_loss"], state["step"]

    def _set_best(self, score: Tensor | None, step: int | None) -> None:
        """Make Lightning's callback keep a file with this score, or none."""
        assert self.dirpath is not None
        path = str(Path(self.dirpath) / BEST)
        self.best_step = step
        self.best_model_score = score
        if score is None:
            self.best_k_models = {}
            return
        self.kth_value = score
        self.best_model_path = path
        self.kth_best_model_path = path
        self.best_k_models = {path: score}


class PeriodicCheckpoint(ModelCheckpoint):
    """step_<n>.ckpt: the full state at an interval of steps or minutes and at every stop; the
    newest KEEP are kept.

    It acts when a step is complete, including its logging and its validation: at the start of the
    next step, or during that validation if a stop is due. The files in the folder are its only
    state.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        every_minutes: float | None,
        stop: StopRequest,
        io: AtomicCheckpointIO,
    ) -> None:
        super().__init__(dirpath=folder, save_top_k=0, enable_version_counter=False)
        self.folder = folder
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.stop = stop
        self.io = io
        self._first_step = 0
        self._saved_step = -1
        self._is_due = False
        """Whether a save waits for a step that changes the weights."""
        self._has_failed = False
        """Whether the last save was none, and may succeed later."""
        self._saved_at = time.monotonic()
        self._step_started = self._saved_at
        self._step_seconds: deque[float] = deque(maxlen=2)
        """Durations of the last two steps; a pause (Ctrl+Z, a laptop that slept) is in one."""
        self._first_save_seconds = 0.0
        self._validation_started = self._saved_at
        self._validation_seconds = 0.0
        """Duration of the last validation, with several processes: it cannot be interrupted."""

    @property
    def state_key(self) -> str:
        """The same key for all settings; Lightning's depends on them."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the files in the folder are the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from installing signal handlers of its own."""
        super().setup(trainer, pl_module, stage)
        use_own_signal_handlers(trainer, self.stop)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the resumed step as saved, so that the file it came from is not overwritten."""
        assert isinstance(pl_module, CausalLM)
        _check_states(trainer)
        pl_module.requests = lambda: self._requests(trainer)
        self._first_step = trainer.global_step
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._step_started = self._saved_at
        self._first_save_seconds = 2 + _state_bytes(trainer) / 100e6

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Between two steps: save if it is time, and stop if a stop is due."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        now = time.monotonic()
        if step > self._first_step:
            self._step_seconds.append(now - self._step_started)
        self._step_started = now
        if step == self._saved_step:  # nothing is new; but a signal may have come before this fit
            if trainer.world_size == 1 and self.stop.reason is not None:
                self._save_and_stop(trainer)
            return
        if step == self._first_step + 1:
            _check_states(trainer)
        requests = self._agreed(trainer, pl_module)
        if requests.stop:
            self._save_and_stop(trainer)
        self._is_due |= requests.save or step % self.every_steps == 0 or self._saved_step < 0
        # After a skipped step the weights are those of the state before; many in a row would drive
        # the states that a rollback needs out of KEEP.
        if self._is_due and _was_taken(pl_module):
            self.save(trainer)

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """From here on the weights are newer than the newest file."""
        self.stop.interruptible = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the validation."""
        self._validation_started = time.monotonic()
        if not trainer.sanity_checking:
            self.stop.interruptible = False  # a point of the curve comes, which is not saved yet

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stop during a validation if a stop is due; a resume runs that validation from its start.

        Not at the last step, because Lightning does not enter a finished training again; and not
        with several processes, which may have different numbers of batches and so could not agree.
        """
        if (
            not trainer.sanity_checking
            and trainer.world_size == 1
            and trainer.global_step < trainer.max_steps
            and self._requests(trainer).stop
        ):
            self._save_and_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: on_train_batch_start and on_train_end come right after.

        A resume may begin with the validation of the step that it resumes from.
        """
        if not trainer.sanity_checking and trainer.global_step == self._saved_step:
            self._saved_step = -1
        if trainer.world_size > 1:
            self._validation_seconds = time.monotonic() - self._validation_started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the validation of the step follows."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: epochs have no meaning here."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing: the state of a failing step cannot be trusted."""

    def save(self, trainer: Trainer) -> None:
        """Write the full state, link last.ckpt to it, and delete the oldest beyond KEEP."""
        for logger in trainer.loggers:
            with contextlib.suppress(OSError):  # the state is worth more than a curve
                logger.save()  # after a kill, the curve must reach the newest checkpoint
        path = step_path(self.folder, trainer.global_step)
        self.stop.is_saving = True
        self._save_checkpoint(trainer, str(path))
        self.stop.is_saving = False
        self._saved_step = trainer.global_step
        self._is_due = False
        self._has_failed = self.io.failed is not None and self.io.diverged is None
        self._saved_at = time.monotonic()
        if trainer.is_global_zero and self.io.failed is None:
            for old in _outdated(self.folder, trainer.global_step):
                with contextlib.suppress(OSError):  # open in another program, on Windows
                    old.unlink(missing_ok=True)
            # Windows and Google Drive have no links; nothing depends on this one.
            with contextlib.suppress(OSError):
                temporary = self.folder / f".{LAST}.{os.getpid()}.tmp"
                temporary.symlink_to(path.name)
                temporary.replace(self.folder / LAST)

    def _save_and_stop(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer)
        self.stop.is_saving = True  # what describes the state is written next
        raise Stopped(self.stop.reason or tr("a request from another process"))

    def _agreed(self, trainer: Trainer, module: LightningModule) -> Requests:
        """What to do at the end of the step just completed, the same in every process.

        Several processes have agreed on it during that step. A single one decides now.
        """
        if trainer.world_size == 1:
            return self._requests(trainer)
        assert isinstance(module, CausalLM)
        report = module.step_report
        return NO_REQUESTS if report is None else report.requests  # None before the first step

    def _requests(self, trainer: Trainer) -> Requests:
        """What this process asks for: only the first looks at the clock, any may get a signal."""
        if not trainer.is_global_zero:
            return Requests(stop=self.stop.reason is not None)
        save_seconds = self.io.longest or self._first_save_seconds
        assert isinstance(trainer.lightning_module, CausalLM)
        if trainer.lightning_module.branching is not None:  # a full state may grow after the first
            save_seconds = max(save_seconds, self._first_save_seconds)
        step_seconds = min(self._step_seconds, default=0.0)
        seconds = save_seconds + step_seconds + self._validation_seconds
        since = time.monotonic() - self._saved_at
        elapsed = self.every_minutes is not None and since >= 60 * self.every_minutes
        again = self._has_failed and since >= RETRY_SECONDS
        return Requests(stop=self.stop.due(1.5 * seconds), save=elapsed or again)


def _check_states(trainer: Trainer) -> None:
    """Raise ValueError for the state of a callback that could not be read again: before hours are
    trained, whose first save would find it out.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set elsewhere
    states = {callback.state_key: callback.state_dict() for callback in callbacks}
    check_readable({"callbacks": states})


def _was_taken(module: LightningModule) -> bool:
    """Whether the step just completed changed the weights; all processes agree on it."""
    assert isinstance(module, CausalLM)
    return module.step_report is None or module.step_report.finite


def _not_saved(reason: str) -> str:
    return tr("CHECKPOINT NOT SAVED. {reason}.", reason=reason)


def _state_bytes(trainer: Trainer) -> int:
    # Weights, two moments, and at most two of affixes in fp32.
    each = 4 * (3 + 2 * PER_TOKEN)
    assert isinstance(trainer.lightning_module, CausalLM)
    if trainer.lightning_module.branching is not None:
        each += kept_bytes(each, 4)
    return int(each * sum(p.numel() for p in trainer.lightning_module.parameters()))


def _outdated(folder: Path, step: int) -> list[Path]:
    """The full states up to `step` beyond the newest KEEP.

    Newer ones, from which the run was resumed or rolled back, do not count: they may be damaged.
    """
    return [path for saved, path in step_files(folder) if saved <= step][KEEP:]


def _remove(path: Path) -> bool:
    """Delete a file; whether that freed space. On Google Drive it does not before the bin is
    emptied, and with a snapshot not before that is gone.
    """
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    path.unlink()
    # Meanwhile other programs write and delete as well.
    return shutil.disk_usage(path.parent).free - free >= size / 2


def _removable(folder: Path, step: int) -> list[Path]:
    """The full states that may make room for another, in this order: those newer than `step`, which
    the run has left, then the oldest. One to fall back on is not among them.
    """
    paths = [path for _, path in step_files(folder)]
    up_to_now = [path for saved, path in step_files(folder) if saved <= step]
    fallback = (up_to_now or paths[-1:])[:1]
    newer = [path for path in paths if path not in up_to_now]
    return [path for path in [*newer, *reversed(up_to_now)] if path not in fallback]
