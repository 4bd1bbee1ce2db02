"""python -m azllm_lightning.train: train a model, or resume a run with ckpt_path=last."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.config.run import RunConfig


def main() -> None:
    """The entrance of the command line."""
    entrance.main("train", train, RunConfig.from_mapping)


def train(config: RunConfig) -> Path:
    """Train the run of `config` (see `azllm_lightning.compose`), or resume one; returns its folder.

    With `ckpt_path`, the run's stored settings hold, and what was typed is laid over them.

    Raises ValueError for what the user can mend, and `cli.entrance.Resumable` when a signal or the
    deadline stopped the run.
    """
    # torch and Lightning are imported here, and not for --help.
    from azllm_lightning.session.session import run_session

    return run_session(config)


if __name__ == "__main__":
    main()
