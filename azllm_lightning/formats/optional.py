"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any

from azllm_lightning.cli.messages import tr


def import_optional(module: str) -> Any:
    """Import a module of a package that is not among the dependencies.

    Raises ValueError with the command that installs the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            tr(
                "this needs the package {package} ({error}): pip install {package}",
                package=package,
                error=error,
            )
        ) from None
