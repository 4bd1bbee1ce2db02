"""What Muon costs with several processes: each does all of its work, or its share.

    python benchmarks/shared_muon.py                 measured here, with two processes
    python benchmarks/shared_muon.py computed        computed for an experiment on 1, 2 and 8 GPUs

Measured: one optimizer step of a model's matrices, the gradients given, alternately with the work
repeated by every process and shared out; the ratio of each pair does not depend on what else the
machine does. Every process has one thread. Computed: operations at a share of the card's peak, and
bytes over its links, for the global batch of the experiment divided among the cards.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from machine import describe, show
from roofline import experiment
from torch import nn

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.muon import MuonAdamW, orthogonalization_flops, shared_out

PROCESSES = 2
HALF = 2
"""Bytes of a number that is sent, in a run in mixed precision."""


@dataclass(frozen=True)
class Machine:
    """GPUs of one machine."""

    name: str
    flops: float
    """Sustained operations per second in products of half precision, of one GPU."""
    link: float
    """Bytes per second that a GPU receives in a broadcast."""


MACHINES = {
    "t4": Machine("T4, PCIe 3 x16", 24e12, 8e9),
    "a100": Machine("A100, NVLink", 0.6 * 312e12, 200e9),
    "h100": Machine("H100, NVLink", 0.5 * 989e12, 300e9),
}


@dataclass(frozen=True)
class Cost:
    """What a GPU does in an optimizer step, in seconds."""

    passes: float
    """Forward and backward passes of its part of the global batch."""
    alone: float
    """Muon, if every GPU orthogonalizes all matrices."""
    shared: float
    """Muon, if each orthogonalizes its share and receives the rest."""
    received: int
    """Bytes that it receives, if shared."""


def matrices(model: GPTConfig) -> list[tuple[int, ...]]:
    """The shapes of the matrices that Muon updates."""
    with torch.device("meta"):
        net = GPT(model)
    return [tuple(p.shape) for p in net.model.layers.parameters() if p.ndim == 2]


def cost(model: GPTConfig, tokens: int, gpus: int, machine: Machine) -> Cost:
    """The cost of Muon for `tokens` per step of `gpus`. Its elementwise work, which every GPU does
    in either case, is left out.
    """
    shapes = matrices(model)
    flops = [orthogonalization_flops(shape) for shape in shapes]
    largest = max(sum(flops[i] for i in share) for share in shared_out(shapes, gpus))
    received = HALF * sum(map(math.prod, shapes)) * (gpus - 1) // gpus
    return Cost(
        passes=model.flops_per_token() * tokens / gpus / machine.flops,
        alone=sum(flops) / machine.flops,
        shared=largest / machine.flops + received / machine.link,
        received=received,
    )


def computed(name: str) -> list[str]:
    """A table for the experiment `name`, in Markdown."""
    e = experiment(name)
    lines = [
        f"{name}: {e.model.num_params() / 1e6:.0f} M parameters, {e.tokens:,} tokens per step of "
        "all GPUs",
        "",
        "| machine | GPUs | passes, ms | Muon on each, ms | % | shared out, ms | % | MB received |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for machine in MACHINES.values():
        for gpus in (1, 2, 8):
            c = cost(e.model, e.tokens, gpus, machine)
            times = [f"{1e3 * s:.1f} | {100 * s / c.passes:.0f}" for s in (c.alone, c.shared)]
            lines.append(
                f"| {machine.name} | {gpus} | {1e3 * c.passes:.0f} | {' | '.join(times)} | "
                f"{c.received / 1e6:.0f} |"
            )
    return lines


def timed(optimizer: MuonAdamW) -> float:
    """Seconds of a step, begun by all processes together."""
    dist.barrier()
    started = time.perf_counter()
    optimizer.step()
    dist.barrier()
    return time.perf_counter() - started


def work(rank: int, store: str, shapes: list[tuple[int, ...]], pairs: int, results: str) -> None:
    """Time `pairs` of steps in one of PROCESSES; the first writes the seconds to `results`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    settings = {"kind": "muon", "lr": 0.01, "weight_decay": 0.1, "momentum": 0.95}
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    repeated = MuonAdamW([{"params": parameters, **settings}], torch.float32)
    shared = MuonAdamW([{"params": parameters, **settings}], torch.float32, dist.group.WORLD)
    timed(repeated)
    timed(shared)
    seconds = [(timed(repeated), timed(shared)) for _ in range(pairs)]
    if rank == 0:
        Path(results).write_text(json.dumps(seconds), encoding="utf-8")
    dist.destroy_process_group()


def measured(width: int, layers: int, pairs: int) -> str:
    """Seconds of Muon's step here, and the ratio of each pair."""
    model = GPTConfig(
        vocab_size=256, block_size=64, n_layer=layers, n_head=width // 64, n_embd=width
    )
    with tempfile.TemporaryDirectory() as folder:
        store, results = f"{folder}/store", f"{folder}/seconds"
        arguments = (store, matrices(model), pairs, results)
        torch.multiprocessing.spawn(work, arguments, nprocs=PROCESSES)
        seconds = json.loads(Path(results).read_text(encoding="utf-8"))
    repeated, shared = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratios = sorted(first / second for first, second in seconds)
    return (
        f"{layers} x {width}, fp32, {PROCESSES} processes of one thread (gloo): "
        f"{repeated:.3f} s by each, {shared:.3f} s shared out (medians of {pairs}); ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    """Read the command line, and print what it asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("measured", "computed"), default="measured")
    parser.add_argument("--experiment", default="t4")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=10)
    given = parser.parse_args()
    if given.what == "computed":
        print("\n".join(computed(given.experiment)))
    else:
        show(describe())
        print(measured(given.width, given.layers, given.pairs))


if __name__ == "__main__":
    main()
