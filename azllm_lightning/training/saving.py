"""The two roles of ModelCheckpoint: the best weights, and the full state to resume from; and stopping between steps."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from azllm_lightning.formats.load import read_checkpoint
from azllm_lightning.runs.checkpoint_files import (
    BEST,
    LAST,
    step_files,
    step_path,
    write_checkpoint,
)
from azllm_lightning.training.stopping import Stopped, StopRequest

log = logging.getLogger(__name__)

KEEP = 3
"""Full states kept; one would be enough, were disks perfect."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes each checkpoint beside its place, syncs it to the disk, and moves it there in one step.

    Lightning stages files in $TMPDIR and builds them in memory; a kill between its copy's start and end leaves a
    truncated file under the final name. Here a name is either absent, the old file, or the new file. torch.save streams
    storage by storage, so that no second copy of the state is held.

    Where the disk is full, the oldest step files beyond the newest are removed, one by one, and the save is tried
    again; if it still fails, training goes on with a warning and `failed` holds the reason until a later save works.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Time spent in saving, so that throughput can leave it out."""
        self.longest = 0.0
        """The longest save so far, in seconds: what a deadline must leave room for."""
        self.failed: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        target, started = Path(path), time.perf_counter()
        while True:
            try:
                write_checkpoint(checkpoint, target)
                self.failed = None
                break
            except OSError as error:
                spare = step_files(target.parent)[1:]
                if spare and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    log.warning(
                        f"saving {target} failed ({error}); removing {spare[-1][1].name} to try again"
                    )
                    spare[-1][1].unlink()
                    continue
                self.failed = f"{target} could not be written: {error}"
                log.warning(
                    f"CHECKPOINT NOT SAVED. {self.failed}. Free some space; training goes on unsaved."
                )
                break
        took = time.perf_counter() - started
        self.seconds, self.longest = self.seconds + took, max(self.longest, took)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        """Load tensors and plain types; a pickle that wants to run code is refused whatever `weights_only` says."""
        return read_checkpoint(Path(path), mmap=False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint; one that is gone already is fine."""
        Path(path).unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: the weights of the lowest val_loss, and the step they are of.

    Logs best_val_loss and best_step at each validation, as they are after it. Lightning's forgets the best score when
    an interval or the folder changed, and keeps a first NaN as the best.
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

    @property
    def state_key(self) -> str:
        """One key, whatever the settings."""
        return type(self).__qualname__

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if this validation is the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if loss is None or not math.isfinite(float(loss)):
            return
        before = self.state_dict()
        super().on_validation_end(trainer, pl_module)
        if self.io.failed is not None:  # what lies there is still the one before
            self.load_state_dict(before)
        if self.best_model_score is not None and self.best_step is not None:
            values = {
                "best_val_loss": float(self.best_model_score),
                "best_step": float(self.best_step),
            }
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the val_loss at hand then may be an old one."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.best_step = trainer.global_step
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        """The best score and its step; the path follows from the folder."""
        score = None if self.best_model_score is None else float(self.best_model_score)
        return {"best_model_score": score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, if its weights are in this run's folder."""
        assert self.dirpath is not None
        path = str(Path(self.dirpath) / BEST)
        if state_dict["best_model_score"] is None or not Path(path).is_file():
            self.best_step = self.best_model_score = None
            self.best_k_models = {}
            return
        self.best_step = state_dict["best_step"]
        self.best_model_score = self.kth_value = torch.tensor(state_dict["best_model_score"])
        self.best_model_path = self.kth_best_model_path = path
        self.best_k_models = {path: self.best_model_score}


class PeriodicCheckpoint(ModelCheckpoint):
    """step_<n>.ckpt: the full state every so many steps or minutes, the newest KEEP of them, and at every stop.

    It acts where a step is wholly over, its logging and its validation included: when the next one begins, or during
    that validation if a stop is due. Which files are there is asked of the folder, never remembered.
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
        self.folder, self.every_steps, self.every_minutes, self.stop, self.io = (
            folder,
            every_steps,
            every_minutes,
            stop,
            io,
        )
        self._saved_step = -1
        self._saved_at = self._step_started = time.monotonic()
        self._step_seconds = self._first_save_seconds = 0.0

    @property
    def state_key(self) -> str:
        """One key, whatever the settings."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the folder knows."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed step is not saved again over the file it came from."""
        self._saved_step = trainer.global_step
        self._saved_at = self._step_started = time.monotonic()
        self._first_save_seconds = 2 + _state_bytes(trainer) / 100e6
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Between two steps: save if it is time to, and leave if a stop is due."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        now, step = time.monotonic(), trainer.global_step
        self._step_seconds, self._step_started = now - self._step_started, now
        if step == self._saved_step:
            return
        self.stop.unsaved = True
        self._stop_if_due(trainer)
        elapsed = self.every_minutes is not None and now - self._saved_at >= 60 * self.every_minutes
        if step % self.every_steps == 0 or self._agreed(trainer, elapsed):
            self.save(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Leave in mid-validation if a stop is due; a resume runs that validation from its start.

        Not at the last step, since Lightning would not enter a finished training again; and not with several
        processes, which may have unequal numbers of batches and could not agree in mid-validation.
        """
        if (
            not trainer.sanity_checking
            and trainer.world_size == 1
            and trainer.global_step < trainer.max_steps
        ):
            self._stop_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step is always saved."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the step's validation is still to come."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: epochs have no meaning here."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: on_train_batch_start and on_train_end come right after."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing: a failing step's state is not to be trusted."""

    def save(self, trainer: Trainer) -> None:
        """Write the full state of the step just finished, drop the oldest beyond KEEP, and point last.ckpt to it."""
        for logger in trainer.loggers:
            logger.save()  # what the checkpoint's step logged must not be lost by a kill that the checkpoint survives
        path = step_path(self.folder, trainer.global_step)
        self._save_checkpoint(trainer, str(path))
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self.stop.unsaved = False
        if trainer.is_global_zero and self.io.failed is None:
            for _, old in step_files(self.folder)[KEEP:]:
                old.unlink(missing_ok=True)
            with contextlib.suppress(
                OSError
            ):  # no links here (Windows, Google Drive): nothing depends on it
                temporary = self.folder / f".{LAST}.{os.getpid()}.tmp"
                temporary.symlink_to(path.name)
                temporary.replace(self.folder / LAST)

    def _stop_if_due(self, trainer: Trainer) -> None:
        expected_save = self.io.longest or self._first_save_seconds
        if self._agreed(trainer, self.stop.due(1.5 * (expected_save + self._step_seconds))):
            if trainer.global_step != self._saved_step:
                self.save(trainer)
            raise Stopped(self.stop.reason or "another process was asked to stop")

    @staticmethod
    def _agreed(trainer: Trainer, mine: bool) -> bool:
        """The same decision on every process: yes if one says so."""
        return (
            bool(trainer.strategy.reduce_boolean_decision(mine, all=False))
            if trainer.world_size > 1
            else mine
        )


def _state_bytes(trainer: Trainer) -> int:
    # weights and two moments in fp32
    return 12 * sum(p.numel() for p in trainer.lightning_module.parameters())
