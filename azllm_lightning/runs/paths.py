"""The paths of run folders: lightning_logs/NAME/version_K."""

from __future__ import annotations

import re
from pathlib import Path
from unicodedata import normalize

LOGS = Path("lightning_logs")
"""The folder of all runs, unless logs_dir names another."""


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
