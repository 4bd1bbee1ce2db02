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
    """The step after which the callback `Interrupt` ends a run, and whether it kills it."""

    step: int
    kill: bool


RUNS = {"again": None, "stopped": Interruption(4, False), "killed": Interruption(5, True)}
"""The runs that are compared with the uninterrupted baseline, and how each is interrupted."""


def main() -> None:
    """Command-line entry point."""
    entrance.main("prove_resume", prove_resume, RunConfig.from_mapping)


def prove_resume(config: RunConfig) -> None:
    """Train a few steps: twice uninterrupted, stopped and resumed, killed and resumed; compare.

    Prints PASS if all runs are identical bit for bit; else prints the first difference and exits
    with code 1. Raises ValueError if a run fails.
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
        baseline = train_run(folder, "baseline", settings)
        for label, interruption in RUNS.items():
            run = train_run(folder, label, settings, interruption)
            if (difference := first_difference(baseline, run)) is not None:
                print(tr("FAIL  {label}: {difference}", label=label, difference=difference))
                if label == "again":
                    print(tr("Two uninterrupted runs differ: try trainer.deterministic=true"))
                sys.exit(1)
            shutil.rmtree(run)  # the checkpoints of a large model take a lot of space
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
    """Train run `name` to its end, interrupted and resumed if so given; returns its folder."""
    from azllm_lightning.session.child import train_in_child

    if interruption is not None:
        target = "azllm_lightning.callbacks.interrupt.Interrupt"
        callback = {"_target_": target, **interruption._asdict()}
        interrupt = [f"+callbacks.interrupt.{key}={value}" for key, value in callback.items()]
        print(f"{name:<9}" + tr("to step {step}", step=interruption.step), flush=True)
        train_in_child(folder, name, [*settings, *interrupt], ends_early=True)
        settings = [text for text in settings if not text.startswith("init_from=")]
        settings += ["ckpt_path=last"]
    print(f"{name:<9}" + tr("to the end"), flush=True)
    train_in_child(folder, name, settings)
    return folder / "lightning_logs" / name / "version_0"


if __name__ == "__main__":
    main()
