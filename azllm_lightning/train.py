"""python -m azllm_lightning.train: compose, validate, build, fit; or resume with ckpt_path=last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from azllm_lightning.cli import entrance as cli

if TYPE_CHECKING:
    from pathlib import Path


def main() -> None:
    """The console entrance."""
    cli.main("train", train)


def train(config: dict[str, Any], overrides: list[str] | None = None) -> Path:
    """Train (or resume, with config["ckpt_path"]) a run; returns its folder.

    `config` is a composed train config (`azllm_lightning.compose`), `overrides` what was typed on top of the defaults:
    on a resume they are laid over the run's stored config.

    Raises ValueError for what the user can mend, and `cli.Resumable` when a signal or the deadline stopped the run.
    """
    from azllm_lightning.session.session import (
        run_session,  # torch and Lightning are imported here, not for --cfg or --help
    )

    return run_session(config, overrides or [])


if __name__ == "__main__":
    main()
