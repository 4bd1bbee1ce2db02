"""Tokens per second beside public peers, run in turn on this machine; and what our loop costs beside one by hand.

    python benchmarks/throughput.py [ours hf hf_bf16 litgpt gpt2_loop] [--rounds 3] [--json FILE]
    python benchmarks/throughput.py --overhead [30m nano short]

Each contestant trains the same shape (6 layers x 384, 6 heads, tied vocabulary of 8,192, batches of 8 x 256) on the
same tokens with AdamW, without dropout, validation or saving: `ours` (python -m azllm_lightning.train, precision auto,
trainer.compile=true), `hf` (transformers' Trainer and GPT2LMHeadModel as they come) and `hf_bf16` (its bf16=True),
`litgpt` (litgpt pretrain as it comes, a Pythia of these sizes), `gpt2_loop` (nanoGPT's model in a loop by hand, bf16
and compiled); all on the CPU. The first steps, which compile and warm up, do not count. The peers from PyPI get venvs
of their own under .peers/, with our version of PyTorch; on a machine without a GPU let pip find its CPU build.

The share of the machine is 6 N + 12 n_layer n_embd block_size operations a token (PaLM's count, by our shape for
all) over the rate of large bf16 products, measured at the end in the same process.
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
import machine
import torch
from clock import Race
from synthetic import synthetic_data

from azllm_lightning.config.model import GPTConfig

PEERS = machine.ROOT / ".peers"
SCRIPTS = Path(__file__).resolve().parent / "peers"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
PACKAGES = {
    "hf": [TORCH, "transformers[torch]>=4.51"],
    "litgpt": [TORCH, "litgpt>=0.5.13", "torchmetrics", "requests", "tensorboard", "numpy"],
}
CONTESTANTS = ("ours", "hf", "hf_bf16", "litgpt", "gpt2_loop")
WARM_UP = 5  # steps that do not count
SHAPE = Race(
    "", "", 0, n_layer=6, n_head=6, n_embd=384, vocab_size=8192, block_size=256, batch_size=8
)
SEGMENT = 10  # steps that either loop of --overhead takes at a time: as many as log once
OVERHEAD = {
    "30m": replace(SHAPE, n_layer=8, n_head=8, n_embd=512, steps=80),
    "nano": Race("", "", 400, 4, 3, 192, 2048, block_size=128, batch_size=16, compiled=False),
    # nano's layers with little to compute: what a loop adds is the same, and the noise of the arithmetic is gone
    "short": Race("", "", 800, 4, 3, 48, 2048, block_size=16, batch_size=4, compiled=False),
}
TINY = {
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 32,
    "vocab_size": 300,
    "block_size": 16,
    "batch_size": 2,
    "compiled": False,
}


def main() -> None:
    """Run what was asked for, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="contestants, or with --overhead sizes; default: all"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that each contestant has its turn"
    )
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a turn")
    parser.add_argument(
        "--overhead",
        action="store_true",
        help="our loop beside a loop by hand, both with our model",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a shape that shows that the benchmark works, no more"
    )
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    args = parser.parse_args()
    choices = tuple(OVERHEAD) if args.overhead else CONTESTANTS
    names = args.names or list(choices)
    if unknown := set(names) - set(choices):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(choices)}")
    about = machine.describe()
    print("\n".join(f"{key:<8}{value}" for key, value in about.items()), flush=True)
    report = (
        overhead(names, args.tiny)
        if args.overhead
        else race(names, args.rounds, args.steps, args.tiny)
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": about, **report}, indent=1), encoding="utf-8")


# --- beside peers -----------------------------------------------------------------------------------------------------


def race(names: list[str], rounds: int, steps: int, tiny: bool) -> dict[str, Any]:
    """Let each of `names` train in turn, `rounds` times; prints a table and returns what was measured."""
    shape = replace(SHAPE, steps=steps, **(TINY if tiny else {}))
    rates: dict[str, list[float]] = {name: [] for name in names}
    shares: dict[str, list[float]] = {name: [] for name in names}
    told: dict[str, Any] = {}
    for name in names:  # before anything is measured
        if name.partition("_")[0] in PACKAGES:
            venv(name.partition("_")[0])
    with tempfile.TemporaryDirectory() as folder:
        shape = replace(
            shape,
            tokens=str(prepare(shape.vocab_size) / "train_00000.bin"),
            out=f"{folder}/report.json",
        )
        for turn in range(rounds):
            for name in names:
                report = run(name, shape, Path(folder))
                rate = tokens_per_second(report["ends"], shape)
                rates[name].append(rate)
                shares[name].append(rate * flops_per_token(shape) / report["matmul"])
                told[name] = report["told"]
                print(f"round {turn + 1}  {name:<10}{rate:9,.0f} tokens/s", flush=True)
    print("\n".join(f"{name:<10} {json.dumps(values)}" for name, values in told.items()))
    print("\n" + table(rates, shares))
    return {
        "shape": asdict(shape),
        "tokens_per_sec": rates,
        "share_of_machine": shares,
        "told": told,
    }


def run(name: str, shape: Race, folder: Path) -> dict[str, Any]:
    """One turn of contestant `name` in a process of its own: when its steps ended, and what it told."""
    if name == "ours":
        train(shape, f"+callbacks.clock={{_target_: ours.StepClock, out: '{shape.out}'}}", folder)
    elif name == "gpt2_loop":
        child([sys.executable, SCRIPTS / "gpt2_loop.py", json.dumps(asdict(shape))], folder)
    else:
        peer = name.partition("_")[0]
        script = SCRIPTS / {"hf": "hf.py", "litgpt": "litgpt_pretrain.py"}[peer]
        child(
            [venv(peer), script, json.dumps(asdict(replace(shape, bf16=name == "hf_bf16")))], folder
        )
    return json.loads(Path(shape.out).read_text(encoding="utf-8"))


def tokens_per_second(ends: list[float], shape: Race) -> float:
    """Tokens per second between the ends of the first counted step and the last."""
    counted = ends[WARM_UP:]
    return (len(counted) - 1) * shape.batch_size * shape.block_size / (counted[-1] - counted[0])


def flops_per_token(shape: Race) -> int:
    """Operations of one token, forward and backward, of our model of this shape."""
    sizes = {
        key: value for key, value in asdict(shape).items() if key in GPTConfig.__dataclass_fields__
    }
    return GPTConfig(**sizes, tie_embeddings=True).flops_per_token()


def table(rates: dict[str, list[float]], shares: dict[str, list[float]]) -> str:
    """Markdown: median (smallest to largest) of each contestant, and of ours over it by round."""
    lines = [
        "| contestant | tokens/s | share of bf16 products | ours is faster by |",
        "|---|---|---|---|",
    ]
    for name, values in rates.items():
        ratios = [
            ours / theirs for ours, theirs in zip(rates.get("ours", ()), values, strict=False)
        ]
        ratio = f"{spread(ratios, '.2f')}" if ratios and name != "ours" else ""
        lines.append(
            f"| {name} | {spread(values, ',.0f')} | {spread(shares[name], '.2f')} | {ratio} |"
        )
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# --- beside a loop by hand --------------------------------------------------------------------------------------------


def overhead(names: list[str], tiny: bool) -> dict[str, Any]:
    """Our loop and the loop by hand in turn within one process; prints ratio and milliseconds, and returns them."""
    measured = {}
    print(
        "\n| model | ours / loop, tokens/s | ours, ms a step | more than the loop, ms |\n|---|---|---|---|"
    )
    for name in names:
        shape = OVERHEAD[name]
        if tiny:
            shape = replace(shape, **TINY, steps=4 * SEGMENT)
        with tempfile.TemporaryDirectory() as folder:
            tokens = str(prepare(shape.vocab_size) / "train_00000.bin")
            shape = replace(shape, tokens=tokens, out=f"{folder}/report.json")
            loop = f"{{_target_: ours.HandLoop, race: '{json.dumps(asdict(shape))}', segment: {SEGMENT}}}"
            train(shape, f"+callbacks.loop={loop}", Path(folder))
            pairs = json.loads(Path(shape.out).read_text(encoding="utf-8"))["seconds"]
        ours = [1000 * a / SEGMENT for a, _ in pairs]
        ratios, more = [b / a for a, b in pairs], [1000 * (a - b) / SEGMENT for a, b in pairs]
        measured[name] = {"ms": ours, "ratio": ratios, "more_ms": more}
        print(
            f"| {name} | {quartiles(ratios, '.3f')} | {quartiles(ours, '.1f')} | {quartiles(more, '.2f')} |",
            flush=True,
        )
    return {"overhead": measured}


def quartiles(values: list[float], form: str) -> str:
    """The median of paired segments, and the range of their middle half."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


# --- what both need ---------------------------------------------------------------------------------------------------


def prepare(vocab_size: int) -> Path:
    """Prepared shards of random tokens, kept under .peers/data."""
    folder = PEERS / "data" / f"vocab_{vocab_size}"
    if not folder.is_dir():
        synthetic_data(folder, vocab_size, num_documents=1_500)
    return folder


def train(shape: Race, callback: str, folder: Path) -> None:
    """The real command on this shape, with a `callback` of ours; its run goes to `folder`."""
    never = 10**9
    settings = {
        "data": "text",
        "data.dir": Path(shape.tokens).parent,
        "data.vocab_size": shape.vocab_size,
        "data.block_size": shape.block_size,
        "data.batch_size": shape.batch_size,
        "data.val_windows": shape.batch_size,
        "model.n_layer": shape.n_layer,
        "model.n_head": shape.n_head,
        "model.n_embd": shape.n_embd,
        "model.tie_embeddings": "true",
        "optimizer": "adamw",
        "trainer.max_steps": shape.steps,
        "trainer.compile": str(shape.compiled).lower(),
        "trainer.accelerator": "cpu",
        "trainer.val_every_steps": never,
        "trainer.checkpoint_every_steps": never,
    }
    typed = [f"{key}={value}" for key, value in settings.items()]
    child([sys.executable, "-m", "azllm_lightning.train", *typed, callback], folder)


def venv(peer: str) -> Path:
    """The Python of .peers/<peer>, made where it is not there or its packages have changed."""
    folder = PEERS / peer
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "installed.txt"
    wanted = "\n".join(PACKAGES[peer])
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {peer} into {folder} ...", flush=True)
        child([sys.executable, "-m", "venv", folder], machine.ROOT)
        child([python, "-m", "pip", "install", *PACKAGES[peer]], machine.ROOT)
        done.write_text(wanted, encoding="utf-8")
    return python


def child(command: list[str | Path], folder: Path) -> None:
    """Run `command` in `folder`; where it fails, show what it said and leave."""
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
        sys.exit(
            f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout[-4000:]}"
        )


if __name__ == "__main__":
    main()
