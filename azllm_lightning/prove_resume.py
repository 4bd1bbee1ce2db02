"""python -m azllm_lightning.prove_resume: show on this machine that a resumed run is the uninterrupted one."""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azllm_lightning.cli import entrance as cli

STEPS = 8
SETTINGS = (
    f"max_steps={STEPS} val_every_steps=4 checkpoint_every_steps=3 log_every_steps=1 deadline=null"
)
MEASURED = {"tokens_per_sec", "mfu", "peak_memory_gb"}
"""Scalars that measure time or memory."""
RUNS = {"again": None, "stopped": (4, False), "killed": (5, True)}
"""The runs that are compared to the straight one, and how `Interrupt` ends them: the step, and whether it kills."""


def main() -> None:
    """The console entrance."""
    cli.main("prove_resume", prove_resume)


def prove_resume(config: dict[str, Any], overrides: list[str] | None = None) -> None:
    """Train a few steps of the run that `overrides` describe: straight twice, stopped and resumed, killed and resumed.

    Prints PASS where all end bit for bit the same; else says what differs first, and leaves with exit code 1.
    Raises ValueError where a run fails.
    """
    from azllm_lightning.data.pipeline import prepare
    from azllm_lightning.session.build import check

    if config["ckpt_path"] is not None:
        raise ValueError(
            f"ckpt_path={config['ckpt_path']}: prove_resume trains runs of its own; leave ckpt_path out"
        )
    data = check(config).data
    settings = [*(overrides or []), *(f"trainer.{pair}" for pair in SETTINGS.split())]
    settings += [f"data.dir={prepare(data).absolute()}", f"data.val_windows={2 * data.batch_size}"]
    if config["init_from"] is not None:
        settings += [f"init_from={Path(config['init_from']).absolute()}"]
    with tempfile.TemporaryDirectory(prefix="prove_resume_") as name:
        folder = Path(name)
        straight = _train(folder, "straight", settings)
        for label, interrupt in RUNS.items():
            run = _train(folder, label, settings, interrupt)
            if (difference := first_difference(straight, run)) is not None:
                print(f"FAIL  {label}: {difference}")
                if label == "again":
                    print(
                        "Two uninterrupted runs differ already: try again with trainer.deterministic=true"
                    )
                sys.exit(1)
            shutil.rmtree(run)  # a large model's checkpoints need not be on the disk four times
    print(
        f"PASS  {STEPS} steps straight, stopped and resumed, killed and resumed: the same bit for bit"
    )


def first_difference(left: Path, right: Path) -> str | None:
    """Where two run folders part: first in a logged value, by step, else in a full state that both have; None if never.

    Values are compared as text, since nan is not nan.
    """
    import torch

    from azllm_lightning.formats.load import read_checkpoint
    from azllm_lightning.runs.checkpoint_files import step_files
    from azllm_lightning.runs.curves import read_scalars

    curves = [read_scalars(left), read_scalars(right)]
    points = {
        (step, tag) for curve in curves for tag in curve.keys() - MEASURED for step in curve[tag]
    }
    for step, tag in sorted(points):
        ours, theirs = (curve.get(tag, {}).get(step) for curve in curves)
        if str(ours) != str(theirs):
            return f"step {step}: {tag} is {ours} in {left.parent.name}, {theirs} in {right.parent.name}"
    files = [dict(step_files(folder / "checkpoints")) for folder in (left, right)]
    for step in sorted(files[0].keys() & files[1].keys()):
        saved = [read_checkpoint(file[step]) for file in files]
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            there = dict(_leaves(saved[1][part], part))
            for name, here in _leaves(saved[0][part], part):
                if not (torch.equal if isinstance(here, torch.Tensor) else operator.eq)(
                    here, there[name]
                ):
                    return f"step {step}: {name} differs in {files[0][step].name}"
    return None


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{name}/{key}")


def _train(
    folder: Path, name: str, settings: list[str], interrupt: tuple[int, bool] | None = None
) -> Path:
    """The folder of run `name`, trained to its end; interrupted on the way and resumed, if asked."""
    if interrupt:
        made = "_target_=azllm_lightning.callbacks.interrupt.Interrupt step={} kill={}".format(
            *interrupt
        ).split()
        typed = [f"+callbacks.interrupt.{pair}" for pair in made]
        _session(folder, name, [*settings, *typed], f"to step {interrupt[0]}", ends_early=True)
    _session(folder, name, [*settings, *(["ckpt_path=last"] if interrupt else [])], "to the end")
    return folder / "lightning_logs" / name / "version_0"


def _session(
    folder: Path, name: str, settings: list[str], told: str, ends_early: bool = False
) -> None:
    print(f"{name:<9}{told}", flush=True)
    command = [sys.executable, "-m", "azllm_lightning.train", *settings, f"run_name={name}"]
    # The user's own callbacks lie where the user is.
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    with (folder / "output.txt").open("w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = child.wait()
        finally:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(
                        child.pid, signal.SIGKILL
                    )  # the other processes of a run that was killed
        output.seek(0)
        if code in (1, cli.EXIT_USAGE) or ends_early == (code == cli.EXIT_DONE):
            raise ValueError(f"the run {name!r} ended with code {code}:\n{output.read()[-3000:]}")


if __name__ == "__main__":
    main()
