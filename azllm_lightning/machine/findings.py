"""The table of a check, in lines of at most 80 columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from azllm_lightning.callbacks.text import count_text, duration, labeled, size_text, verbatim
from azllm_lightning.cli.colors import LABEL
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.machine.storage import TESTS

Figures = dict[str, Any]


def table(findings: Figures, out: str) -> str:
    """Everything that was found, for people, and where the file is."""
    parts: list[tuple[str, str, Callable[[Figures], Iterable[str]]]] = [
        ("disk", tr("disk"), _disk),
        ("data", tr("data"), _data),
        ("steps", tr("steps"), lambda part: _steps(part, findings["disk"])),
        ("resume", tr("resume"), _resume),
        ("compile", tr("compile"), _compile),
    ]
    rows = [*_machine(findings["machine"], findings["missing_device"])]
    rows += _products(findings["products"])
    for key, label, text in parts:
        part = findings[key]
        lines = list(text(part)) if part["status"] == "ok" else [_reason(part)]
        rows += [_row("" if i else label, line) for i, line in enumerate(lines)]
    rows += [
        labeled(tr("time"), duration(findings["seconds"])),
        labeled(tr("advice"), findings["advice"]),
        verbatim(tr("file"), out),
    ]
    return "\n".join(rows)


def _row(label: str, text: str) -> str:
    """`labeled`, with each number on the line of its unit."""
    joined = re.sub(r"(?<=\d) (?=\w)", "\u00a0", text)
    return labeled(label, joined).replace("\u00a0", " ")


def rate_text(flops: float | None) -> str:
    """FLOP/s with a unit that suits them."""
    if flops is None:
        return "-"
    unit, size = ("TFLOP/s", 1e12) if flops >= 1e12 else ("GFLOP/s", 1e9)
    value = flops / size
    return f"{value:,.0f} {unit}" if value >= 20 else f"{value:.1f} {unit}"


def _reason(part: Figures) -> str:
    reason = part["reason"]
    return tr("FAILED: {reason}", reason=reason) if part["status"] == "failed" else str(reason)


def _machine(machine: Figures, missing_device: str | None) -> Iterator[str]:
    device = [
        f"{gpu['name']}, {size_text(gpu['memory_bytes'])}, "
        + tr("compute capability {value}", value=gpu["compute_capability"])
        for gpu in machine["gpus"]
    ]
    if machine["device"] == "cpu":
        device = [tr("cpu")]
        if missing_device is not None:
            device.append(tr("this run asks for a GPU, and PyTorch can use none"))
    if machine["driver_version"] is not None:
        device.append(tr("driver {version}", version=machine["driver_version"]))
    yield labeled(tr("device"), "; ".join(device))
    cores = trn("{count} core", "{count} cores", machine["cpu_cores"])
    sets = " ".join(machine["cpu_instruction_sets"]) or machine["cpu_capability"]
    yield labeled(tr("cpu"), f"{machine['cpu_model']}, {cores}, {sets}")
    if machine["memory_bytes"] is not None:
        yield labeled(tr("memory"), size_text(machine["memory_bytes"]))
    cuda = f", CUDA {machine['cuda_version']}" if machine["cuda_version"] else ""
    yield labeled(tr("software"), f"{machine['os']}, Python {machine['python_version']}")
    versions = (
        f"PyTorch {machine['torch_version']}{cuda}, Lightning {machine['lightning_version']}, "
        f"azllm-lightning {machine['azllm_lightning_version']}"
    )
    yield labeled("", versions)


def _products(part: Figures) -> Iterator[str]:
    """One line per number type."""
    label = tr("products")
    if part["status"] != "ok":
        yield labeled(label, _reason(part))
        return
    reference = part["types"]["fp32"]["flops_per_second"]
    for name, figures in part["types"].items():
        rate, error = figures["flops_per_second"], figures["relative_error"]
        line = f"{name:<5}{rate_text(rate):>14}"
        if error is not None:
            line += "   " + tr("relative error {error:.0e}", error=error)
        if figures["problem"] == "wrong":
            line += "   " + tr("WRONG")
        elif figures["problem"] is not None:
            line = f"{name:<5}{figures['problem']}"
        elif rate and reference and rate < reference / 2:
            line += "   " + tr("slower than fp32")
        yield f"{label:<{LABEL}}{line}"
        label = ""


def _compile(part: Figures) -> Iterator[str]:
    yield tr("works: {seconds:.0f} s for a small function", seconds=part["compile_seconds"])


def _disk(part: Figures) -> Iterator[str]:
    yield tr(
        "{rate}/s into {folder} ({size} written and synced), {free} free",
        rate=size_text(part["write_bytes_per_second"]),
        folder=part["folder"],
        size=size_text(part["written_bytes"]),
        free=size_text(part["free_bytes"]),
    )
    failing = [name.replace("_", " ") for name in TESTS if not part[name]]
    if failing:
        yield tr("does not work there: {names}", names=", ".join(failing))
    else:
        yield tr("locks, links, folder sync and replacing files work")


def _data(part: Figures) -> Iterator[str]:
    yield tr(
        "{rate} tokens/s from prepared shards, tokenizing {bytes:.1f} MB/s",
        rate=count_text(round(part["tokens_per_second"])),
        bytes=part["tokenizing_bytes_per_second"] / 1e6,
    )


def _steps(part: Figures, disk: Figures) -> Iterator[str]:
    """The speed and how it was reached; what it means; where the figures come from."""
    batch = trn("{count} sequence", "{count} sequences", part["global_batch_size"])
    yield tr("{name}: {rate:,.0f} tokens/s", name=part["run_name"], rate=part["tokens_per_second"])
    run = [
        tr("{params} parameters", params=count_text(part["num_params"])),
        tr("{batch} x {block_size} tokens per step", batch=batch, block_size=part["block_size"]),
        tr("micro-batch {size}", size=part["micro_batch_size"]),
        part["precision"],
        tr("compiled") if part["compile"] else tr("not compiled"),
    ]
    yield ", ".join(run)
    found = []
    if part["mfu_of_products"] is not None:
        found.append(tr("MFU {share:.2f} of the products above", share=part["mfu_of_products"]))
    if part["mfu_of_vendor"] is not None:
        found.append(tr("{share:.2f} of the vendor's figure", share=part["mfu_of_vendor"]))
    if part["peak_memory_bytes"] is not None:
        found.append(tr("peak memory {size}", size=size_text(part["peak_memory_bytes"])))
    if part["checkpoint_bytes"] is not None and disk["status"] == "ok":
        size = size_text(part["checkpoint_bytes"])
        seconds = part["checkpoint_bytes"] / disk["write_bytes_per_second"]
        found.append(tr("a save {size}, {seconds:.1f} s", size=size, seconds=seconds))
    yield ", ".join(found)
    if part["is_computed"]:
        sequences = trn("{count} sequence", "{count} sequences", part["sequences_per_step"])
        yield tr(
            "computed from {steps} steps of {sequences}", steps=part["steps"], sequences=sequences
        )
    if part["non_finite_steps"]:
        yield tr("steps that were not finite: {count}", count=part["non_finite_steps"])


def _resume(part: Figures) -> Iterator[str]:
    if part["is_exact"]:
        yield tr(
            "PASS: resumed after step {resumed} of {steps}, identical bit for bit",
            resumed=part["resumed_after_step"],
            steps=part["steps"],
        )
    else:
        yield tr("FAIL: {difference}", difference=part["first_difference"])
