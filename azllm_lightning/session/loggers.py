"""Where curves go besides the terminal: TensorBoard, and the trackers that `logger` names.

TensorBoard's event files are the project's own record. The others get the same values, and a
resumed run continues as the same run there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.callbacks import LoggerConfig
from azllm_lightning.formats.optional import import_optional
from azllm_lightning.runs.atomic import write_text
from azllm_lightning.runs.event_file import CurveWriter
from azllm_lightning.runs.folder import Run
from azllm_lightning.runs.paths import METRICS
from azllm_lightning.runs.table import carry_table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

TRACKING_ID = "tracking_id"
"""The file with the name of a run at the trackers, which are shared by many machines."""


def loggers(config: LoggerConfig, run: Run, first_step: int, is_first: bool) -> list[Logger]:
    """The loggers of `config` for a session that starts after `first_step` (-1: a new run).

    Raises ValueError if a package is missing or a tracker refuses.
    """
    found: list[Logger] = []
    version = run.folder.name
    if config.tensorboard:
        found.append(CurveLogger(run.logs, name=run.name, version=version, default_hp_metric=False))
    if config.csv:
        found.append(TableLogger(run.logs, run.name, version, first_step))
    if config.wandb is not None:
        found.append(_wandb(config.wandb, run, is_first))
    if config.trackio is not None:
        tracker("trackio", config.trackio)
        name = f"{run.name}-{version}-{_tracking_id(run.folder, is_first)}"
        found.append(TrackioLogger(config.trackio, name))
    return found


class CurveLogger(TensorBoardLogger):
    """TensorBoard's logger, whose files may be written later if the disk is full now."""

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of the event file."""
        if self._experiment is None:
            self._experiment = CurveWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Write the curves, and hparams.yaml if it is not there."""
        with contextlib.suppress(OSError):  # the next save tries again
            super().save()


class TableWriter(ExperimentWriter):
    """Lightning's writer of metrics.csv (2.6), which would delete that of earlier sessions."""

    def _check_log_dir_exists(self) -> None:
        pass


class TableLogger(CSVLogger):
    """Lightning's metrics.csv after the rows of earlier sessions up to `last_step`.

    All is written later if that is impossible now: the disk is full, or on Windows a spreadsheet
    has the file open.
    """

    def __init__(self, save_dir: Path, name: str, version: str, last_step: int = -1) -> None:
        super().__init__(save_dir, name, version)
        self._last_step = last_step
        self._has_begun = False
        self._has_failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> TableWriter:
        """The rows to be written."""
        if self._experiment is None:
            self._experiment = TableWriter(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        """Write the rows; a warning if that is impossible now."""
        path = Path(self.log_dir) / METRICS
        try:
            if not self._has_begun:
                self._begin(path)
            super().save()
            self._has_failed = False
        except OSError as error:
            if self._has_failed:
                return
            self._has_failed = True
            message = tr(
                "{file} could not be written: {reason}. Training continues, and the next save "
                "tries again",
                file=path,
                reason=system_reason(error),
            )
            log.warning(message)

    def _begin(self, path: Path) -> None:
        if path.is_file():
            with path.open("r+b"):  # fails at once, where a rename would be tried several times
                pass
            self.experiment.metrics_keys = carry_table(path, path, self._last_step)
        self._has_begun = True


def tracker(name: str, project: str) -> Any:
    """The package of `logger.<name>=project`; ValueError with both, if it is not installed."""
    try:
        return import_optional(name)
    except ValueError as error:
        raise ValueError(
            tr("logger.{name}={project}: {problem}", name=name, project=project, problem=error)
        ) from None


def _tracking_id(folder: Path, is_first: bool) -> str:
    """The id that a run has at the trackers: made once, and kept in its folder."""
    path = folder / TRACKING_ID
    if is_first and not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _wandb(project: str, run: Run, is_first: bool) -> Logger:
    wandb = tracker("wandb", project)
    logger = WandbLogger(
        project=project,
        name=f"{run.name}/{run.folder.name}",
        save_dir=run.folder,
        id=_tracking_id(run.folder, is_first),
        settings=wandb.Settings(console="off"),  # the bar would be uploaded too
    )
    if is_first:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*wandb run already in progress.*")
                _ = logger.experiment
        except wandb.Error as error:
            raise ValueError(_log_in(project, str(error).rstrip("."))) from error
    return logger


def check_wandb(project: str) -> None:
    """Raise ValueError if wandb is not installed, or would ask for an account that nobody can
    type in.
    """
    wandb = tracker("wandb", project)
    settings = wandb.setup().settings  # with those of its files, but read once per process
    mode = os.environ.get("WANDB_MODE") or settings.mode
    has_key = wandb.api.api_key is not None or settings.identity_token_file is not None
    if mode == "online" and not has_key and not sys.stdin.isatty():
        raise ValueError(_log_in(project, tr("no API key is configured")))


def _log_in(project: str, reason: str) -> str:
    return tr(
        "logger.wandb={project}: {reason}. Log in with `wandb login`, or set WANDB_MODE=offline",
        project=project,
        reason=reason,
    )


def close_trackers(config: LoggerConfig) -> None:
    """End the runs at the trackers of `config`, so that another run in this process gets its own.

    A tracker that the run does not log to may have a run of somebody else.
    """
    for name in ("wandb", "trackio"):
        if getattr(config, name) is not None and (tracker := sys.modules.get(name)) is not None:
            with contextlib.suppress(RuntimeError):  # trackio's, if no run was opened
                tracker.finish()


class TrackioLogger(Logger):
    """A Lightning logger for Trackio, which has none: `name` is created, or continued."""

    def __init__(self, project: str, name: str) -> None:
        super().__init__()
        self._project = project
        self._name = name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._name

    @property
    def run(self) -> Any:
        """The run of Trackio, opened at the first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                project=self._project,
                name=self._name,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Store the settings of the run."""
        values = vars(params) if isinstance(params, Namespace) else params
        self.run.config.update(values)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values at an optimizer step."""
        self.run.log(dict(metrics), step=step)
