"""Our runs and nanoGPT's model and loop of the same shape, in turn, on one NVIDIA GPU.

    python benchmarks/gpu.py [--part t4 laptop_4gb bf16 long] [--rounds 2] [--nanogpt DIR] [--out gpu.json]

t4 and laptop_4gb are the experiments of those names, in fp16; bf16 is the model of t4 at a context of 1,024. Each is
run for 200 steps, compiled, in a process of its own per measurement; the fp16 ones once more in fp32, whose loss at the
last step must be the same. `long` is t4 for `--steps` steps, without a non-finite loss. --out keeps the parts of
earlier calls, so that each can have a session of its own, and the table shows all that are there.

Ours goes through `azllm_lightning.train`: what happens in a run happens here. The peer is `nanogpt_loop` around
gpt2.py, or with --nanogpt around the model.py of a checkout. The text is drawn here (`synthetic_data`).

`--tiny` runs the same code on any CPU in seconds. Its figures mean nothing, and it does not cover CUDA's kernels,
compiling, the peak of GPU memory, MFU and the processes of their own.
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
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import torch
from machine import describe
from nanogpt_loop import nanogpt_loop
from synthetic import synthetic_data

from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.cli.entrance import compose
from azllm_lightning.train import train
from azllm_lightning.training import hardware

PARTS = {
    "t4": ["+experiment=t4", "trainer.precision=16-mixed"],
    "laptop_4gb": ["+experiment=laptop_4gb", "trainer.precision=16-mixed"],
    "bf16": [
        *["+experiment=t4", "trainer.precision=bf16-mixed", "data.block_size=1024"],
        *["data.batch_size=32", "trainer.accumulate_grad_batches=2"],
    ],
    "long": ["+experiment=t4", "trainer.precision=16-mixed"],
}
TINY = [
    *[
        "data.block_size=16",
        "data.batch_size=2",
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
    ],
    *["trainer.accelerator=cpu", "trainer.compile=false"],
]
PEAK_GIB = {"t4": 13.0, "laptop_4gb": 3.5}
Figures = dict[str, Any]


def main() -> None:
    """Measure the parts asked for and print the table of all that --out holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the long part")
    parser.add_argument(
        "--nanogpt",
        type=Path,
        help="a checkout of karpathy/nanoGPT, whose model.py is the peer then",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="the figures, added to those it has"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps of small models on the CPU"
    )
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; --tiny tries the same code on the CPU")
    steps, long_steps = (6, 8) if args.tiny else (200, args.steps)
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        vocab_size = 300 if args.tiny else compose(["+experiment=t4"])["data"]["vocab_size"]
        synthetic_data(work / "data", vocab_size, num_documents=8 if args.tiny else 40_000)

        def measure(
            part: str, side: str, function: Callable[..., Figures], *arguments: Any
        ) -> None:
            figures = function(*arguments) if args.tiny else apart(function, *arguments)
            results[part].setdefault(side, []).append(figures)
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

        for part in args.part:
            overrides = [
                *PARTS[part],
                *(TINY if args.tiny else ["trainer.compile=true"]),
                f"data.vocab_size={vocab_size}",
            ]
            results[part] = {
                "machine": machine(args.tiny),
                "peer": "benchmarks/gpt2.py" if args.nanogpt is None else "nanoGPT's model.py",
            }
            if part == "long":
                measure(part, "ours", ours, overrides, work, long_steps)
                continue
            for _ in range(args.rounds):
                measure(part, "ours", ours, overrides, work, steps)
                measure(part, "nanogpt", nanogpt_loop, overrides, work, steps, args.nanogpt)
            if part != "bf16":
                measure(part, "fp32", ours, [*overrides, "trainer.precision=32-true"], work, steps)
    print(table(results))


def apart(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """`function` in a fresh process, so that no measurement sees the memory or the compiled code of another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine(tiny: bool) -> str:
    """What it ran on."""
    about = describe()
    device = about["cpu"] if tiny else torch.cuda.get_device_name()
    caveat = " (tiny: the figures mean nothing)" if tiny else ""
    return f"{device}, PyTorch {torch.__version__}, commit {about['commit']}{caveat}"


# --- ours -----------------------------------------------------------------------------------------------------------


class Probe(pl.Callback):
    """Writes down what summary.json does not tell, at the end of the run, after its last save."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []
        self.skipped = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Look at the step just completed, if this batch completed one."""
        if pl_module.step_report is not None:
            self.losses.append(pl_module.step_report.loss)
            self.skipped += not pl_module.step_report.finite

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Write the figures."""
        history = next(cb for cb in trainer.callbacks if isinstance(cb, History))
        throughput = next(cb for cb in trainer.callbacks if isinstance(cb, Throughput))
        figures = {
            "step_seconds": history.clock.step_seconds,
            "tokens_per_step": trainer.datamodule.global_batch_size
            * pl_module.model_config.block_size,
            "flops_per_token": pl_module.model_config.flops_per_token(),
            "peak_flops": throughput.peak_flops,
            "steps": len(self.losses),
            "train_loss": self.losses[-1],
            "non_finite_losses": sum(not np.isfinite(loss) for loss in self.losses),
            "skipped_steps": self.skipped,
            "save_seconds": trainer.strategy.checkpoint_io.longest,
        }
        self.path.write_text(json.dumps(figures), encoding="utf-8")


def ours(overrides: list[str], work: Path, steps: int) -> Figures:
    """A run of `steps` steps at the experiment's own rates of learning, saved twice and validated at its ends."""
    full = compose(overrides)["trainer"]["max_steps"]
    given = [
        *overrides,
        *[
            f"trainer.max_steps={steps}",
            f"schedule.total_steps={max(full, steps)}",
            f"trainer.val_every_steps={steps}",
        ],
        *[f"trainer.checkpoint_every_steps={max(1, steps // 2)}", "data.val_windows=64"],
        *[f"data.dir={work / 'data'}", f"logs_dir={work / 'runs'}", "run_name=ours"],
    ]
    config = compose(given)
    config["callbacks"]["probe"] = {"_target_": "gpu.Probe", "path": str(work / "probe.json")}
    with fp16_on_cpu() if config["trainer"]["accelerator"] == "cpu" else contextlib.nullcontext():
        run = train(config, given)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    probe = json.loads((work / "probe.json").read_text(encoding="utf-8"))
    shutil.rmtree(work / "runs", ignore_errors=True)
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    told = {
        key: summary[key]
        for key in ("val_loss", "peak_memory_bytes", "num_params", "precision", "compile")
    }
    return {**told, **probe, "reserved_memory_bytes": reserved}


def fp16_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Let a run on the CPU have the fp16 that it asks for, and its scaler, without timing fp16 products for MFU."""
    return patch.multiple(
        hardware,
        resolve_precision=lambda precision, device: precision,
        peak_flops=lambda device, precision: 1e12,
    )


# --- the table ------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Every figure of `results` beside its bar, in Markdown."""
    lines = [
        "| part | figure | ours | nanoGPT | bar | kept |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    notes = []
    for part, result in results.items():
        if "ours" not in result:  # its first measurement failed
            continue
        notes.append(f"{part}: {result['machine']}; the peer is {result['peer']}.")
        lines += [f"| {part} | {' | '.join(row)} |" for row in rows(part, result)]
    return "\n".join([*notes, "", *lines])


def rows(part: str, result: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """(figure, ours, the peer's, bar, kept) of a part; the medians of its rounds, with their range."""
    runs, peers, last = result["ours"], result.get("nanogpt", []), result["ours"][-1]

    def values(side: list[Figures], key: str) -> list[float]:
        return [figures[key] for figures in side]

    def kept(right: bool) -> str:
        return "yes" if right else "NO"

    def peak(side: list[Figures]) -> float:
        return max(values(side, "peak_memory_bytes")) / 2**30

    broken = max(values(runs, "non_finite_losses"))
    yield (
        "steps with a non-finite loss",
        f"{broken} of {last['steps']:,}",
        "",
        "0",
        kept(broken == 0),
    )
    yield "skipped steps", f"{max(values(runs, 'skipped_steps'))}", "", "", ""
    if not peers:
        return
    rates, their_rates = (
        [figures["tokens_per_step"] / settled(figures) for figures in side]
        for side in (runs, peers)
    )
    yield "tokens/s", spread(rates, ",.0f"), spread(their_rates, ",.0f"), "", ""
    ratios = [rate / theirs for rate, theirs in zip(rates, their_rates, strict=True)]
    yield (
        "tokens/s, as a ratio",
        spread(ratios, ".3f"),
        "1",
        "at least 1.1",
        kept(statistics.median(ratios) >= 1.1),
    )
    share = statistics.median(rates) * last["flops_per_token"] / last["peak_flops"]
    their_share = statistics.median(their_rates) * peers[-1]["flops_per_token"] / last["peak_flops"]
    goal = ("0.45 on an H100", kept(share >= 0.45)) if part == "bf16" else ("", "")
    yield "MFU", f"{share:.3f}", f"{their_share:.3f}", *goal
    most = PEAK_GIB.get(part)
    bar = (f"under {most} GiB", kept(peak(runs) < most)) if most else ("", "")
    yield "peak memory, GiB", f"{peak(runs):.2f}", f"{peak(peers):.2f}", *bar
    if "fp32" in result:
        loss, exact = last["val_loss"], result["fp32"][-1]["val_loss"]
        told = f"{loss:.4f} in fp16, {exact:.4f} in fp32"
        yield (
            f"val_loss at step {last['steps']}",
            told,
            "",
            "within 1 %",
            kept(abs(loss / exact - 1) <= 0.01),
        )
    seconds = statistics.median(values(runs, "save_seconds"))
    cost = seconds / (500 * statistics.median(map(settled, runs)))
    told = f"{seconds:.2f} s, {100 * cost:.2f} % of a run"
    yield "a save every 500 steps", told, "", "under 1 %", kept(cost < 0.01)


def settled(figures: Figures) -> float:
    """Mean seconds of a step, after the first tenth of the steps, in which code is compiled and caches fill."""
    seconds = figures["step_seconds"]
    return statistics.mean(seconds[1 + len(seconds) // 10 :])


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
