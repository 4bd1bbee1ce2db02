"""The cost of saving.

    python benchmarks/save_time.py [GIGABYTES] [ROUNDS]  # our checkpoint and a plain one
    python benchmarks/save_time.py run [OVERRIDES]       # share of a run that saves every 500 steps

The first times AtomicCheckpointIO and plain torch.save + fsync in turn on a state like a run's
(weights and two moments, fp32) in the current folder, and prints the ratio of the medians; then the
peak memory of each, in its own process (POSIX).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.history import History
from azllm_lightning.training.saving import AtomicCheckpointIO

LAYERS = 36


def state(gigabytes: float) -> dict[str, object]:
    """A checkpoint of 36 layers, each of weights and two moments in fp32."""
    size = round(gigabytes * 1e9 / 4 / 3 / LAYERS)
    tensors = {
        part: {f"layer_{i}": torch.randn(size) for i in range(LAYERS)}
        for part in ("state_dict", "first", "second")
    }
    return {"azllm": {"format": 1}, **tensors}


def plain(checkpoint: dict[str, object], path: Path) -> None:
    """torch.save and fsync."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        os.fsync(file.fileno())


def ours(checkpoint: dict[str, object], path: Path) -> None:
    """What a run does."""
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def nothing(checkpoint: dict[str, object], path: Path) -> None:
    """Does not save: the memory of the state itself."""


METHODS: dict[str, Callable[[dict[str, object], Path], None]] = {"plain": plain, "ours": ours}


def compare(gigabytes: float, rounds: int) -> None:
    """Save with each method in turn, and print seconds and peak memory."""
    checkpoint = state(gigabytes)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for number in range(rounds + 1):
            for name, save in METHODS.items():
                path = Path(folder) / f"{name}.ckpt"
                path.unlink(missing_ok=True)
                started = time.perf_counter()
                save(checkpoint, path)
                if number > 0:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, values in seconds.items():
            print(f"{name:<6}{medians[name]:6.2f} s  ({min(values):.2f} to {max(values):.2f})")
        print(f"ratio {medians['ours'] / medians['plain']:6.2f}")
        if os.name == "posix":
            base = peak_memory("nothing", gigabytes, folder)
            for name in METHODS:
                peak = peak_memory(name, gigabytes, folder)
                more = 100 * (peak / base - 1)
                print(f"{name:<6}{peak / 1e9:6.2f} GB peak, {more:.1f} % above the state itself")


def peak_memory(method: str, gigabytes: float, folder: str) -> float:
    """Peak resident bytes of a process that makes the state and saves it once with `method`."""
    command = [sys.executable, __file__, str(gigabytes), method, folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def save_once(gigabytes: float, method: str, folder: Path) -> None:
    """What `peak_memory` runs: save, and print the peak."""
    import resource  # POSIX only

    checkpoint = state(gigabytes)
    {**METHODS, "nothing": nothing}[method](checkpoint, folder / "step_00000001.ckpt")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class SavingShare(Callback):
    """Prints, at the end of a run, how much of its time saving took, best weights included."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read it, after the last save."""
        passed = time.perf_counter() - self._started
        history = next(cb for cb in trainer.callbacks if isinstance(cb, History))
        saving = history.clock.saving_seconds
        share = 100 * saving / passed
        print(f"saving took {saving:.2f} s of {passed:.1f} s: {share:.2f} % (bar 1 %)")


def share_of_a_run(overrides: list[str]) -> None:
    """Run our command with saves every 500 steps; `SavingShare` prints what they took."""
    values = [
        "trainer.checkpoint_every_steps=500",
        *overrides,
        "+callbacks.saving._target_=save_time.SavingShare",
    ]
    here = str(Path(__file__).resolve().parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "azllm_lightning.train", *values]
    subprocess.run(command, check=True, env=environment)


def main() -> None:
    """Measure and print."""
    args = sys.argv[1:]
    if args[:1] == ["run"]:
        machine.show(machine.describe(f"{machine.fast_type()}, unless overridden"))
        share_of_a_run(args[1:])
    elif len(args) == 3:
        save_once(float(args[0]), args[1], Path(args[2]))
    else:
        machine.show(machine.describe("fp32"))
        gigabytes = float(args[0]) if args else 1.5
        rounds = int(args[1]) if len(args) > 1 else 5
        compare(gigabytes, rounds)


if __name__ == "__main__":
    main()
