"""Our runs and nanoGPT's model and loop of the same shape, in turn, on one NVIDIA GPU.

    python benchmarks/gpu.py [--part t4 laptop_4gb bf16 long] [--rounds 2] [--nanogpt DIR] [--out
    gpu.json]

t4 and laptop_4gb are the experiments of those names, in fp16; bf16 is the model of t4 with a
context of 1,024. Each runs for 200 steps, compiled, with a process per measurement, and both sides
use the same number type. The fp16 parts run once more in fp32: the loss at the last step must be
the same. `long` is t4 for `--steps` steps, without a non-finite loss. --out keeps the parts of
earlier calls, so that each can have its own session, and the table shows all of them.

Our side goes through `azllm_lightning.train`, as any run does. The other side is `nanogpt_loop`
around gpt2.py, or with --nanogpt around the model.py of a checkout. The text is random
(`random_text`).

`--tiny` runs the same code on any CPU in seconds. Its figures mean nothing, and it does not cover
CUDA's kernels, compiling, the peak of GPU memory, MFU and the separate processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import torch
from machine import describe
from nanogpt_loop import nanogpt_loop

from azllm_lightning import compose
from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.machine.random_text import random_text
from azllm_lightning.train import train
from azllm_lightning.training import hardware

FP16 = "trainer.precision=16-mixed"
PARTS = {
    "t4": ["experiment=t4", FP16],
    "laptop_4gb": ["experiment=laptop_4gb", FP16],
    "bf16": [
        "experiment=t4",
        "trainer.precision=bf16-mixed",
        "data.block_size=1024",
        "trainer.global_batch_size=64",
        "trainer.micro_batch_size=32",
    ],
    "long": ["experiment=t4", FP16],
}
TINY = [
    "data.block_size=16",
    "trainer.global_batch_size=4",
    "trainer.micro_batch_size=2",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "callbacks.samples.max_new_tokens=0",
    "trainer.accelerator=cpu",
    "trainer.compile=false",
]
PEAK_GIB = {"t4": 13.0, "laptop_4gb": 3.5}
"""Most GPU memory that a part may take."""
Figures = dict[str, Any]


def main() -> None:
    """Measure the parts asked for, and print the table of all that --out holds."""
    args = arguments()
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        vocab_size = 300 if args.tiny else compose(["experiment=t4"]).data.vocab_size
        random_text(work / "data", vocab_size, num_documents=8 if args.tiny else 40_000)
        for part in args.part:
            sizes = TINY if args.tiny else ["trainer.compile=true"]
            overrides = [*PARTS[part], *sizes, f"data.vocab_size={vocab_size}"]
            measure(part, overrides, work, args, results)
    print(table(results))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the long part")
    parser.add_argument(
        "--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT whose model.py is compared"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="file that keeps the figures"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps of small models, on a CPU")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --tiny runs the same code on the CPU")
    return args


def measure(
    part: str, overrides: list[str], work: Path, args: argparse.Namespace, results: Figures
) -> None:
    """All runs of one part; `results` and the file --out grow with each."""
    steps, long_steps = (6, 8) if args.tiny else (200, args.steps)
    results[part] = {
        "machine": machine(args.tiny),
        "peer": "benchmarks/gpt2.py" if args.nanogpt is None else "nanoGPT's model.py",
    }

    def add(side: str, function: Callable[..., Figures], *values: Any) -> None:
        figures = function(*values) if args.tiny else apart(function, *values)
        results[part].setdefault(side, []).append(figures)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    if part == "long":
        add("ours", ours, overrides, work, long_steps)
        return
    for _ in range(args.rounds):
        add("ours", ours, overrides, work, steps)
        add("nanogpt", nanogpt_loop, overrides, work, steps, args.nanogpt)
    if part != "bf16":
        add("fp32", ours, [*overrides, "trainer.precision=32-true"], work, steps)


def apart(function: Callable[..., Figures], *values: Any) -> Figures:
    """`function` in a fresh process, so that no measurement sees memory or compiled code of
    another.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def machine(tiny: bool) -> str:
    """The device, PyTorch and the commit; for --tiny the CPU and its kind."""
    about = describe()
    device = f"{about['cpu']}, {about['kind']}" if tiny else torch.cuda.get_device_name()
    caveat = " (tiny: the figures mean nothing)" if tiny else ""
    return f"{device}, PyTorch {torch.__version__}, commit {about['commit']}{caveat}"


# --- our side ------------------------------------------------------------------------------------


class Probe(pl.Callback):
    """Writes what summary.json does not have to `path`, when the run has ended."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []
        self.skipped = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Record the step that this batch completed, if it completed one."""
        if pl_module.step_report is not None:
            self.losses.append(pl_module.step_report.loss)
            self.skipped += not pl_module.step_report.finite

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Write the figures."""
        history = next(cb for cb in trainer.callbacks if isinstance(cb, History))
        throughput = next(cb for cb in trainer.callbacks if isinstance(cb, Throughput))
        shape = pl_module.model_config
        figures = {
            "step_seconds": history.clock.step_seconds,
            "tokens_per_step": trainer.datamodule.global_batch_size * shape.block_size,
            "flops_per_token": shape.flops_per_token(),
            "peak_flops": throughput.peak_flops,
            "steps": len(self.losses),
            "train_loss": self.losses[-1],
            "non_finite_losses": sum(not np.isfinite(loss) for loss in self.losses),
            "skipped_steps": self.skipped,
            "save_seconds": trainer.strategy.checkpoint_io.longest,
        }
        self.path.write_text(json.dumps(figures), encoding="utf-8")


def ours(overrides: list[str], work: Path, steps: int) -> Figures:
    """A run of `steps` steps with the experiment's own learning rates, saved twice and validated at
    both ends.
    """
    planned = compose(overrides).trainer.max_steps
    config = compose(
        [
            *overrides,
            f"trainer.max_steps={steps}",
            f"schedule.total_steps={max(planned, steps)}",
            f"trainer.val_every_steps={steps}",
            f"trainer.checkpoint_every_steps={max(1, steps // 2)}",
            "data.val_windows=64",
            f"data.dir={work / 'data'}",
            f"logs_dir={work / 'runs'}",
            "run_name=ours",
            "+callbacks.probe._target_=gpu.Probe",
            f"+callbacks.probe.path={work / 'probe.json'}",
        ]
    )
    on_cpu = config.trainer.accelerator == "cpu"
    with fp16_on_cpu() if on_cpu else contextlib.nullcontext():
        run = train(config)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    probe = json.loads((work / "probe.json").read_text(encoding="utf-8"))
    shutil.rmtree(work / "runs", ignore_errors=True)
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    keys = ("val_loss", "peak_memory_bytes", "num_params", "precision", "compile")
    return {**{key: summary[key] for key in keys}, **probe, "reserved_memory_bytes": reserved}


def fp16_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Let a run on the CPU have the fp16 that it asks for, and its scaler, without timing fp16
    products for MFU.
    """
    return patch.multiple(
        hardware,
        resolve_precision=lambda precision, device: precision,
        peak_flops=lambda device, precision: 1e12,
    )


# --- the table -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One figure of a part, as the table shows it."""

    figure: str
    ours: str
    theirs: str = ""
    bar: str = ""
    kept: str = ""


def table(results: Figures) -> str:
    """Every figure of `results` next to its bar, in Markdown."""
    lines = [
        "| part | figure | ours | nanoGPT | bar | kept |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    notes = []
    for part, result in results.items():
        if "ours" not in result:  # its first measurement failed
            continue
        notes.append(f"{part}: {result['machine']}; compared with {result['peer']}.")
        lines += [f"| {part} | {' | '.join(row)} |" for row in rows(part, result)]
    return "\n".join([*notes, "", *lines])


def rows(part: str, result: Figures) -> Iterator[Row]:
    """The rows of a part: medians of its rounds, with their range."""
    runs = result["ours"]
    last = runs[-1]
    broken = max(run["non_finite_losses"] for run in runs)
    found = f"{broken} of {last['steps']:,}"
    yield Row("steps with a non-finite loss", found, "", "0", yes_or_no(broken == 0))
    yield Row("skipped steps", str(max(run["skipped_steps"] for run in runs)))
    if "nanogpt" not in result:
        return
    peers = result["nanogpt"]
    yield Row("number type", last["precision"], peers[-1]["precision"])
    yield from speed_rows(part, runs, peers)
    yield memory_row(part, runs, peers)
    if "fp32" in result:
        loss, exact = last["val_loss"], result["fp32"][-1]["val_loss"]
        losses = f"{loss:.4f} in fp16, {exact:.4f} in fp32"
        kept = yes_or_no(abs(loss / exact - 1) <= 0.01)
        yield Row(f"val_loss at step {last['steps']}", losses, "", "within 1 %", kept)
    seconds = statistics.median(run["save_seconds"] for run in runs)
    share = seconds / (500 * statistics.median(map(settled, runs)))
    cost = f"{seconds:.2f} s, {100 * share:.2f} % of a run"
    yield Row("a save every 500 steps", cost, "", "under 1 %", yes_or_no(share < 0.01))


def speed_rows(part: str, runs: list[Figures], peers: list[Figures]) -> Iterator[Row]:
    """Tokens per second, their ratio in each round, and MFU."""
    rates, their_rates = (
        [figures["tokens_per_step"] / settled(figures) for figures in side]
        for side in (runs, peers)
    )
    yield Row("tokens/s", spread(rates, ",.0f"), spread(their_rates, ",.0f"))
    ratios = [rate / theirs for rate, theirs in zip(rates, their_rates, strict=True)]
    kept = yes_or_no(statistics.median(ratios) >= 1.1)
    yield Row("tokens/s, as a ratio", spread(ratios, ".3f"), "1", "at least 1.1", kept)
    peak = runs[-1]["peak_flops"]
    share = statistics.median(rates) * runs[-1]["flops_per_token"] / peak
    their_share = statistics.median(their_rates) * peers[-1]["flops_per_token"] / peak
    bar = ("0.45 on an H100", yes_or_no(share >= 0.45)) if part == "bf16" else ()
    yield Row("MFU", f"{share:.3f}", f"{their_share:.3f}", *bar)


def memory_row(part: str, runs: list[Figures], peers: list[Figures]) -> Row:
    """The highest peak of memory on each side."""
    peak, their_peak = (
        max(figures["peak_memory_bytes"] for figures in side) / 2**30 for side in (runs, peers)
    )
    most = PEAK_GIB.get(part)
    bar = (f"under {most} GiB", yes_or_no(peak < most)) if most else ()
    return Row("peak memory, GiB", f"{peak:.2f}", f"{their_peak:.2f}", *bar)


def yes_or_no(kept: bool) -> str:
    """Whether a bar is kept; a NO catches the eye."""
    return "yes" if kept else "NO"


def settled(figures: Figures) -> float:
    """Mean seconds per step after the first tenth, in which code is compiled and caches fill."""
    seconds = figures["step_seconds"]
    return statistics.mean(seconds[1 + len(seconds) // 10 :])


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
