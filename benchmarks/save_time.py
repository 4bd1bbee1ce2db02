"""python benchmarks/save_time.py [GIGABYTES] [ROUNDS]: what a checkpoint that survives costs beside a plain one.

Times AtomicCheckpointIO and plain torch.save + fsync in turn on a state like a run's (weights and two moments), in the
current folder, and tells the ratio of the medians; then the peak memory of each, in a process of its own (POSIX).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from azllm_lightning.training.saving import AtomicCheckpointIO


def state(gigabytes: float) -> dict[str, object]:
    """A checkpoint of 36 layers, each of weights and two moments in fp32."""
    size = round(gigabytes * 1e9 / 4 / 3 / 36)
    tensors = {part: {f"layer_{i}": torch.randn(size) for i in range(36)} for part in ("weights", "first", "second")}
    return {"azllm": {"format": 1}, **tensors}


def plain(checkpoint: dict[str, object], path: Path) -> None:
    """What the reference does."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        os.fsync(file.fileno())


def ours(checkpoint: dict[str, object], path: Path) -> None:
    """What a run does."""
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def peak_memory(method: str, gigabytes: float, folder: str) -> float:
    """Peak resident bytes of a process that makes the state and saves it once (`method` "none" does not save)."""
    command = [sys.executable, __file__, str(gigabytes), method, folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.5
    methods = {"plain": plain, "ours": ours}
    if len(sys.argv) > 3:
        import resource

        checkpoint = state(gigabytes)
        methods.get(sys.argv[2], lambda *_: None)(checkpoint, Path(sys.argv[3]) / "step_00000001.ckpt")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    checkpoint, seconds = state(gigabytes), {name: [] for name in methods}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(rounds + 1):
            for name, save in methods.items():
                path = Path(folder) / f"{name}.ckpt"
                path.unlink(missing_ok=True)
                started = time.perf_counter()
                save(checkpoint, path)
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round warms up
        for name, values in seconds.items():
            print(f"{name:<6}{medians[name]:6.2f} s  ({min(values[1:]):.2f} to {max(values[1:]):.2f})")
        print(f"ratio {medians['ours'] / medians['plain']:6.2f}")
        if os.name == "posix":
            base, *peaks = (peak_memory(method, gigabytes, folder) for method in ("none", *methods))
            for name, peak in zip(methods, peaks, strict=True):
                print(f"{name:<6}{peak / 1e9:6.2f} GB peak, {100 * (peak / base - 1):.1f} % above the state itself")


if __name__ == "__main__":
    main()
