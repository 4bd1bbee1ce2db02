"""Run folders: creating and locking them, finding them by name, continuing in them."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.run import check_run_name
from azllm_lightning.formats.huggingface import HF_CONFIG
from azllm_lightning.formats.load import checkpoint_of, read_checkpoint
from azllm_lightning.runs.atomic import sweep
from azllm_lightning.runs.checkpoint_files import BEST, is_complete, step_files, valid_steps
from azllm_lightning.runs.curves import carry_curve
from azllm_lightning.runs.paths import (
    LOGS,
    folder_of,
    is_version,
    run_names,
    version_of,
    versions,
)

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run folder, locked by this process until `release` or its end."""

    folder: Path
    lock: filelock.BaseFileLock | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.parent.name

    @property
    def version(self) -> int:
        """The number of this run among those of its name."""
        return version_of(self.folder)

    @property
    def logs(self) -> Path:
        """The folder of all runs."""
        return self.folder.parent.parent

    @property
    def address(self) -> list[str]:
        """The settings by which a command finds this run."""
        name = f"run_name={self.name}"
        return [name] if self.logs == LOGS else [name, f"logs_dir={self.logs}"]

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def config_file(self) -> Path:
        """Its settled config as YAML."""
        return self.folder / ".hydra" / "config.yaml"

    def release(self) -> None:
        """Let another process use the folder."""
        if self.lock is not None:
            self.lock.release()


def claim(name: str, logs: Path = LOGS) -> Run:
    """Create and lock the next version folder of run `name`; no two processes get the same one.

    Raises ValueError if `name` cannot be a folder name or the parent of `logs` is missing, and
    OSError if the folder cannot be written.
    """
    check_run_name(name)
    _check_logs(logs)
    parent = folder_of(name, logs)
    version = max(map(version_of, versions(parent)), default=-1) + 1
    while True:
        folder = parent / f"version_{version}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            version += 1
            continue
        except OSError as error:
            message = tr(
                "{folder} cannot be written ({reason}): run the command in a writable folder, or "
                "set logs_dir",
                folder=folder,
                reason=error,
            )
            raise OSError(message) from None
        run = _lock(folder)
        run.checkpoints.mkdir()
        return run


def reopen(folder: Path) -> Run:
    """Lock an existing run folder to continue in it.

    Raises OSError if it cannot be written, and ValueError if another process uses it.
    """
    run = _lock(folder)
    run.checkpoints.mkdir(exist_ok=True)
    sweep(run.checkpoints)
    return run


def open_for_resume(path: Path, step: int, name: str, logs: Path = LOGS) -> Run:
    """The run folder in which training continues from the checkpoint `path` of optimizer step
    `step`.

    This is the folder that the file is in, if the file is the newest there. It is a new version of
    run `name`, with the curves up to `step`, if there are newer ones, if the folder cannot be
    written, or if the file is in no run folder.
    """
    folder = path.resolve().parent.parent
    if path.resolve().parent.name != "checkpoints" or not is_version(folder):
        return claim(name, logs)
    newer = [file for later, file in step_files(folder / "checkpoints") if later > step]
    if not any(map(is_complete, newer)):
        try:
            run = reopen(_relative(folder))
        except OSError as error:
            log.warning(
                tr(
                    "{folder} cannot be written ({reason}); continuing in a new version",
                    folder=folder,
                    reason=error,
                )
            )
        else:
            carry_curve(run.folder, run.folder, step)
            return run
    run = claim(folder.parent.name, logs)
    carry_curve(folder, run.folder, step)
    best = folder / "checkpoints" / BEST
    if best.is_file() and read_checkpoint(best)["azllm"]["step"] <= step:
        shutil.copyfile(best, run.checkpoints / BEST)
    return run


def newest_run(name: str | None = None, logs: Path = LOGS) -> Path:
    """The newest run folder with a checkpoint, of run `name` or of all.

    Raises ValueError if there is none.
    """
    if name is not None:
        candidates = versions(folder_of(name, logs))
    else:
        folders = [path for parent in logs.glob("*") for path in versions(parent)]
        candidates = sorted(
            folders, key=lambda path: _modified_at(path / "checkpoints"), reverse=True
        )
    for folder in candidates:
        if (folder / "checkpoints" / BEST).is_file() or step_files(folder / "checkpoints"):
            return folder
    where = folder_of(name, logs) if name is not None else logs
    message = tr(
        "no run with a checkpoint in {folder}; train one first, or give ckpt_path=FILE",
        folder=where.absolute(),
    )
    raise ValueError(_with_runs(message, logs))


def find_checkpoint(
    ckpt_path: str, name: str | None = None, logs: Path = LOGS, resume: bool = False
) -> Path:
    """The file of `ckpt_path`: "best", "last", a file, or a run folder.

    "best" is the best weights of run `name` or of the newest run, or its newest full state if it
    has none yet. "last" is the newest complete full state, of run `name` or of the newest run; with
    `resume`, a run folder stands for its newest complete full state, else for its best weights.
    Without `resume`, the path of an exported folder is returned unchanged.

    Raises ValueError if there is no such file.
    """
    if ckpt_path == "best":
        return checkpoint_of(newest_run(name, logs))
    if ckpt_path == "last":
        return _last(name, logs)
    path = Path(ckpt_path)
    if path.is_dir():
        return _in_folder(path, resume)
    if not path.is_file():
        raise ValueError(
            tr(
                "ckpt_path={path}: no such file; give a .ckpt file, a run folder, best or last",
                path=ckpt_path,
            )
        )
    return path


def _last(name: str | None, logs: Path) -> Path:
    candidates = versions(folder_of(name, logs)) if name is not None else [newest_run(logs=logs)]
    for folder in candidates:
        for _, path in valid_steps(folder / "checkpoints"):
            return path
    where = folder_of(name, logs) if name is not None else logs
    message = tr(
        "ckpt_path=last: no complete checkpoint in {folder}; to start a new run, omit ckpt_path",
        folder=where.absolute(),
    )
    raise ValueError(_with_runs(message, logs))


def _with_runs(message: str, logs: Path) -> str:
    """`message`, and the names of the runs that there are."""
    names = run_names(logs)
    if not names:
        return message
    return tr("{message}. Runs there: {names}", message=message, names=", ".join(names))


def _in_folder(folder: Path, resume: bool) -> Path:
    best = folder / "checkpoints" / BEST
    if best.is_file() and not resume:
        return best
    if (folder / HF_CONFIG).is_file() and not resume:
        return folder
    for _, newest in valid_steps(folder / "checkpoints"):
        return newest
    message = tr("ckpt_path={path}: no complete checkpoint in this folder", path=folder)
    raise ValueError(message)


def _check_logs(logs: Path) -> None:
    """Raise ValueError unless `logs` or its parent exists.

    Otherwise a drive that is not mounted would be created as a local folder.
    """
    parent = logs.absolute().parent
    if not logs.exists() and not parent.is_dir():
        raise ValueError(
            tr(
                "logs_dir={logs}: there is no folder {parent}. On Colab mount Google Drive first "
                "(from google.colab import drive; drive.mount('/content/drive')), or name another "
                "folder",
                logs=logs,
                parent=parent,
            )
        )


def _relative(folder: Path) -> Path:
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def _modified_at(path: Path) -> float:
    return path.stat().st_mtime if path.is_dir() else 0.0


def _lock(folder: Path) -> Run:
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        message = tr(
            "{folder} is in use by another process that trains this run; wait for it or stop it",
            folder=folder,
        )
        raise ValueError(message) from None
    except NotImplementedError:  # Google Drive's file system has no locks
        log.warning(
            tr(
                "{folder}: this file system does not support locks; do not resume this run in "
                "two processes at once",
                folder=folder,
            )
        )
        return Run(folder)
    return Run(folder, lock)
