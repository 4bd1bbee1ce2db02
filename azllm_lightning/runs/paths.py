"""The paths of run folders: lightning_logs/NAME/version_K."""

from __future__ import annotations

import re
from pathlib import Path

LOGS = Path("lightning_logs")
"""The folder of all runs, unless logs_dir names another."""


def versions(folder: Path) -> list[Path]:
    """The run folders in `folder` (lightning_logs/NAME), newest version first."""
    return sorted(filter(is_version, folder.glob("version_*")), key=version_of, reverse=True)


def version_of(folder: Path) -> int:
    """The number in the name of a run folder."""
    return int(folder.name.removeprefix("version_"))


def is_version(folder: Path) -> bool:
    """Whether a folder's name is that of a run folder."""
    return re.fullmatch(r"version_\d+", folder.name) is not None
