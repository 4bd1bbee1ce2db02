"""Training speed compared with other tools, and the overhead of our loop.

    python benchmarks/throughput.py [ours hf litgpt gpt2_loop] [--rounds 3] [--steps 30]
        [--type bf16] [--json FILE]
    python benchmarks/throughput.py --overhead [30m nano short]

Each tool trains the same shape (6 layers x 384, 6 heads, tied vocabulary of 8,192, batches of
8 x 256) on the same tokens with AdamW, without dropout, validation or saving: `ours` (python -m
azllm_lightning.train, not compiled, which trainer.compile=auto finds faster), `hf` (transformers'
Trainer and GPT2LMHeadModel), `litgpt` (litgpt pretrain, a Pythia of these sizes), `gpt2_loop`
(nanoGPT's model in a hand-written loop, compiled). All run on the CPU and in one number type, so
that ratios compare equal types: bf16 mixed precision if the CPU has bf16 arithmetic, else fp32;
--type chooses. The first steps, which compile and warm up, do not count. The tools from PyPI get
their own venvs under .peers/, with our version of PyTorch; on a machine without a GPU point pip to
its CPU build.

The share of the machine is 6 N + 12 n_layer n_embd block_size operations per token (PaLM's count,
by our shape for all), divided by the rate of large products of the same type, measured at the end
in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import gpt2_loop
import machine
import torch
from clock import Race

from azllm_lightning import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.machine.random_text import random_text
from azllm_lightning.train import train

PEERS = machine.ROOT / ".peers"
SCRIPTS = Path(__file__).resolve().parent / "peers"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
PACKAGES = {
    "hf": [TORCH, "transformers[torch]>=4.51"],
    "litgpt": [TORCH, "litgpt>=0.5.13", "torchmetrics", "requests", "tensorboard", "numpy"],
}
FILES = {"hf": "hf.py", "litgpt": "litgpt_pretrain.py", "gpt2_loop": "gpt2_loop.py"}
TOOLS = ("ours", *FILES)
WARM_UP = 5  # steps that do not count
SHAPE = Race(
    "", "", 0, n_layer=6, n_head=6, n_embd=384, vocab_size=8192, block_size=256, batch_size=8
)
SEGMENT = 10  # steps that each loop of --overhead takes in turn: our command logs once in as many
OVERHEAD = {
    "30m": replace(SHAPE, n_layer=8, n_head=8, n_embd=512, steps=80),
    "nano": Race("", "", 400, 4, 3, 192, 2048, block_size=128, batch_size=16),
    # nano's layers with little to compute: the same overhead without the noise of the arithmetic
    "short": Race("", "", 800, 4, 3, 48, 2048, block_size=16, batch_size=4),
}
TINY = {
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 32,
    "vocab_size": 300,
    "block_size": 16,
    "batch_size": 2,
    "compiled": False,
    "products": (64,),
}


def main() -> None:
    """Run what was asked for, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="tools, or with --overhead sizes; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tool")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps per turn")
    parser.add_argument("--type", choices=machine.DTYPES, help="number type; default: the fast one")
    parser.add_argument(
        "--overhead", action="store_true", help="compare our loop with a hand-written one"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a smoke test in one process; its figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="file for all measurements")
    args = parser.parse_args()
    choices = tuple(OVERHEAD) if args.overhead else TOOLS
    names = args.names or list(choices)
    if unknown := set(names) - set(choices):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(choices)}")
    if args.type == "bf16" and machine.fast_type() != "bf16":
        parser.error(f"this CPU ({machine.cpu_kind()}) is slow in bf16; leave out --type")
    number_type = args.type or machine.fast_type()
    about = machine.describe(f"{number_type}, the same for all")
    machine.show(about)
    if args.overhead:
        report = overhead(names, number_type, args.tiny)
    else:
        shape = replace(SHAPE, steps=args.steps, number_type=number_type)
        shape = replace(shape, **TINY) if args.tiny else shape
        report = race(names, args.rounds, shape, separate=not args.tiny)
    if args.json:
        args.json.write_text(json.dumps({"machine": about, **report}, indent=1), encoding="utf-8")


# --- compared with other tools -------------------------------------------------------------------


def race(names: list[str], rounds: int, shape: Race, separate: bool = True) -> dict[str, Any]:
    """Let each of `names` train in turn, `rounds` times; print a table and return the measurements.

    Each turn has its own process if `separate`.
    """
    rates: dict[str, list[float]] = {name: [] for name in names}
    shares: dict[str, list[float]] = {name: [] for name in names}
    details: dict[str, Any] = {}
    for name in PACKAGES.keys() & names:  # before anything is measured
        venv(name)
    with tempfile.TemporaryDirectory() as folder:
        tokens = str(prepare(shape.vocab_size) / "train_00000.bin")
        shape = replace(shape, tokens=tokens, out=f"{folder}/report.json")
        for turn in range(rounds):
            for name in names:
                report = run(name, shape, Path(folder), separate)
                rate = tokens_per_second(report["ends"], shape)
                rates[name].append(rate)
                shares[name].append(rate * flops_per_token(shape) / report["matmul"])
                details[name] = report["details"]
                print(f"round {turn + 1}  {name:<10}{rate:9,.0f} tokens/s", flush=True)
    print("\n".join(f"{name:<10} {json.dumps(values)}" for name, values in details.items()))
    print("\n" + table(rates, shares, shape.number_type))
    return {
        "shape": asdict(shape),
        "tokens_per_sec": rates,
        "share_of_machine": shares,
        "details": details,
    }


def run(name: str, shape: Race, folder: Path, separate: bool) -> dict[str, Any]:
    """One turn of tool `name`: what it reported (`Clock.report`)."""
    settings = json.dumps(asdict(shape))
    if name == "ours":
        clock = f"+callbacks.clock={{_target_: ours.StepClock, race: '{settings}'}}"
        train_ours(shape, clock, folder, separate)
    elif name == "gpt2_loop" and not separate:
        gpt2_loop.train(shape)
    else:
        python = venv(name) if name in PACKAGES else sys.executable
        child([python, SCRIPTS / FILES[name], settings], folder)
    return checked_report(name, shape)


def checked_report(name: str, shape: Race) -> dict[str, Any]:
    """What `name` reported; exits if it trained in another number type than the rest."""
    report: dict[str, Any] = json.loads(Path(shape.out).read_text(encoding="utf-8"))
    if report["type"] != shape.number_type:
        sys.exit(f"{name} trained in {report['type']} instead of {shape.number_type}")
    return report


def tokens_per_second(ends: list[float], shape: Race) -> float:
    """Tokens per second between the ends of the first counted step and the last."""
    counted = ends[WARM_UP:]
    return (len(counted) - 1) * shape.batch_size * shape.block_size / (counted[-1] - counted[0])


def flops_per_token(shape: Race) -> int:
    """Operations per token, forward and backward, of our model of this shape."""
    known = GPTConfig.__dataclass_fields__
    sizes = {key: value for key, value in asdict(shape).items() if key in known}
    return GPTConfig(**sizes, tie_embeddings=True).flops_per_token()


def table(rates: dict[str, list[float]], shares: dict[str, list[float]], number_type: str) -> str:
    """Markdown: median (smallest to largest) of each tool, and our speed-up by round."""
    lines = [
        f"| tool, in {number_type} | tokens/s | share of {number_type} products | our speed-up |",
        "|---|---|---|---|",
    ]
    for name, values in rates.items():
        mine = rates.get("ours", []) if name != "ours" else []
        ratios = [ours / theirs for ours, theirs in zip(mine, values, strict=False)]
        ratio = spread(ratios, ".2f") if ratios else ""
        share = spread(shares[name], ".2f")
        lines.append(f"| {name} | {spread(values, ',.0f')} | {share} | {ratio} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """The median, the smallest and the largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# --- compared with a hand-written loop -----------------------------------------------------------


def overhead(names: list[str], number_type: str, tiny: bool) -> dict[str, Any]:
    """Our loop and a hand-written one in turn inside one run; print ratio and milliseconds, and
    return them.
    """
    measured = {}
    print("\n| model | ours / loop, tokens/s | ours, ms per step | overhead, ms per step |")
    print("|---|---|---|---|")
    for name in names:
        shape = replace(OVERHEAD[name], number_type=number_type)
        if tiny:
            shape = replace(shape, **TINY, steps=4 * SEGMENT)
        with tempfile.TemporaryDirectory() as folder:
            tokens = str(prepare(shape.vocab_size) / "train_00000.bin")
            shape = replace(shape, tokens=tokens, out=f"{folder}/report.json")
            settings = json.dumps(asdict(shape))
            loop = f"{{_target_: ours.HandLoop, race: '{settings}', segment: {SEGMENT}}}"
            train_ours(shape, f"+callbacks.loop={loop}", Path(folder), separate=not tiny)
            pairs = checked_report(name, shape)["seconds"]
        ours = [1000 * a / SEGMENT for a, _ in pairs]
        ratios = [b / a for a, b in pairs]
        more = [1000 * (a - b) / SEGMENT for a, b in pairs]
        measured[name] = {"ms": ours, "ratio": ratios, "more_ms": more}
        cells = quartiles(ratios, ".3f"), quartiles(ours, ".1f"), quartiles(more, ".2f")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return {"overhead": measured}


def quartiles(values: list[float], form: str) -> str:
    """The median, and the range of the middle half."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


# --- what both need ------------------------------------------------------------------------------


def prepare(vocab_size: int) -> Path:
    """Prepared shards of random tokens, kept under .peers/data."""
    folder = PEERS / "data" / f"vocab_{vocab_size}"
    if not folder.is_dir():
        random_text(folder, vocab_size, num_documents=1_500)
    return folder


def train_ours(shape: Race, callback: str, folder: Path, separate: bool) -> None:
    """Our command on this shape with a `callback`, in its own process if `separate`."""
    never = 10**9
    settings = {
        "data": "text",
        "data.dir": Path(shape.tokens).parent,
        "data.vocab_size": shape.vocab_size,
        "data.block_size": shape.block_size,
        "data.val_windows": shape.batch_size,
        "model.n_layer": shape.n_layer,
        "model.n_head": shape.n_head,
        "model.n_embd": shape.n_embd,
        "model.tie_embeddings": "true",
        "optimizer": "adamw",
        "trainer.max_steps": shape.steps,
        "trainer.global_batch_size": shape.batch_size,
        "trainer.micro_batch_size": shape.batch_size,
        "trainer.compile": "false",
        "trainer.accelerator": "cpu",
        "trainer.precision": machine.PRECISIONS[shape.number_type],
        "trainer.val_every_steps": never,
        "trainer.checkpoint_every_steps": never,
        "logs_dir": folder / "runs",
    }
    overrides = [*(f"{key}={value}" for key, value in settings.items()), callback]
    if separate:
        child([sys.executable, "-m", "azllm_lightning.train", *overrides], folder)
    else:
        train(compose(overrides))


def venv(tool: str) -> Path:
    """The Python of .peers/<tool>, installed if it is missing or its packages have changed."""
    folder = PEERS / tool
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "installed.txt"
    wanted = "\n".join(PACKAGES[tool])
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {tool} into {folder} ...", flush=True)
        child([sys.executable, "-m", "venv", folder], machine.ROOT)
        child([python, "-m", "pip", "install", *PACKAGES[tool]], machine.ROOT)
        done.write_text(wanted, encoding="utf-8")
    return python


def child(command: list[str | Path], folder: Path) -> None:
    """Run `command` in `folder`; if it fails, show its output and exit."""
    paths = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        shown = " ".join(map(str, command))
        sys.exit(f"{shown} failed ({done.returncode}):\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    main()
