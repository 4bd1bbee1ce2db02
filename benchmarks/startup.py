"""How long one waits: for the settings of a run, and for the first training step of the default job.

    python benchmarks/startup.py [--rounds 3] [--json FILE]

`cfg`: python -m azllm_lightning.train --cfg job, from its start to its end. `fresh` and `again`: the default job from
the command to the first step in its event file, without prepared data and with it; the run is then stopped.
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
from pathlib import Path

import machine

TRAIN = [sys.executable, "-m", "azllm_lightning.train"]
BARS = {"cfg": 1.5, "fresh": 10.0, "again": 10.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    args = parser.parse_args()
    about = machine.describe()
    print("\n".join(f"{key:<8}{value}" for key, value in about.items()), flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in BARS}
    for _ in range(args.rounds):
        seconds["cfg"].append(settings_told())
        with tempfile.TemporaryDirectory() as folder:
            seconds["fresh"].append(first_step(Path(folder)))
            seconds["again"].append(first_step(Path(folder)))
    print("\n| what | seconds | wanted |\n|---|---|---|")
    for name, values in seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | under {BARS[name]} |")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, "seconds": seconds}, indent=1), encoding="utf-8"
        )


def settings_told() -> float:
    """Seconds of `--cfg job`."""
    started = time.perf_counter()
    subprocess.run(
        [*TRAIN, "--cfg", "job"], cwd=machine.ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def first_step(folder: Path) -> float:
    """Seconds from the command to its first train_loss on the disk; data and run are kept in `folder`."""
    earlier, started = set(folder.glob("lightning_logs/*/*")), time.perf_counter()
    run = subprocess.Popen(
        TRAIN,
        cwd=folder,
        env={**os.environ, "AZLLM_DATA_DIR": str(folder / "data")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while run.poll() is None:
            runs = set(folder.glob("lightning_logs/*/*")) - earlier
            if any(
                b"train_loss" in events.read_bytes()
                for run in runs
                for events in run.glob("events.*")
            ):
                return time.perf_counter() - started
            time.sleep(0.02)
        sys.exit(f"the default job ended with exit code {run.returncode} before its first step")
    finally:
        run.kill()
        run.wait()


if __name__ == "__main__":
    main()
