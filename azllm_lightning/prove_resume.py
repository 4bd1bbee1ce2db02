"""python -m azllm_lightning.prove_resume: check that resumed runs equal uninterrupted ones."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import ProveResumeConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("prove_resume", prove_resume, ProveResumeConfig.from_mapping)


def prove_resume(config: ProveResumeConfig) -> None:
    """Train a few steps: twice uninterrupted, stopped and resumed, killed and resumed; compare.

    Prints PASS if all runs are identical bit for bit; else prints the first difference and exits
    with code 1. With `control`, the restore of a stopped run is broken on purpose instead, and it
    is PASS if that makes a difference. Raises ValueError if a run fails.
    """
    use_language(config.lang)
    from azllm_lightning.data.pipeline import prepare

    if config.ckpt_path is not None:
        raise ValueError(
            tr(
                "ckpt_path={ckpt_path}: prove_resume trains its own runs; omit ckpt_path",
                ckpt_path=config.ckpt_path,
            )
        )
    settings = [pair for pair in config.overrides if pair.partition("=")[0] != "control"]
    settings += [f"data.dir={prepare(config.data).absolute()}"]
    settings += [f"data.val_windows={2 * config.trainer.global_batch_size}"]
    settings += config.other_models()
    with tempfile.TemporaryDirectory(prefix="prove_resume_") as name:
        prove = _prove_control if config.control else _prove
        prove(Path(name), settings, config.schedule.branches)


def _prove(folder: Path, settings: list[str], branches: int) -> None:
    from azllm_lightning.runs.compare import first_difference
    from azllm_lightning.session.proof import StepLost, proof_of, train_run

    proof = proof_of(branches)
    settings = [*settings, *proof.settings]
    baseline = train_run(folder, "baseline", settings)
    for label, interruption in proof.runs.items():
        try:
            run = train_run(folder, label, settings, interruption)
        except StepLost as loss:
            _fail(tr("FAIL  {label}: {difference}", label=label, difference=loss))
        if (difference := first_difference(baseline, run)) is not None:
            lines = [tr("FAIL  {label}: {difference}", label=label, difference=difference)]
            if label == "again":
                lines.append(tr("Two uninterrupted runs differ: try trainer.deterministic=true"))
            _fail(*lines)
        shutil.rmtree(run)  # the checkpoints of a large model take a lot of space
    message = tr(
        "PASS  {steps} steps uninterrupted, stopped and resumed, killed and resumed: "
        "identical bit for bit",
        steps=proof.steps,
    )
    print(message)


def _prove_control(folder: Path, settings: list[str], branches: int) -> None:
    from azllm_lightning.runs.compare import first_difference
    from azllm_lightning.session.proof import BREAK_RESTORE, proof_of, train_run

    proof = proof_of(branches)
    settings = [*settings, *proof.settings]
    baseline = train_run(folder, "baseline", settings)
    broken = train_run(folder, "control", settings, proof.stop, when_resumed=BREAK_RESTORE)
    difference = first_difference(baseline, broken)
    if difference is None:
        _fail(tr("FAIL  control: a restore without the optimizer's moments was not noticed"))
    message = tr(
        "PASS  control: a restore without the optimizer's moments is noticed ({difference})",
        difference=difference,
    )
    print(message)


def _fail(*lines: str) -> NoReturn:
    print("\n".join(lines))
    sys.exit(1)


if __name__ == "__main__":
    main()
