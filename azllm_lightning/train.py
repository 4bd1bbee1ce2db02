"""python -m azllm_lightning.train: train a model, or resume a run with ckpt_path=last."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

from azllm_lightning.cli import entrance
from azllm_lightning.config.run import RunConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("train", train, RunConfig.from_mapping, best_val_loss)


def train(config: RunConfig) -> Path:
    """Train the run of `config` (see `azllm_lightning.compose`), or resume one; returns its folder.

    With `ckpt_path`, the run's stored settings are used, overridden by those typed now.

    Raises ValueError for what the user can fix, and `cli.entrance.Resumable` when a signal or the
    deadline stopped the run.
    """
    # Imported here, so that --help does not load torch and Lightning.
    from azllm_lightning.session.session import run_session

    return run_session(config)


def best_val_loss(folder: Path) -> float:
    """The lowest val_loss of the run in `folder`, for sweepers: inf where there is none."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    best = summary["best_val_loss"]
    return math.inf if best is None else float(best)


class _CallableModule(ModuleType):
    """Makes `azllm_lightning.train` callable, whether it is the function or this module.

    `python -m azllm_lightning.train` needs a module of that name, and importing the module replaces
    the function in the package.
    """

    def __call__(self, config: RunConfig) -> Path:
        return train(config)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    main()
