"""python -m azllm_lightning.prove_resume: check that resumed runs equal uninterrupted ones."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.run import RunConfig

STEPS = 8
TRAINER = (
    f"max_steps={STEPS} val_every_steps=4 checkpoint_every_steps=3 log_every_steps=1 deadline=null"
)


class Interruption(NamedTuple):
    """Where the callback `Interrupt` ends a run, and whether by a kill."""

    step: int
    kill: bool


RUNS = {"again": None, "stopped": Interruption(4, False), "killed": Interruption(5, True)}
"""The runs that are compared with a straight one, and how they are interrupted."""


def main() -> None:
    """The entrance of the command line."""
    entrance.main("prove_resume", prove_resume, RunConfig.from_mapping)


def prove_resume(config: RunConfig) -> None:
    """Train a few steps: straight twice, stopped and resumed, killed and resumed; then compare.

    Prints PASS if all runs are equal bit for bit; else prints what differs first and exits with
    code 1. Raises ValueError if a run fails.
    """
    use_language(config.lang)
    from azllm_lightning.data.pipeline import prepare
    from azllm_lightning.runs.compare import first_difference

    if config.ckpt_path is not None:
        raise ValueError(
            tr(
                "ckpt_path={ckpt_path}: prove_resume trains its own runs; omit ckpt_path",
                ckpt_path=config.ckpt_path,
            )
        )
    settings = [*config.overrides, *(f"trainer.{pair}" for pair in TRAINER.split())]
    settings += [f"data.dir={prepare(config.data).absolute()}"]
    settings += [f"data.val_windows={2 * config.trainer.global_batch_size}"]
    if config.init_from is not None:
        settings += [f"init_from={Path(config.init_from).absolute()}"]
    with tempfile.TemporaryDirectory(prefix="prove_resume_") as name:
        folder = Path(name)
        straight = train_run(folder, "straight", settings)
        for label, interruption in RUNS.items():
            run = train_run(folder, label, settings, interruption)
            if (difference := first_difference(straight, run)) is not None:
                print(tr("FAIL  {label}: {difference}", label=label, difference=difference))
                if label == "again":
                    print(tr("Two uninterrupted runs differ: try trainer.deterministic=true"))
                sys.exit(1)
            shutil.rmtree(run)  # the checkpoints of a large model need much room
    print(
        tr(
            "PASS  {steps} steps uninterrupted, stopped and resumed, killed and resumed: "
            "identical bit for bit",
            steps=STEPS,
        )
    )


def train_run(
    folder: Path, name: str, settings: list[str], interruption: Interruption | None = None
) -> Path:
    """The folder of run `name`, trained to its end; interrupted and resumed on the way if asked."""
    from azllm_lightning.session.child import train_in_child

    if interruption is not None:
        target = "azllm_lightning.callbacks.interrupt.Interrupt"
        callback = {"_target_": target, **interruption._asdict()}
        added = [f"+callbacks.interrupt.{key}={value}" for key, value in callback.items()]
        print(f"{name:<9}" + tr("to step {step}", step=interruption.step), flush=True)
        train_in_child(folder, name, [*settings, *added], ends_early=True)
        settings = [*settings, "ckpt_path=last"]
    print(f"{name:<9}" + tr("to the end"), flush=True)
    train_in_child(folder, name, settings)
    return folder / "lightning_logs" / name / "version_0"


if __name__ == "__main__":
    main()
