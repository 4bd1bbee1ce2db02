"""What to do about the findings of a check, in a sentence or two."""

from __future__ import annotations

from typing import Any

from azllm_lightning.callbacks.text import duration
from azllm_lightning.cli.messages import tr
from azllm_lightning.machine.busy import how_busy

Figures = dict[str, Any]

LONG_HOURS = 24.0
"""A run above this is called too long for the machine."""

T4_BYTES = 12e9
LAPTOP_BYTES = 3.5e9
"""GPU memory from which on experiment=t4 and experiment=laptop_4gb are suggested."""

SLOW_DISK = 20e6
"""Bytes per second below which saving is called slow."""

WAITING_SHARE = 0.5
"""Loading data at less than twice the speed of training may make the steps wait."""


def advice(findings: Figures) -> str:
    """The verdict on the experiment, and the most important thing to mend."""
    if findings["interrupted"]:
        return tr("the check was stopped early: run it again for the rest")
    return " ".join(filter(None, [_verdict(findings), _mend(findings)]))


def _verdict(findings: Figures) -> str:
    """Whether the experiment can be trained here."""
    steps = findings["steps"]
    if steps["status"] == "skipped":
        return _not_measured(findings["experiment"], steps)
    if steps["status"] != "ok":
        return tr("This experiment does not run here: see the row steps.")
    if findings["resume"].get("is_exact") is False:
        return tr(
            "A resumed run differs from an uninterrupted one: please report it with check.json, "
            "and try trainer.deterministic=true."
        )
    fields = {
        "name": steps["run_name"],
        "steps": steps["max_steps"],
        "duration": duration(3600 * steps["run_hours"]),
    }
    if steps["run_hours"] <= LONG_HOURS:
        return tr("{name} fits this machine: its {steps:,} steps take about {duration}.", **fields)
    if steps["device"] == "cpu":
        return tr(
            "{name} is too large for this CPU: its {steps:,} steps would take about {duration}. "
            "Use a GPU, or a smaller model (model=nano, tiny or small10m).",
            **fields,
        )
    return tr(
        "{name} is long for this GPU: its {steps:,} steps would take about {duration}. Take fewer "
        "steps or a smaller model.",
        **fields,
    )


def _not_measured(experiment: Figures | None, steps: Figures) -> str:
    """For what could not be measured in the time."""
    if experiment is None:
        return tr("This experiment could not be tried: see the row data.")
    if steps["timed_out"]:
        return tr(
            "The steps of {name} were not done in {seconds:.0f} s: set a larger minutes=.",
            name=experiment["run_name"],
            seconds=steps["seconds"],
        )
    return tr(
        "{name} is very slow here: even at the full speed of the products, its {steps:,} steps "
        "would take {duration}.",
        name=experiment["run_name"],
        steps=experiment["max_steps"],
        duration=duration(3600 * experiment["least_hours"]),
    )


def _mend(findings: Figures) -> str:
    """The first thing that is wrong or slow; or what else could be tried."""
    machine, steps = findings["machine"], findings["steps"]
    for problem in (
        _unused_gpu(machine),
        _busy(steps),
        _wrong_products(findings["products"]),
        _no_compile(findings["compile"]),
        _disk(findings["disk"]),
        _slow_data(findings["data"], steps, machine["cpu_cores"]),
    ):
        if problem:
            return problem
    return _larger(machine, steps)


def _unused_gpu(machine: Figures) -> str:
    if machine["unused_gpu"] is None:
        return ""
    return tr(
        "PyTorch cannot use the {gpu} of this machine: install a CUDA build for it, or a newer "
        "driver.",
        gpu=machine["unused_gpu"],
    )


def _busy(steps: Figures) -> str:
    how = how_busy(steps.get("cpu_share"), steps.get("others_share"))
    if not how:
        return ""
    return tr(
        "Other programs kept this machine busy ({how}), so it is faster than these figures: check "
        "it again when it is idle.",
        how=how,
    )


def _wrong_products(products: Figures) -> str:
    types = products.get("types", {})
    wrong = [name for name, figures in types.items() if figures["problem"] == "wrong"]
    if not wrong:
        return ""
    return tr(
        "Products in {names} are wrong here: avoid that precision, and report it with check.json.",
        names=", ".join(wrong),
    )


def _no_compile(part: Figures) -> str:
    if part["status"] != "failed":
        return ""
    return tr("Long runs would be faster if torch.compile worked: see the row compile.")


def _disk(part: Figures) -> str:
    if part["status"] != "ok":
        return tr("Nothing can be saved there: see the row disk, or set logs_dir.")
    if part["write_bytes_per_second"] < SLOW_DISK:
        return tr(
            "The disk is slow: save less often (trainer.checkpoint_every_steps), or set logs_dir "
            "to another disk."
        )
    if not part["locks"]:
        return tr("The disk has no locks: never resume one run in two processes at once.")
    return ""


def _slow_data(data: Figures, steps: Figures, cores: int) -> str:
    if data["status"] != "ok" or steps["status"] != "ok":
        return ""
    if steps["tokens_per_second"] < WAITING_SHARE * data["tokens_per_second"]:
        return ""
    workers = max(2, min(2 * data["num_workers"], cores))
    if workers <= data["num_workers"]:
        return ""
    return tr("Loading data is slow for this model: set data.num_workers={count}.", count=workers)


def _larger(machine: Figures, steps: Figures) -> str:
    """A larger experiment that the GPU has the memory for."""
    memory = max((gpu["memory_bytes"] for gpu in machine["gpus"]), default=0)
    if steps.get("run_name") != "tales" or memory < LAPTOP_BYTES:
        return ""
    name = "t4" if memory >= T4_BYTES else "laptop_4gb"
    return tr("Next, try check experiment={name}.", name=name)
