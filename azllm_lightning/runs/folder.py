"""The run folder: claimed by one process at a time, found again by name, and continued from the file one names."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from azllm_lightning.formats.load import HF_CONFIG, checkpoint_of, read_checkpoint
from azllm_lightning.runs.checkpoint_files import BEST, step_files, sweep, valid_steps, verify
from azllm_lightning.runs.curves import carry_curve

log = logging.getLogger(__name__)

LOGS = Path("lightning_logs")
"""Where runs lie, unless logs_dir says otherwise: in this folder of the current one."""


@dataclass
class Run:
    """A claimed run folder; the lock is held while this object lives, and dies with the process."""

    folder: Path
    lock: filelock.BaseFileLock | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.parent.name

    @property
    def version(self) -> int:
        """Which run of that name."""
        return int(self.folder.name.removeprefix("version_"))

    @property
    def logs(self) -> Path:
        """The folder of all runs."""
        return self.folder.parent.parent

    @property
    def address(self) -> list[str]:
        """The settings by which a command finds this run."""
        return [f"run_name={self.name}", *([] if self.logs == LOGS else [f"logs_dir={self.logs}"])]

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def release(self) -> None:
        """Let another process have the folder."""
        if self.lock is not None:
            self.lock.release()


def claim(name: str, logs: Path = LOGS) -> Run:
    """Make and lock the next version folder of run `name`; two processes never get the same one."""
    check_name(name)
    version = (
        max((int(path.name.removeprefix("version_")) for path in versions(logs / name)), default=-1)
        + 1
    )
    while True:
        folder = logs / name / f"version_{version}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            version += 1
            continue
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written ({error}): start from a folder that can"
            ) from None
        run = _lock(folder)
        run.checkpoints.mkdir()
        return run


def reopen(folder: Path) -> Run:
    """Lock an existing run folder to go on in it; OSError where it cannot be written, ValueError where it is in use."""
    run = _lock(folder)
    run.checkpoints.mkdir(exist_ok=True)
    sweep(run.checkpoints)
    return run


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can name a folder on every system."""
    if (
        not name
        or name in (".", "..")
        or re.search(r'[<>:"/\\|?*\x00-\x1f]', name)
        or name != name.strip(" .")
    ):
        raise ValueError(
            f'run_name={name!r} cannot name a folder: leave out < > : " / \\ | ? * and dots at the ends'
        )


def check_logs(logs: str) -> None:
    """Raise ValueError unless `logs` or the folder around it is there: a drive that is not mounted is not made up."""
    if not Path(logs).exists() and not Path(logs).absolute().parent.is_dir():
        raise ValueError(
            f"logs_dir={logs}: there is no folder {Path(logs).absolute().parent}. On Colab mount Google Drive first "
            "(from google.colab import drive; drive.mount('/content/drive')), or name another folder"
        )


def versions(folder: Path) -> list[Path]:
    """The run folders in `folder` (lightning_logs/NAME), newest version first."""
    found = (path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")), reverse=True)


def newest_run(name: str | None = None, logs: Path = LOGS) -> Path:
    """The newest run folder with a checkpoint, of run `name` or of all; ValueError if there is none."""
    if name is not None:
        candidates = versions(logs / name)
    else:
        folders = [path for parent in logs.glob("*") for path in versions(parent)]
        candidates = sorted(folders, key=lambda path: _age(path / "checkpoints"), reverse=True)
    for folder in candidates:
        if (folder / "checkpoints" / BEST).is_file() or step_files(folder / "checkpoints"):
            return folder
    where = logs / name if name is not None else logs
    raise ValueError(
        f"no run with a checkpoint under {where.absolute()}; train one first, or give ckpt_path=FILE"
    )


def find_checkpoint(
    ckpt_path: str, name: str | None = None, logs: Path = LOGS, resume: bool = False
) -> Path:
    """The file that `ckpt_path` means: "best", "last", a file, or a run folder; an exported folder means itself.

    "best" is the newest run's, or its newest full state while it has no best yet. "last" is the newest full state, of
    run `name` or of the newest run, that loads whole; with `resume`, a run folder means that too, else its best
    weights. ValueError with a way out where there is no such file.
    """
    if ckpt_path == "best":
        return checkpoint_of(newest_run(name, logs))
    if ckpt_path == "last":
        for folder in versions(logs / name) if name is not None else [newest_run(logs=logs)]:
            for _, path in valid_steps(folder / "checkpoints"):
                return path
        where = logs / name if name is not None else logs
        raise ValueError(
            f"ckpt_path=last: no whole checkpoint under {where.absolute()}; to start anew leave out ckpt_path"
        )
    path = Path(ckpt_path)
    if path.is_dir():
        best = path / "checkpoints" / BEST
        if best.is_file() and not resume:
            return best
        if (path / HF_CONFIG).is_file() and not resume:
            return path
        for _, newest in valid_steps(path / "checkpoints"):
            return newest
        raise ValueError(f"ckpt_path={ckpt_path}: no whole checkpoint in this folder")
    if not path.is_file():
        raise ValueError(
            f"ckpt_path={ckpt_path}: no such file; give a .ckpt file, a run folder, best or last"
        )
    return path


def load_resumable(path: Path) -> dict[str, Any]:
    """The verified checkpoint at `path`; ValueError if it holds weights only."""
    checkpoint = verify(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights only, so training cannot resume from it exactly: use ckpt_path=last, "
            f"or start a new run from these weights with init_from={path}"
        )
    return checkpoint


def open_for_resume(path: Path, step: int, name: str, logs: Path = LOGS) -> Run:
    """The run folder in which training goes on from the checkpoint `path` of optimizer step `step`.

    The folder that the file lies in, if it is the newest there; a new version of run `name` with the curve up to
    `step`, if newer ones exist, the folder cannot be written, or the file lies alone.
    """
    folder = path.resolve().parent.parent
    if not (
        path.resolve().parent.name == "checkpoints" and re.fullmatch(r"version_\d+", folder.name)
    ):
        return claim(name, logs)
    newer = [
        later for later, file in step_files(folder / "checkpoints") if later > step and _loads(file)
    ]
    if not newer:
        try:
            run = reopen(_relative(folder))
        except OSError as error:
            log.warning(f"{folder} cannot be written ({error}); going on in a new version")
        else:
            carry_curve(run.folder, run.folder, step)
            return run
    run = claim(folder.parent.name, logs)
    carry_curve(folder, run.folder, step)
    best = folder / "checkpoints" / BEST
    if best.is_file() and read_checkpoint(best)["azllm"]["step"] <= step:
        shutil.copyfile(best, run.checkpoints / BEST)
    return run


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """`write_text` of indented JSON, letters of all alphabets as they are."""
    write_text(path, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _loads(path: Path) -> bool:
    try:
        verify(path)
    except ValueError:
        return False
    return True


def _relative(folder: Path) -> Path:
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.is_dir() else 0.0


def _lock(folder: Path) -> Run:
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is in use by another process that trains this run; wait for it or stop it"
        ) from None
    except NotImplementedError:  # Google Drive's file system has no locks
        log.warning(
            f"{folder}: this file system has no locks; do not resume this run twice at once"
        )
        return Run(folder)
    return Run(folder, lock)
