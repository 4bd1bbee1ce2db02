"""A few real steps of an experiment, and a resume that must equal them."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.machine.products import TYPE_OF_PRECISION
from azllm_lightning.machine.sample import Sample
from azllm_lightning.runs.checkpoint_files import step_path
from azllm_lightning.runs.compare import first_difference
from azllm_lightning.session.child import resuming, train_in_child
from azllm_lightning.training import hardware

MEASURED = "measured"
RESUMED = "resumed"
BASELINE = "baseline"
"""Names of the runs in the temporary folder."""


@dataclass(frozen=True)
class Experiment:
    """An experiment as typed in `overrides`, with its shards in `data` and its runs in `folder`."""

    config: RunConfig
    overrides: tuple[str, ...]
    device: str
    shape: GPTConfig
    data: Path
    folder: Path

    def settings(self, sample: Sample, name: str) -> list[str]:
        """The overrides of run `name`: the experiment's own, and what makes it a sample of it."""
        watch = {
            "_target_": "azllm_lightning.machine.stopwatch.Stopwatch",
            "stop_after": sample.steps,
            "path": self.times_file(name).name,  # that folder is the current one of the run
        }
        values = {
            "trainer.max_steps": max(self.config.trainer.max_steps, sample.steps + 1),
            "trainer.deadline": "null",
            "trainer.log_every_steps": 1,
            "trainer.val_every_steps": 1_000_000,
            "trainer.checkpoint_every_steps": sample.half,
            "trainer.checkpoint_every_minutes": "null",
            "trainer.global_batch_size": sample.sequences,
            "data.dir": self.data,
            "data.val_windows": 2,
            "callbacks.samples.max_new_tokens": 0,
            "logger.tensorboard": "true",
            "logger.csv": "false",
            "logger.wandb": "null",
            "logger.trackio": "null",
            "logs_dir": "lightning_logs",
            **{f"+callbacks.stopwatch.{key}": value for key, value in watch.items()},
        }
        if sample.micro_batch_size is not None:
            values["trainer.micro_batch_size"] = sample.micro_batch_size
        if self.device == "cpu":
            values["trainer.accelerator"] = "cpu"
        sample_of = [f"{key}={value}" for key, value in values.items()]
        return [*self.overrides, *sample_of, *self.config.other_models()]

    def times_file(self, name: str) -> Path:
        """Where run `name` writes its times."""
        return self.folder / f"{name}.json"

    def run_folder(self, name: str) -> Path:
        """The folder of run `name`."""
        return self.folder / "lightning_logs" / name / "version_0"


def measure_steps(
    experiment: Experiment, sample: Sample, products: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Train the sample in a process of its own; speeds, memory, and what `auto` chose.

    With fewer sequences per step than the run has, its speed is computed from the times of a
    micro-batch and of the optimizer. Raises ValueError if the run fails, and TimeoutError if it
    takes more than `seconds`.
    """
    started = time.perf_counter()
    train_in_child(
        experiment.folder, MEASURED, experiment.settings(sample, MEASURED), True, seconds
    )
    wall_seconds = time.perf_counter() - started
    folder = experiment.run_folder(MEASURED)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stored = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    times = json.loads(experiment.times_file(MEASURED).read_text(encoding="utf-8"))
    settled = RunConfig.from_mapping(stored)
    devices = hardware.num_devices(settled.trainer.devices, experiment.device)
    batch = experiment.config.trainer.global_batch_size
    block_size = settled.data.block_size
    micro = settled.trainer.micro_batch_size
    assert isinstance(micro, int)
    step = statistics.median(times["seconds"]["step"][1:])
    if sample.sequences == batch:
        rate = summary["tokens_per_sec"]
        full_step = batch * block_size / rate
    else:
        per_sequence = statistics.median(times["seconds"]["micro_batch"][1:]) / (micro * devices)
        full_step = batch * per_sequence + statistics.median(times["seconds"]["optimizer"][1:])
        rate = batch * block_size / full_step
    flops = rate * settled.shape.flops_per_token() / devices
    number_type = TYPE_OF_PRECISION[settled.trainer.precision]
    measured = products.get(number_type, {}).get("flops_per_second")
    vendor = vendor_flops(experiment.device, settled.trainer.precision)
    checkpoint = step_path(folder / "checkpoints", sample.steps)
    return {
        "run_name": experiment.config.run_name,
        "device": experiment.device,
        "devices": devices,
        "num_params": summary["num_params"],
        "flops_per_token": settled.shape.flops_per_token(),
        "steps": sample.steps,
        "sequences_per_step": sample.sequences,
        "global_batch_size": batch,
        "micro_batch_size": micro,
        "block_size": block_size,
        "vocab_size": settled.shape.vocab_size,
        "precision": settled.trainer.precision,
        "compile": settled.trainer.compile,
        "optimizer": settled.optimizer.name,
        "first_step_seconds": times["seconds"]["step"][0],
        "step_seconds": step,
        "optimizer_seconds": statistics.median(times["seconds"]["optimizer"][1:]),
        "cpu_share": cpu_share(times) if experiment.device == "cpu" else None,
        "others_share": times["others_share"] if experiment.device == "cpu" else None,
        "startup_seconds": wall_seconds - sum(times["seconds"]["step"]),
        "tokens_per_second": rate,
        "is_computed": sample.sequences != batch,
        "model_flops_per_second": flops,
        "mfu_of_products": None if measured is None else flops / measured,
        "vendor_flops_per_second": vendor,
        "mfu_of_vendor": None if vendor is None else flops / vendor,
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "checkpoint_bytes": checkpoint.stat().st_size if checkpoint.is_file() else None,
        "non_finite_steps": times["non_finite_steps"],
        "max_steps": experiment.config.trainer.max_steps,
        "run_hours": experiment.config.trainer.max_steps * full_step / 3600,
    }


def cpu_share(times: dict[str, Any]) -> float:
    """The processor time of the steps but the first, as a share of what their threads could have
    had: below 1 if other programs took some of it, or if threads had to wait.
    """
    had = sum(times["cpu_seconds"][1:])
    return float(had / (times["threads"] * sum(times["seconds"]["step"][1:])))


def proof_seconds(experiment: Experiment, sample: Sample, steps: dict[str, Any]) -> float:
    """What `prove_resume_exact` should take, after `measure_steps` found `steps`."""
    runs = 1 if experiment.device == "cpu" else 2
    trained = sample.half if runs == 1 else sample.half + sample.steps
    first = steps["first_step_seconds"] - steps["step_seconds"]  # compiled again
    return float(
        runs * (steps["startup_seconds"] + max(0.0, first)) + trained * steps["step_seconds"]
    )


def prove_resume_exact(experiment: Experiment, sample: Sample, seconds: float) -> dict[str, Any]:
    """Continue from the state of the step in the middle, in a new process, as after a kill; compare
    with the run that went through.

    On a GPU both runs have trainer.deterministic=true. Raises ValueError if a run fails, and
    TimeoutError if they take more than `seconds`.
    """
    end = time.monotonic() + seconds
    deterministic = experiment.device == "cuda" or experiment.config.trainer.deterministic
    extra = ["trainer.deterministic=true"] if deterministic else []
    name = MEASURED
    if deterministic and not experiment.config.trainer.deterministic:
        name = BASELINE
        settings = [*experiment.settings(sample, name), *extra]
        train_in_child(experiment.folder, name, settings, True, seconds)
    whole = experiment.run_folder(name)
    resumed = experiment.run_folder(RESUMED)
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("checkpoints"))
    middle = step_path(resumed / "checkpoints", sample.half)
    middle.parent.mkdir()
    shutil.copy(step_path(whole / "checkpoints", sample.half), middle)
    settings = resuming([*experiment.settings(sample, RESUMED), *extra])
    train_in_child(experiment.folder, RESUMED, settings, True, max(1.0, end - time.monotonic()))
    if not step_path(resumed / "checkpoints", sample.steps).is_file():
        raise ValueError(tr("the resumed run did not save step {step}", step=sample.steps))
    difference = first_difference(whole, resumed)
    return {
        "is_exact": difference is None,
        "first_difference": difference,
        "deterministic": deterministic,
        "resumed_after_step": sample.half,
        "steps": sample.steps,
    }


def vendor_flops(device: str, precision: str) -> float | None:
    """The FLOP/s of the card in the vendor's data sheet; None for a CPU, or where Lightning does
    not know the card.
    """
    if device != "cuda":
        return None
    return hardware.vendor_flops(precision) or None
