"""Start-up time: until the settings are printed, and until the first step of the default job.

    python benchmarks/startup.py [--rounds 3] [--json FILE] [-- OVERRIDES]

`cfg`: python -m azllm_lightning.train --cfg job, from start to end. `fresh` and `again`: the
default job from the command to the first step in its event file, without prepared data and with it;
the run is then stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import machine

TRAIN = [sys.executable, "-m", "azllm_lightning.train"]
BARS = {"cfg": 1.5, "fresh": 10.0, "again": 10.0}
"""Most seconds that are wanted."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for all measurements")
    parser.add_argument("overrides", nargs="*", help="of the job; default: none")
    args = parser.parse_args()
    about = machine.describe()
    machine.show(about)
    seconds: dict[str, list[float]] = {name: [] for name in BARS}
    for _ in range(args.rounds):
        seconds["cfg"].append(settings_seconds())
        with tempfile.TemporaryDirectory() as folder:
            seconds["fresh"].append(first_step_seconds(Path(folder), args.overrides))
            seconds["again"].append(first_step_seconds(Path(folder), args.overrides))
    print("\n" + table(seconds))
    if args.json:
        report = {"machine": about, "seconds": seconds}
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def table(seconds: dict[str, list[float]]) -> str:
    """Markdown: the median (smallest to largest) of each, and what is wanted."""
    lines = ["| what | seconds | wanted |", "|---|---|---|"]
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        lines.append(f"| {name} | {spread} | under {BARS[name]} |")
    return "\n".join(lines)


def settings_seconds() -> float:
    """Seconds of `--cfg job`."""
    started = time.perf_counter()
    command = [*TRAIN, "--cfg", "job"]
    subprocess.run(command, cwd=machine.ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_step_seconds(folder: Path, overrides: Sequence[str] = ()) -> float:
    """Seconds from the command to its first train_loss on disk; data and run stay in `folder`."""
    earlier = set(folder.glob("lightning_logs/*/*"))
    started = time.perf_counter()
    job = subprocess.Popen(
        [*TRAIN, *overrides],
        cwd=folder,
        env={**os.environ, "AZLLM_DATA_DIR": str(folder / "data")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while job.poll() is None:
            runs = set(folder.glob("lightning_logs/*/*")) - earlier
            events = [file for run in runs for file in run.glob("events.*")]
            if any(b"train_loss" in file.read_bytes() for file in events):
                return time.perf_counter() - started
            time.sleep(0.02)
        sys.exit(f"the job ended with exit code {job.returncode} before its first step")
    finally:
        job.kill()
        job.wait()


if __name__ == "__main__":
    main()
