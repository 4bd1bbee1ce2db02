"""What saving costs.

    python benchmarks/save_time.py [GIGABYTES] [ROUNDS]   # a checkpoint that survives, beside a plain one
    python benchmarks/save_time.py run [OVERRIDES]        # its share of a run that saves every 500 steps

The first times AtomicCheckpointIO and plain torch.save + fsync in turn on a state like a run's (weights and two
moments), in the current folder, and tells the ratio of the medians; then the peak memory of each, in a process of its
own (POSIX).
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
from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.history import History
from azllm_lightning.training.saving import AtomicCheckpointIO


def state(gigabytes: float) -> dict[str, object]:
    """A checkpoint of 36 layers, each of weights and two moments in fp32."""
    size = round(gigabytes * 1e9 / 4 / 3 / 36)
    tensors = {
        part: {f"layer_{i}": torch.randn(size) for i in range(36)}
        for part in ("weights", "first", "second")
    }
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


class SavingShare(Callback):
    """Prints, at the end of a run, how much of its time went into saving, the best weights included."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read it, when the last save is over."""
        passed = time.perf_counter() - self._started
        history = next(cb for cb in trainer.callbacks if isinstance(cb, History))
        saving = history.clock.saving_seconds
        print(
            f"saving took {saving:.2f} s of {passed:.1f} s: {100 * saving / passed:.2f} % (bar 1 %)"
        )


def share_of_a_run(overrides: list[str]) -> None:
    """Run the real command with saves every 500 steps, and say what they took."""
    values = [
        "trainer.checkpoint_every_steps=500",
        *overrides,
        "+callbacks.saving._target_=save_time.SavingShare",
    ]
    here = str(Path(__file__).resolve().parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(
        [sys.executable, "-m", "azllm_lightning.train", *values], check=True, env=environment
    )


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["run"]:
        share_of_a_run(sys.argv[2:])
        return
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.5
    methods = {"plain": plain, "ours": ours}
    if len(sys.argv) > 3:
        import resource

        checkpoint = state(gigabytes)
        methods.get(sys.argv[2], lambda *_: None)(
            checkpoint, Path(sys.argv[3]) / "step_00000001.ckpt"
        )
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
        medians = {
            name: statistics.median(values[1:]) for name, values in seconds.items()
        }  # the first round warms up
        for name, values in seconds.items():
            print(
                f"{name:<6}{medians[name]:6.2f} s  ({min(values[1:]):.2f} to {max(values[1:]):.2f})"
            )
        print(f"ratio {medians['ours'] / medians['plain']:6.2f}")
        if os.name == "posix":
            base, *peaks = (peak_memory(method, gigabytes, folder) for method in ("none", *methods))
            for name, peak in zip(methods, peaks, strict=True):
                print(
                    f"{name:<6}{peak / 1e9:6.2f} GB peak, {100 * (peak / base - 1):.1f} % above the state itself"
                )


if __name__ == "__main__":
    main()
