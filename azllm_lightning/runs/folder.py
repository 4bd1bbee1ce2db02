"""Run folders: creating and locking them, finding them by name, continuing in them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from azllm_lightning.cli.messages import and_then, tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.run import check_run_name
from azllm_lightning.disk.lock import SILENT_SECONDS, Lock, State
from azllm_lightning.formats.load import checkpoint_of, read_checkpoint
from azllm_lightning.runs.atomic import replacing, sweep
from azllm_lightning.runs.checkpoint_files import BEST, is_complete, step_files, valid_steps
from azllm_lightning.runs.curves import carry_curve
from azllm_lightning.runs.model_paths import find_model
from azllm_lightning.runs.paths import (
    LOCK,
    LOGS,
    METRICS,
    folder_of,
    is_version,
    run_names,
    version_of,
    versions,
)
from azllm_lightning.runs.table import carry_table

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run folder, locked by this process until `release` or its end."""

    folder: Path
    lock: Lock | None = field(default=None, repr=False)
    is_new: bool = False
    """Whether this session created the folder."""
    has_trained: bool = False
    """Whether this session completed an optimizer step."""

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
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def config_file(self) -> Path:
        """Its settled config as YAML."""
        return self.folder / ".hydra" / "config.yaml"

    def release(self, failed: bool = False) -> None:
        """Let another process use the folder.

        If this session created it and `failed` before its first step, the folder is removed: there
        is nothing to resume, to look at or to compare.
        """
        may_discard = failed and self.is_new and not self.has_trained
        discard = may_discard and not step_files(self.checkpoints)
        if self.lock is not None:
            self.lock.release()
        if discard:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it has other versions
                self.folder.parent.rmdir()

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """`release` if the block does not come to its end: a notebook lives on after Ctrl+C."""
        try:
            yield
        except BaseException:
            self.release(failed=True)
            raise


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
                reason=system_reason(error),
            )
            raise OSError(message) from None
        run = _lock(folder)
        run.is_new = True
        with run.released_on_error():
            run.checkpoints.mkdir()
        return run


def reopen(folder: Path) -> Run:
    """Lock an existing run folder to continue in it.

    Raises OSError if it cannot be written, and ValueError if another process uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)  # an attempt that failed at once has removed it
    run = _lock(folder)
    with run.released_on_error():
        run.checkpoints.mkdir(exist_ok=True)
        for place in (run.folder, run.config_file.parent, run.checkpoints):
            sweep(place)
    return run


def open_for_resume(path: Path, step: int, name: str, logs: Path = LOGS) -> Run:
    """The run folder in which training continues from the checkpoint `path` of optimizer step
    `step`.

    This is the folder that the file is in, if the file is the newest there. It is a new version,
    with the curves up to `step` and the best weights until then, if there are newer ones, if the
    folder cannot be written, or if it has been renamed. A file in no run folder comes alone.
    """
    real = path.resolve()
    if real.parent.name != "checkpoints":
        log.warning(
            tr(
                "{path} is in no run folder: its curve and its best weights do not come along",
                path=path,
            )
        )
        return claim(name, logs)
    folder = real.parent.parent
    if _goes_on_in_place(real, step):
        try:
            run = reopen(relative_to_current(folder))
        except OSError as error:
            log.warning(
                tr(
                    "{folder} cannot be written ({reason}); continuing in a new version",
                    folder=folder,
                    reason=system_reason(error),
                )
            )
        else:
            with run.released_on_error():
                carry_curve(run.folder, run.folder, step)
            return run
    run = claim(folder.parent.name if is_version(folder) else name, logs)
    with run.released_on_error():
        carry_curve(folder, run.folder, step)
        _carry_best(real.parent / BEST, run, step)
        with contextlib.suppress(OSError):  # nobody may read it
            carry_table(folder / METRICS, run.folder / METRICS, step)
    return run


def check_not_in_use(path: Path, step: int) -> None:
    """Raise ValueError if `open_for_resume` would, because another process trains the run, before
    anything else is said of it.
    """
    real = path.resolve()
    folder = relative_to_current(real.parent.parent)
    if _goes_on_in_place(real, step) and Lock(folder / LOCK).is_held():
        with contextlib.suppress(OSError):  # it cannot be written: a new version continues it
            _lock(folder).release()


def _goes_on_in_place(path: Path, step: int) -> bool:
    """Whether training goes on in the run folder of the checkpoint `path`: it is the newest."""
    if path.parent.name != "checkpoints" or not is_version(path.parent.parent):
        return False
    newer = [file for later, file in step_files(path.parent) if later > step]
    return not any(map(is_complete, newer))


def _carry_best(best: Path, run: Run, step: int) -> None:
    """Copy the best weights `best` into `run` if they are from `step` or before."""
    if not best.is_file():
        return
    try:
        if read_checkpoint(best)["azllm"]["step"] <= step:
            with best.open("rb") as source, replacing(run.checkpoints / BEST) as file:
                shutil.copyfileobj(source, file)
    except (OSError, ValueError) as error:
        log.warning(
            tr(
                "the best weights until now do not come along ({reason}); from here on the best "
                "are searched from scratch",
                reason=system_reason(error),
            )
        )


def newest_run(name: str | None = None, logs: Path = LOGS) -> Path:
    """The newest run folder with a checkpoint, of run `name` or of all.

    Raises ValueError if there is none.
    """
    if name is not None:
        candidates = _versions_of(name, logs)
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
    raise ValueError(with_runs(message, logs))


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
    return find_model("ckpt_path", ckpt_path, logs, resume)


def _last(name: str | None, logs: Path) -> Path:
    candidates = [newest_run(logs=logs)] if name is None else _versions_of(name, logs)
    for folder in candidates:
        for _, path in valid_steps(folder / "checkpoints"):
            return path
    where = folder_of(name, logs) if name is not None else candidates[0]
    message = tr(
        "ckpt_path=last: no complete checkpoint in {folder}; to start a new run, omit ckpt_path",
        folder=where.absolute(),
    )
    if name is not None:
        raise ValueError(with_runs(message, logs))
    others = [other for other in run_names(logs) if _has_states(other, logs, where)]
    if others:
        names = ", ".join(others)
        hint = tr("Other runs have one; resume them with run_name=NAME: {names}", names=names)
        message = and_then(message, hint)
    raise ValueError(message)


def _versions_of(name: str, logs: Path) -> list[Path]:
    """The run folders that `name` means: that one of NAME/version_K, as `azllm runs` has it."""
    folder = folder_of(name, logs)
    return [folder] if is_version(folder) else versions(folder)


def _has_states(name: str, logs: Path, but: Path) -> bool:
    """Whether a version of run `name` other than `but` has a full state."""
    folders = (folder for folder in versions(logs / name) if folder != but)
    return any(step_files(folder / "checkpoints") for folder in folders)


def with_runs(message: str, logs: Path) -> str:
    """`message`, and the names of the runs that there are."""
    names = run_names(logs)
    if not names:
        return message
    return and_then(message, tr("Runs there: {names}", names=", ".join(names)))


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


def relative_to_current(folder: Path) -> Path:
    """`folder` as a path from the current folder, if it is inside that."""
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def _modified_at(path: Path) -> float:
    return path.stat().st_mtime if path.is_dir() else 0.0


def _lock(folder: Path) -> Run:
    """Lock a run folder.

    Raises ValueError if another process trains the run, and OSError if the folder is not writable.
    """
    lock = Lock(folder / LOCK)
    state = lock.try_acquire()
    if state is State.UNKNOWN and lock.holder:
        log.warning(
            tr(
                "{folder} is marked as in use by {holder}: watching for up to {seconds:.0f} s "
                "whether that is still true",
                folder=folder,
                holder=lock.holder,
                seconds=SILENT_SECONDS,
            )
        )
    while state is State.UNKNOWN:
        time.sleep(0.5)
        state = lock.try_acquire()
    if state is State.HELD:
        return Run(folder, lock)
    message = tr(
        "{folder} is in use by another process that trains this run; wait for it or stop it",
        folder=folder,
    )
    raise ValueError(and_then(message, lock.way_out) if lock.holder else message)
