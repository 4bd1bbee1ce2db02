"""Our runs and nanoGPT's model and loop of the same shape, in turn, on one NVIDIA GPU.

    python benchmarks/gpu.py [--minutes 9] [--part t4 laptop_4gb bf16 long] [--rounds 2] [--only
    speed fp32 deterministic check long] [--steps 200] [--long-steps 2000] [--nanogpt DIR]
    [--text DIR] [--out gpu.json] [--together]

t4 and laptop_4gb are the experiments of those names in fp16, without flash attention, which a T4
does not have either; bf16 is the model of t4 with a context of 1,024. Each runs for `--steps`
steps, compiled, with a process per measurement, and both sides use the same number type.
`deterministic` is what trainer.deterministic=true costs. `check` is the verb of that name, whose
resume must be exact. `long` is t4 for `--long-steps` steps, without a non-finite loss; a tenth of
it in fp32 must have the same loss there, and so must all of laptop_4gb.

A card with room for all of them at once saves most of the time with --together: the measurements
of speed start side by side, wait until all are compiled, and take turns; then all the others run
side by side.

No measurement starts after --minutes. --out keeps what earlier calls on the same machine have
measured, and the next call goes on after that, so the same command twice is enough where a session
is short; --text then keeps the text between them. The table shows all of it and goes to the same
name with .md.

Our side goes through `azllm_lightning.train`, as any run does. The other side is `nanogpt_loop`
around gpt2.py, or with --nanogpt around the model.py of a checkout. The text is random
(`random_text`), unless --text names prepared shards.

Without a GPU it says so and exits with code 2. `--tiny` runs the same code on any CPU. Its figures
mean nothing, and it does not cover CUDA's kernels, compiling, the peak of GPU memory, MFU and the
separate processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import torch
from machine import describe
from nanogpt_loop import nanogpt_loop
from turns import be_ready, take_turn, turns

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
ORDER = ["t4", "bf16", "laptop_4gb", "long"]
KINDS = ("speed", "fp32", "deterministic", "check", "long")
TIMED = ("speed", "deterministic")
ONCE = [
    ("long", "ours", "long"),
    ("t4", "check", "check"),
    ("bf16", "deterministic", "deterministic"),
    ("long", "fp32", "fp32"),
    ("bf16", "check", "check"),
    ("laptop_4gb", "check", "check"),
    ("laptop_4gb", "fp32", "fp32"),
    ("t4", "deterministic", "deterministic"),
]
"""What one round is enough for, as (part, side, kind), the most important first."""

NO_FLASH = ("t4", "laptop_4gb", "long")
"""Parts for cards older than flash attention."""

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
LEAST_RATIO = 1.2
"""Our tokens per second over those of nanoGPT."""

LEAST_MFU = 0.50
"""Of the bf16 part, on an H100."""

LEAST_DETERMINISTIC = 0.95
"""Tokens per second with trainer.deterministic=true over those without."""

Figures = dict[str, Any]


class Task(NamedTuple):
    """One measurement: `side` is its key in the results of `part`, `kind` what --only names."""

    part: str
    side: str
    kind: str


def main() -> None:
    """Measure what is asked for and not there yet, and print the table of all that --out holds."""
    args = arguments()
    end = time.monotonic() + 60 * args.minutes
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    tasks = left(results, args)
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        work = Path(folder).absolute()
        vocab_size = 300 if args.tiny else compose(["experiment=t4"]).data.vocab_size
        text = args.text.absolute() if args.text else work / "data"
        if not text.exists():
            random_text(text, vocab_size, num_documents=8 if args.tiny else 40_000)
        data = [f"data.dir={text}", f"data.vocab_size={vocab_size}"]
        for tasks_now in at_once(tasks, args.together):
            if time.monotonic() >= end:
                break
            for task, found in attempts(tasks_now, data, work, args):
                tasks.remove(task)
                keep(results[task.part], task.side, found)
                write(results, args.out)
    write(results, args.out)
    text = table(results)
    if tasks:
        names = ", ".join(f"{task.part} {task.side}" for task in tasks)
        text += f"\n\nNot measured yet (run the same command again): {names}."
    args.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def at_once(tasks: list[Task], together: bool) -> list[list[Task]]:
    """The tasks in groups that run side by side: those that are timed, then the others; without
    `together`, each alone.
    """
    if not together:
        return [[task] for task in tasks]
    timed = [task for task in tasks if task.kind in TIMED]
    return list(filter(None, [timed, [task for task in tasks if task not in timed]]))


def attempts(
    tasks: list[Task], data: list[str], work: Path, args: argparse.Namespace
) -> Iterator[tuple[Task, Figures | str]]:
    """Each task with what was measured or why it failed, as soon as it is done; several run side by
    side, and those that are timed take turns.
    """
    if len(tasks) == 1:
        yield tasks[0], attempt(tasks[0], data, work, args)
        return
    count = sum(task.kind in TIMED for task in tasks)
    with turns(count, work / "turns"), ThreadPoolExecutor(len(tasks)) as threads:
        jobs = {threads.submit(attempt, task, data, work, args): task for task in tasks}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def attempt(task: Task, data: list[str], work: Path, args: argparse.Namespace) -> Figures | str:
    """What was measured, or why it failed."""
    print(f"{task.part}: {task.side}", file=sys.stderr, flush=True)
    overrides = [*PARTS[task.part], *(TINY if args.tiny else ["trainer.compile=true"]), *data]
    folder = Path(tempfile.mkdtemp(prefix=f"{task.part}_{task.side}_", dir=work))
    try:
        return measure(task, overrides, folder, args)
    except Exception as error:  # the others may still succeed
        be_ready(folder.name)
        return f"{type(error).__name__}: {error}"


def keep(result: Figures, side: str, found: Figures | str) -> None:
    """Add what `attempt` found to the result of a part."""
    if isinstance(found, str):
        result.setdefault("failures", {})[side] = found
    else:
        result.setdefault(side, []).append(found)
        result.get("failures", {}).pop(side, None)


def write(results: Figures, out: Path) -> None:
    """Keep the figures so far."""
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line; exits with code 2 if there is no GPU and --tiny is not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run but the long one")
    parser.add_argument("--long-steps", type=int, default=2000, help="steps of the long part")
    parser.add_argument(
        "--minutes", type=float, default=9, help="no measurement starts after that time"
    )
    parser.add_argument(
        "--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT whose model.py is compared"
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="folder of prepared shards; random ones are written there if it is new",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="file that keeps the figures"
    )
    parser.add_argument(
        "--together", action="store_true", help="side by side, for a card with memory for all"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps of small models, on a CPU")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no GPU; --tiny runs the same code on a CPU", file=sys.stderr)
        sys.exit(2)
    return args


def left(results: Figures, args: argparse.Namespace) -> list[Task]:
    """What remains to be measured, the most important first.

    Parts that another machine, commit or peer has measured begin again.
    """
    about = {
        "machine": machine(args.tiny),
        "peer": "benchmarks/gpt2.py" if args.nanogpt is None else "nanoGPT's model.py",
    }
    tasks: list[Task] = []
    for turn in range(args.rounds):
        for part in sorted(args.part, key=ORDER.index):
            if part != "long":
                tasks += [Task(part, "ours", "speed"), Task(part, "nanogpt", "speed")]
        if turn == 0:
            tasks += [Task(part, side, kind) for part, side, kind in ONCE if part in args.part]
    for part in args.part:
        if {key: results.get(part, {}).get(key) for key in about} != about:
            results[part] = dict(about)
    done = {(part, side): len(found) for part in results for side, found in sides(results[part])}
    remaining = []
    for task in tasks:
        place = (task.part, task.side)
        if done.get(place, 0):
            done[place] -= 1
        elif task.kind in args.only:
            remaining.append(task)
    return remaining


def sides(result: Figures) -> list[tuple[str, list[Figures]]]:
    """The measurements of a part, without what is said about it."""
    return [(side, found) for side, found in result.items() if isinstance(found, list)]


def measure(task: Task, overrides: list[str], work: Path, args: argparse.Namespace) -> Figures:
    """One measurement, in a process of its own unless --tiny is given."""
    call = called if args.tiny and not args.together else apart
    steps = 6 if args.tiny else args.steps
    if task.side == "check":
        return checked(task.part, [*overrides, f"minutes={3 if args.tiny else 2}"], work)
    if task.side == "nanogpt":
        return call(theirs, task.part, overrides, steps, args.nanogpt)
    more = {"fp32": ["trainer.precision=32-true"], "deterministic": ["trainer.deterministic=true"]}
    if task.part == "long":
        steps = 20 if args.tiny else args.long_steps
        if task.kind == "fp32":
            steps //= 10
    return call(ours, task.part, [*overrides, *more.get(task.side, [])], work, steps)


def called(function: Callable[..., Figures], *values: Any) -> Figures:
    """`function` in this process."""
    return function(*values)


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


@contextlib.contextmanager
def attention_of(part: str) -> Iterator[None]:
    """In the parts of NO_FLASH, attention uses neither the flash kernel nor that of cuDNN."""
    if part not in NO_FLASH:
        yield
        return
    backends = torch.backends.cuda
    before = (backends.flash_sdp_enabled(), backends.cudnn_sdp_enabled())
    backends.enable_flash_sdp(False)
    backends.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        backends.enable_flash_sdp(before[0])
        backends.enable_cudnn_sdp(before[1])


class NoFlash(pl.Callback):
    """The same for a run of `check`, which is in a process of its own."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Before the first forward pass."""
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


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
            if len(self.losses) == max(1, trainer.max_steps // 10):
                take_turn()

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
            "val_losses": {str(row.step): row.val_loss for row in history.validations},
            "non_finite_losses": sum(not np.isfinite(loss) for loss in self.losses),
            "skipped_steps": self.skipped,
            "save_seconds": trainer.strategy.checkpoint_io.longest,
        }
        self.path.write_text(json.dumps(figures), encoding="utf-8")


def ours(part: str, overrides: list[str], work: Path, steps: int) -> Figures:
    """A run of `steps` steps with the experiment's own learning rates, saved twice and validated at
    both ends.
    """
    planned = compose(overrides).trainer.max_steps
    config = compose(
        [
            *overrides,
            f"trainer.max_steps={steps}",
            f"schedule.total_steps={max(planned, steps)}",
            f"trainer.val_every_steps={max(1, steps // 10) if part == 'long' else steps}",
            f"trainer.checkpoint_every_steps={max(1, steps // 2)}",
            "data.val_windows=64",
            f"logs_dir={work / 'runs'}",
            "run_name=ours",
            "+callbacks.probe._target_=gpu.Probe",
            f"+callbacks.probe.path={work / 'probe.json'}",
        ]
    )
    on_cpu = config.trainer.accelerator == "cpu"
    with attention_of(part), fp16_on_cpu() if on_cpu else contextlib.nullcontext():
        run = train(config)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    probe = json.loads((work / "probe.json").read_text(encoding="utf-8"))
    shutil.rmtree(work / "runs", ignore_errors=True)
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    keys = ("val_loss", "peak_memory_bytes", "num_params", "precision", "compile")
    return {**{key: summary[key] for key in keys}, **probe, "reserved_memory_bytes": reserved}


def checked(part: str, overrides: list[str], work: Path) -> Figures:
    """What `check` finds about the part: a run as it is, and a resume with deterministic=true."""
    out = work / "check.json"
    settings = [*overrides, f"logs_dir={work}", f"out={out}"]
    if part in NO_FLASH:
        settings += ["+callbacks.no_flash._target_=gpu.NoFlash"]
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "azllm_lightning.check", *settings]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    if not out.is_file():
        raise RuntimeError(f"check ended with exit code {done.returncode}")
    found: Figures = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return found


def theirs(part: str, overrides: list[str], steps: int, checkout: Path | None) -> Figures:
    """The other side."""
    with attention_of(part):
        return nanogpt_loop(overrides, steps, checkout, take_turn)


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
        if not sides(result) and "failures" not in result:
            continue
        notes.append(f"{part}: {result['machine']}; compared with {result['peer']}.")
        notes += [
            f"{part}, {side}: FAILED, {reason}"
            for side, reason in result.get("failures", {}).items()
        ]
        lines += [f"| {part} | {' | '.join(row)} |" for row in rows(part, result)]
    return "\n".join([*notes, "", *lines])


def rows(part: str, result: Figures) -> Iterator[Row]:
    """The rows of a part: medians of its rounds, with their range."""
    if runs := result.get("ours", []):
        yield from our_rows(part, runs)
    if runs and (peers := result.get("nanogpt", [])):
        yield Row("number type", runs[-1]["precision"], peers[-1]["precision"])
        yield from speed_rows(part, runs, peers)
        yield memory_row(part, runs, peers)
    if runs and "fp32" in result:
        step = result["fp32"][-1]["steps"]
        loss, exact = (side[-1]["val_losses"][str(step)] for side in (runs, result["fp32"]))
        losses = f"{loss:.4f} in fp16, {exact:.4f} in fp32"
        kept = yes_or_no(abs(loss / exact - 1) <= 0.01)
        yield Row(f"val_loss at step {step}", losses, "", "within 1 %", kept)
    if runs and "deterministic" in result:
        plain, exact = (
            statistics.median(figures["tokens_per_step"] / settled(figures) for figures in side)
            for side in (runs, result["deterministic"])
        )
        kept = yes_or_no(exact / plain >= LEAST_DETERMINISTIC)
        bar = f"at least {LEAST_DETERMINISTIC}"
        yield Row("tokens/s with deterministic=true", f"{exact / plain:.3f}", "", bar, kept)
    for found in result.get("check", []):
        yield from check_rows(found)


def our_rows(part: str, runs: list[Figures]) -> Iterator[Row]:
    """What is known of our runs alone."""
    broken = max(run["non_finite_losses"] for run in runs)
    found = f"{broken} of {runs[-1]['steps']:,}"
    yield Row("steps with a non-finite loss", found, "", "0", yes_or_no(broken == 0))
    yield Row("skipped steps", str(max(run["skipped_steps"] for run in runs)))
    if part == "long":
        return
    seconds = statistics.median(run["save_seconds"] for run in runs)
    share = seconds / (500 * statistics.median(map(settled, runs)))
    cost = f"{seconds:.2f} s, {100 * share:.2f} % of a run"
    yield Row("a save every 500 steps", cost, "", "under 1 %", yes_or_no(share < 0.01))


def check_rows(found: Figures) -> Iterator[Row]:
    """What `check` found: its resume, and the speeds that it measured."""
    resume = found["resume"]
    shown = resume["reason"] or ("exact" if resume["is_exact"] else resume["first_difference"])
    yield Row("check: resume", shown, "", "exact", yes_or_no(resume.get("is_exact") is True))
    steps = found["steps"]
    shown = steps["reason"] or f"{steps['tokens_per_second']:,.0f}"
    yield Row("check: tokens/s", shown)
    if steps["status"] == "ok" and steps["mfu_of_products"] is not None:
        yield Row("check: MFU of the measured products", f"{steps['mfu_of_products']:.3f}")


def speed_rows(part: str, runs: list[Figures], peers: list[Figures]) -> Iterator[Row]:
    """Tokens per second, their ratio in each round, and MFU."""
    rates, their_rates = (
        [figures["tokens_per_step"] / settled(figures) for figures in side]
        for side in (runs, peers)
    )
    yield Row("tokens/s", spread(rates, ",.0f"), spread(their_rates, ",.0f"))
    ratios = [rate / theirs for rate, theirs in zip(rates, their_rates, strict=False)]
    kept = yes_or_no(statistics.median(ratios) >= LEAST_RATIO)
    bar = f"at least {LEAST_RATIO}"
    yield Row("tokens/s, as a ratio", spread(ratios, ".3f"), "1", bar, kept)
    peak = runs[-1]["peak_flops"]
    share = statistics.median(rates) * runs[-1]["flops_per_token"] / peak
    their_share = statistics.median(their_rates) * peers[-1]["flops_per_token"] / peak
    row = Row("MFU", f"{share:.3f}", f"{their_share:.3f}")
    if part == "bf16":
        row = row._replace(bar=f"{LEAST_MFU} on an H100", kept=yes_or_no(share >= LEAST_MFU))
    yield row


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
