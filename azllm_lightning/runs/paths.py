"""The paths of run folders, lightning_logs/NAME/version_K, and the settings that name them."""

from __future__ import annotations

import re
from pathlib import Path
from unicodedata import normalize

LOGS = Path("lightning_logs")
"""The folder of all runs, unless logs_dir names another."""

METRICS = "metrics.csv"
"""The curves of a run as a table, with logger=csv."""

LOCK = ".lock"
"""The file in a run folder that is locked while the run trains."""

REPORT = "report.html"
"""The page of a run in its folder; that of several is in the folder of all runs."""


def folder_of(name: str, logs: Path) -> Path:
    """The folder of run `name`, which may exist under the decomposed form of that name."""
    decomposed = logs / normalize("NFD", name)
    return decomposed if decomposed.is_dir() and not (logs / name).is_dir() else logs / name


def run_names(logs: Path) -> list[str]:
    """The names of the runs in `logs`."""
    return sorted(folder.name for folder in logs.glob("*") if versions(folder))


def versions(folder: Path) -> list[Path]:
    """The run folders in `folder` (lightning_logs/NAME), newest version first."""
    return sorted(filter(is_version, folder.glob("version_*")), key=version_of, reverse=True)


def version_of(folder: Path) -> int:
    """The number in the name of a run folder."""
    return int(folder.name.removeprefix("version_"))


def is_version(folder: Path) -> bool:
    """Whether a folder's name is that of a run folder."""
    return re.fullmatch(r"version_\d+", folder.name) is not None


def address_of(folder: Path) -> list[str]:
    """The settings by which a command finds the best weights of a run.

    A name alone means the newest version, so that an older one is named by its folder.
    """
    return name_address_of(folder) if _is_newest(folder) else [f"ckpt_path={folder}"]


def resume_address_of(folder: Path) -> list[str]:
    """The settings by which `train` resumes a run from its newest full state."""
    address = address_of(folder)
    return [*address, "ckpt_path=last"] if _is_newest(folder) else address


def name_address_of(folder: Path) -> list[str]:
    """The settings by which `report`, which takes NAME/version_K too, finds a run."""
    name = folder.absolute().parent.name
    if not _is_newest(folder):
        name = f"{name}/{folder.name}"
    logs = folder.parent.parent
    return [f"run_name={name}", *([] if logs == LOGS else [f"logs_dir={logs}"])]


def _is_newest(folder: Path) -> bool:
    """Whether no run of the same name has a higher version, by now."""
    newest = versions(folder.absolute().parent)[:1]
    return all(version_of(found) <= version_of(folder) for found in newest)
