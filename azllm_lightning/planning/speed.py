"""How fast a machine trains: from the figures of `check`, for a model of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.training import hardware

EFFICIENCY = 0.4
"""Share of the speed of matrix products that a run is assumed to reach: a cautious one."""

ASSUMED_FLOPS = {"cpu": 1e10, "cuda": 8e12}
"""What a core, or a GPU, is assumed to reach in training where nothing was measured."""

MICRO_BATCH_SECONDS = {"cpu": 0.0, "cuda": 1.2e-3}
"""Least time of a micro-batch per layer: what starting the kernels of a GPU takes."""

COMPILED_GAIN = {"cpu": 1.03, "cuda": 1.35}
"""How many times as fast a compiled network is; 1.03 for nano on a CPU (benchmarks/README.md)."""

COMPILE_SECONDS = 60.0

NEWTON_SCHULZ_FLOPS = 25
"""FLOP of Muon per weight of a hidden matrix and unit of width: five iterations."""

AFFIX_FLOPS = {"cpu": 600, "cuda": 6000}
"""FLOP of products that take as long as the affixes of one weight of the token tables: measured on
a CPU (benchmarks/LOG.md), computed from the memory traffic for a T4.
"""

FORWARD = 1 / 3
"""Share of a training step that a validation of as many tokens takes."""

ERROR = 0.1
ASSUMED_ERROR = 0.5
"""Error of the time of a model that was measured, and where nothing was."""

FAR_ERROR = 0.15
"""Further error per factor e between the measured model and the planned one, in FLOP per token."""


@dataclass(frozen=True)
class Speed:
    """What a machine reaches in training."""

    name: str
    device: str
    """cpu or cuda"""
    flops: float
    """FLOP/s of the model's products, forward and backward, not compiled."""
    optimizer_flops: float
    """FLOP/s of the optimizer's."""
    flops_per_token: float | None
    """Of the model that was measured; None if none was."""
    startup_seconds: float
    """From the command to the first step, without compiling."""
    tokenizing_bytes_per_second: float
    """Of one core."""
    cores: int
    memory_bytes: float | None
    """Of the GPU, or of the machine."""
    free_bytes: float | None
    """On the disk for runs."""
    write_bytes_per_second: float
    can_compile: bool
    """Whether long runs are compiled."""
    always_compiles: bool = False
    """Whether short runs are, too."""

    @classmethod
    def assumed(cls, device: str, cores: int) -> Speed:
        """Without any measurement."""
        flops = ASSUMED_FLOPS[device] * (cores if device == "cpu" else 1)
        return cls(device, device, flops, flops, None, 20.0, 0.5e6, cores, None, None, 1e8, True)

    @classmethod
    def from_check(cls, findings: Mapping[str, Any]) -> Speed:
        """Of the machine that check.json describes."""
        machine = findings["machine"]
        device = str(machine["device"])
        values: dict[str, Any] = {**cls.assumed(device, machine["cpu_cores"]).__dict__}
        if device == "cuda":
            gpu: dict[str, Any] = next(iter(machine["gpus"]), {})
            values["name"] = gpu.get("name", device)
            values["memory_bytes"] = gpu.get("memory_bytes")
        else:
            values["name"] = machine["cpu_model"]
            values["memory_bytes"] = machine["memory_bytes"]
        products = findings["products"].get("types") or {}
        rates = [kind["flops_per_second"] or 0.0 for kind in products.values()]
        if any(rates):
            values["flops"] = values["optimizer_flops"] = EFFICIENCY * max(rates)
        if findings["disk"]["status"] == "ok":
            values["free_bytes"] = findings["disk"]["free_bytes"]
            values["write_bytes_per_second"] = findings["disk"]["write_bytes_per_second"]
        if findings["data"]["status"] == "ok":
            speed = findings["data"]["tokenizing_bytes_per_second"]
            values["tokenizing_bytes_per_second"] = speed
        values["can_compile"] = findings["compile"]["status"] != "failed"
        if findings["steps"]["status"] == "ok":
            values |= _of_steps(findings["steps"], findings["overrides"])
        return cls(**values)

    def training_seconds(self, shape: GPTConfig, batch: int, micro_batch: int, steps: int) -> float:
        """`steps` steps of `batch` sequences in micro-batches of `micro_batch`, compiled if
        trainer.compile would.
        """
        flops = steps * batch * shape.block_size * shape.flops_per_token()
        is_long = (
            flops / hardware.expected_flops(self.device) > hardware.COMPILE_PAYS_AFTER[self.device]
        )
        micro_batches = -(-batch // micro_batch)
        model = batch * shape.block_size * shape.flops_per_token() / self.flops
        least = micro_batches * shape.n_layer * MICRO_BATCH_SECONDS[self.device]
        optimizer = optimizer_flops(shape, self.device) / self.optimizer_flops
        if self.always_compiles or (is_long and self.can_compile):
            return COMPILE_SECONDS + steps * (
                max(model, least) / COMPILED_GAIN[self.device] + optimizer
            )
        return steps * (max(model, least) + optimizer)

    def validation_seconds(self, shape: GPTConfig, windows: int) -> float:
        """A validation on so many windows."""
        return FORWARD * windows * shape.block_size * shape.flops_per_token() / self.flops

    def error(self, shape: GPTConfig) -> float:
        """How exact the time of a run is known, as a share of it."""
        if self.flops_per_token is None:
            return ASSUMED_ERROR
        factor = shape.flops_per_token() / self.flops_per_token
        return min(ASSUMED_ERROR, ERROR + FAR_ERROR * abs(math.log(factor)))


def muon_flops(shape: GPTConfig) -> float:
    """FLOP of Muon in a step."""
    return float(NEWTON_SCHULZ_FLOPS * shape.n_embd * shape.num_params(embeddings=False))


def optimizer_flops(shape: GPTConfig, device: str, shares_affixes: bool = True) -> float:
    """`muon_flops`, and FLOP that take as long as the token tables."""
    tables = shape.num_params() - shape.num_params(embeddings=False)
    return muon_flops(shape) + AFFIX_FLOPS[device] * tables * shares_affixes


def _of_steps(steps: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """What the measured steps of a check say of the machine."""
    tokens = steps["global_batch_size"] * steps["block_size"]
    seconds = tokens / steps["tokens_per_second"]
    optimizer = min(steps["optimizer_seconds"], 0.9 * seconds)
    flops = tokens * steps["flops_per_token"] / (seconds - optimizer)
    found = {
        "flops": flops / (COMPILED_GAIN[steps["device"]] if steps["compile"] else 1.0),
        "flops_per_token": steps["flops_per_token"],
        "startup_seconds": steps["startup_seconds"],
    }
    run = _run(overrides)
    if run is not None and steps["optimizer"] == "muon" and optimizer > 0:
        shape = run.model.for_data(steps["vocab_size"], steps["block_size"], 0)
        work = optimizer_flops(shape, steps["device"], run.optimizer.shares_affixes)
        found["optimizer_flops"] = work / optimizer
    else:
        found["optimizer_flops"] = found["flops"]
    return found


def _run(overrides: list[str]) -> RunConfig | None:
    """The run of a check; None where its overrides no longer compose, as on another machine."""
    try:
        own = ("out", "minutes")
        typed = [text for text in overrides if text.partition("=")[0].lstrip("+") not in own]
        run: RunConfig = compose(typed)
    except ValueError:
        return None
    return run
