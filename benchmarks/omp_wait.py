"""How threads should wait for each other: OMP_WAIT_POLICY and GOMP_SPINCOUNT, on an idle machine
and on a busy one.

    python benchmarks/omp_wait.py [nano small10m] [--rounds 3] [--steps 60] [--json FILE]

Trains each size in turn under each setting, alone (calm) and next to a process that keeps one core
busy, and prints our tokens per second. GOMP_SPINCOUNT is how often GNU's OpenMP (PyTorch's on
Linux) checks again before a thread sleeps. All runs use the number type that the CPU is fast in.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine

from azllm_lightning.machine.random_text import random_text

TRAIN = [sys.executable, "-m", "azllm_lightning.train"]

# An empty OMP_WAIT_POLICY is libgomp's own default, and keeps the package from setting one.
POLICIES = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "default": {"OMP_WAIT_POLICY": ""},
    **{
        f"spin_{count}": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": count}
        for count in ("1000", "10000", "100000")
    },
}
BATCHES = {"nano": (2048, 128, 16), "small10m": (8192, 256, 8), "tiny": (300, 16, 2)}
"""Vocabulary, context and sequences per step."""
MODELS = {
    "nano": ["model=nano"],
    "small10m": ["model=small10m"],
    "tiny": ["model.n_layer=1", "model.n_head=1", "model.n_embd=16"],
}
LOADS = ("calm", "busy")
Rates = dict[str, dict[str, list[float]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", help="from nano, small10m; default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=60, help="optimizer steps of a run; small10m: a quarter of it"
    )
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path, help="file for all measurements")
    args = parser.parse_args()
    sizes = args.sizes or ["nano", "small10m"]
    if unknown := set(sizes) - set(MODELS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(MODELS)}")
    about = machine.describe(machine.fast_type())
    machine.show(about)
    rates = measure(sizes, args.policies, args.rounds, args.steps)
    print("\n" + table(rates, args.policies))
    if args.json:
        report = {"machine": about, "tokens_per_sec": rates}
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def measure(sizes: list[str], policies: list[str], rounds: int, steps: int) -> Rates:
    """Tokens per second by "size, load" and policy, one per round."""
    rates: Rates = {}
    turns = [(size, policy, load) for size in sizes for policy in policies for load in LOADS]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for size, policy, load in turns:
                steps_now = max(4, steps // 4) if size == "small10m" else steps
                with competitor(load == "busy"):
                    rate = train(size, steps_now, POLICIES[policy], Path(folder))
                rates.setdefault(f"{size}, {load}", {}).setdefault(policy, []).append(rate)
                shown = f"round {number + 1}  {size}, {load}, {policy}: {rate:,.0f} tokens/s"
                print(shown, flush=True)
    return rates


def table(rates: Rates, policies: list[str]) -> str:
    """Markdown: the median (smallest to largest) of each."""
    lines = [f"| tokens/s | {' | '.join(policies)} |", "|---" * (len(policies) + 1) + "|"]
    for where, by_policy in rates.items():
        cells = [
            f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            for values in by_policy.values()
        ]
        lines.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def train(size: str, steps: int, policy: dict[str, str], folder: Path) -> float:
    """The median tokens per second of one run of our command."""
    vocab_size, block_size, batch_size = BATCHES[size]
    data = folder / str(vocab_size)
    if not data.exists():
        random_text(data, vocab_size, num_documents=1_500)
    overrides = [
        *MODELS[size],
        "data=text",
        f"data.dir={data}",
        f"data.vocab_size={vocab_size}",
        f"data.block_size={block_size}",
        "data.val_windows=8",
        f"trainer.global_batch_size={batch_size}",
        f"trainer.micro_batch_size={batch_size}",
        f"trainer.max_steps={steps}",
        f"trainer.val_every_steps={steps}",
        f"trainer.precision={machine.PRECISIONS[machine.fast_type()]}",
        "trainer.compile=false",
        "trainer.accelerator=cpu",
    ]
    before = set(folder.glob("lightning_logs/*/*"))
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    subprocess.run(
        [*TRAIN, *overrides],
        cwd=folder,
        env={**inherited, **policy},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (run,) = set(folder.glob("lightning_logs/*/*")) - before
    return float(json.loads((run / "summary.json").read_text(encoding="utf-8"))["tokens_per_sec"])


@contextmanager
def competitor(wanted: bool) -> Iterator[None]:
    """A process that keeps one core busy in the meantime."""
    if not wanted:
        yield
        return
    # It ends with this process, however that ends.
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    process = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
