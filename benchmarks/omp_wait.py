"""How threads should wait for each other: OMP_WAIT_POLICY and GOMP_SPINCOUNT, on a calm machine and on a busy one.

    python benchmarks/omp_wait.py [nano small10m] [--rounds 3] [--steps 60] [--json FILE]

Trains the sizes in turn under each setting, alone (calm) and beside one process that keeps a core busy, and prints our
tokens per second. GOMP_SPINCOUNT is how often GNU's OpenMP, PyTorch's on Linux, looks again before a thread sleeps.
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
from typing import Any

import machine
from synthetic import synthetic_data

# An empty OMP_WAIT_POLICY is libgomp's own default, and keeps the package from setting one.
POLICIES = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "default": {"OMP_WAIT_POLICY": ""},
    **{
        f"spin_{count}": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": count}
        for count in ("1000", "10000", "100000")
    },
}
SIZES = {
    "nano": ["model=nano", "data.vocab_size=2048", "data.block_size=128", "data.batch_size=16"],
    "small10m": [
        "model=small10m",
        "data.vocab_size=8192",
        "data.block_size=256",
        "data.batch_size=8",
    ],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", help=f"from {', '.join(SIZES)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="optimizer steps of a run; a quarter of it for small10m",
    )
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    args = parser.parse_args()
    about = machine.describe()
    print("\n".join(f"{key:<8}{value}" for key, value in about.items()), flush=True)
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            for size in args.sizes or SIZES:
                steps = args.steps if size == "nano" else max(4, args.steps // 4)
                for policy in args.policies:
                    for load in ("calm", "busy"):
                        with competitor(load == "busy"):
                            rate = train(size, steps, POLICIES[policy], Path(folder))
                        rates.setdefault(f"{size}, {load}", {}).setdefault(policy, []).append(rate)
                        print(
                            f"round {turn + 1}  {size}, {load}, {policy}: {rate:,.0f} tokens/s",
                            flush=True,
                        )
    print(
        "\n| tokens/s | " + " | ".join(args.policies) + " |\n|---" * (len(args.policies) + 1) + "|"
    )
    for where, by_policy in rates.items():
        cells = [
            f"{statistics.median(v):,.0f} ({min(v):,.0f} to {max(v):,.0f})"
            for v in by_policy.values()
        ]
        print(f"| {where} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, "tokens_per_sec": rates}, indent=1), encoding="utf-8"
        )


def train(size: str, steps: int, policy: dict[str, str], folder: Path) -> float:
    """The median tokens per second of one run of the real command."""
    settings = dict(pair.split("=") for pair in SIZES[size])
    data = folder / settings["data.vocab_size"]
    if not data.exists():
        synthetic_data(data, int(settings["data.vocab_size"]), num_documents=1_500)
    overrides = [
        *SIZES[size],
        "data=text",
        f"data.dir={data}",
        "data.val_windows=8",
        f"trainer.max_steps={steps}",
    ]
    overrides += [
        "trainer.compile=false",
        "trainer.accelerator=cpu",
        f"trainer.val_every_steps={steps}",
    ]
    before = set(folder.glob("lightning_logs/*/*"))
    subprocess.run(
        [sys.executable, "-m", "azllm_lightning.train", *overrides],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}, **policy},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (run,) = set(folder.glob("lightning_logs/*/*")) - before
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return float(summary["tokens_per_sec"])


@contextmanager
def competitor(wanted: bool) -> Iterator[None]:
    """A process that keeps one core busy meanwhile."""
    if not wanted:
        yield
        return
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # ends with this process, however that ends
    process = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
