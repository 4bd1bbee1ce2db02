"""What the tests of runs look at: the final state, the curve, and the processes of a run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from azllm_lightning.cli import entrance
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import EVENTS, read_records, read_scalars
from azllm_lightning.train import train
from azllm_lightning.training import stopping
from azllm_lightning.training.causal_lm import CausalLM

MEASURED = ("tokens_per_sec", "mfu", "peak_memory_gb")
"""Scalars that no two runs share."""


TINY = {
    "data": "tales_bytes=60_000 vocab_size=300 block_size=32 val_windows=8 val_fraction=0.1",
    "model": "n_layer=1 n_head=2 n_embd=32",
    "schedule": "warmup_steps=2",
    "trainer": "max_steps=8 val_every_steps=4 checkpoint_every_steps=4 log_every_steps=1 "
    "global_batch_size=4 compile=false accelerator=cpu precision=32-true",
    "callbacks": "samples.max_new_tokens=0",
}


def tiny_overrides() -> list[str]:
    """Overrides for the smallest useful run."""
    settings = [f"{group}.{pair}" for group, pairs in TINY.items() for pair in pairs.split()]
    return ["run_name=tiny", "init_embeddings=random", *settings]


class Recorder(Callback):
    """Records, for other processes to read, which windows each step is trained on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """One line per micro-batch: the step (0 is the first) and its windows."""
        path = Path(self.folder) / f"rank{trainer.global_rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([trainer.global_step, batch.tolist()]) + "\n")

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """The number of completed steps."""
        file = os.open(Path(self.folder) / "reached", os.O_CREAT | os.O_WRONLY)
        # One write of one length: a kill leaves the old number or the new one.
        os.write(file, b"%08d" % trainer.global_step)
        os.close(file)


class Pause(Callback):
    """Creates the file `flag` at the end of step `step`, and waits there."""

    def __init__(self, step: int, flag: str, seconds: float = 60) -> None:
        self.step = step
        self.flag = flag
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Wait at the end of a step."""
        if trainer.global_step == self.step:
            Path(self.flag).touch()
            time.sleep(self.seconds)


class Press(Callback):
    """Sets for how long signals are one press, so that no test depends on how fast they come."""

    def __init__(self, seconds: float) -> None:
        stopping.PRESS_SECONDS = seconds


class Terminate(Callback):
    """Sends SIGTERM to process `rank` alone in the forward pass after `step` completed steps."""

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Between two steps, after the callbacks that act there."""
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            signal.raise_signal(signal.SIGTERM)


class TerminateInValidation(Callback):
    """Sends SIGTERM to process `rank` alone in the validation after `step` completed steps."""

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int, *_: Any
    ) -> None:
        """In its second batch."""
        if (trainer.global_step, trainer.global_rank, batch_idx) == (self.step, self.rank, 1):
            signal.raise_signal(signal.SIGTERM)


class SpoiledLoss(Callback):
    """Makes the loss of one step NaN in process `rank` alone, with gradients that stay finite; with
    `once`, only in the first fit of this process, not after a rollback.
    """

    fits = 0

    def __init__(self, step: int, rank: int, once: bool = False) -> None:
        self.step = step
        self.rank = rank
        self.once = once

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a constant to what the network returns."""
        assert isinstance(pl_module, CausalLM)
        SpoiledLoss.fits += 1
        if self.once and SpoiledLoss.fits > 1:
            return

        def spoil(net: object, args: object, output: Tensor) -> Tensor:
            here = trainer.global_step == self.step and trainer.global_rank == self.rank
            return output + float("nan") if here else output

        pl_module.net.register_forward_hook(spoil)


class FullMemory(Callback):
    """From `step` on, process `rank` has no memory for more than `most` windows at once."""

    def __init__(self, step: int, rank: int, most: int) -> None:
        self.step = step
        self.rank = rank
        self.most = most

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Fail as PyTorch does."""
        here = trainer.global_rank == self.rank and trainer.global_step >= self.step
        if here and len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


class BrokenConnection(Callback):
    """After `step` completed steps, the collective operations fail in every process."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Fail as NCCL does where the shared memory of a container is too small."""
        if trainer.global_step == self.step:
            raise torch.distributed.DistBackendError("NCCL error: no space in /dev/shm")


class Killed(Callback):
    """Kills process `rank`, `after` seconds after it began step `step`, wherever it is then; writes
    the number of each process to the file pid<rank>.
    """

    def __init__(self, rank: int, step: int, after: float) -> None:
        self.rank = rank
        self.step = step
        self.after = after

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the number of this process."""
        Path(f"pid{trainer.global_rank}").write_text(str(os.getpid()), encoding="utf-8")

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """From `step` on, steps take some time, so that the kill comes before the end."""
        if trainer.global_step >= self.step:
            time.sleep(0.5)
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            timer = threading.Timer(self.after, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()


class Collectives(Callback):
    """Records which collective operations each process starts in each optimizer step, and its
    weights after it.
    """

    NAMES = ("all_reduce", "broadcast", "barrier", "all_gather", "broadcast_object_list")

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.calls: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch torch's functions; DDP's own averaging of gradients does not use them."""
        for name in self.NAMES:
            setattr(torch.distributed, name, self._watched(name))

    def _watched(self, name: str) -> Callable[..., Any]:
        function = getattr(torch.distributed, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return function(*args, **kwargs)

        return call

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """One line per micro-batch: the completed steps, the calls since the last line, the sum of
        all weights.
        """
        weights = float(
            sum(p.detach().double().sum() for p in trainer.lightning_module.parameters())
        )
        path = Path(self.folder) / f"collectives{trainer.global_rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([trainer.global_step, self.calls, weights]) + "\n")
        self.calls.clear()


def add_callback(name: str, **settings: object) -> list[str]:
    """The overrides that add one of the callbacks above to a run."""
    pairs = {"_target_": f"training_runs.{name}", **settings}
    return [f"+callbacks.{name.lower()}.{key}={value}" for key, value in pairs.items()]


def command_line(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    output_path: str = "output",
    ignored: tuple[int, ...] = (),
) -> None:
    """`python -m azllm_lightning.train ARGUMENTS` in `folder`, with the signals `ignored` as a
    program finds them under nohup.

    Its output goes to `output_path`; a terminal becomes the controlling one, as after a login.
    """
    multiprocessing.set_start_method(None, force=True)  # workers start as they do by default
    os.environ.update(environment)
    os.chdir(folder)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    mode = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    if output_path.startswith("/dev/"):
        os.setsid()
        mode = os.O_RDWR  # a terminal that is only written to controls nothing
    output = os.open(output_path, mode)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [__file__, *arguments]  # what Lightning starts again for another device
    entrance.main("train", train, RunConfig.from_mapping)


def quick_start_method() -> str:
    """How to start a process without importing torch again, where that is possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["training_runs", "azllm_lightning.session.session"])
    return "forkserver"


def start(
    arguments: list[str],
    folder: Path,
    output_path: str = "output",
    ignored: tuple[int, ...] = (),
    **environment: str,
) -> multiprocessing.process.BaseProcess:
    """`command_line` in a new process, forked from one that has imported everything already."""
    context = multiprocessing.get_context(quick_start_method())
    environment = {"AZLLM_DATA_DIR": os.environ["AZLLM_DATA_DIR"], **environment}
    process = context.Process(
        target=command_line, args=(arguments, str(folder), environment, output_path, ignored)
    )
    process.start()
    return process


def wait_for(path: Path, seconds: float = 120) -> None:
    """Return when `path` exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.005)


@dataclass(frozen=True)
class Uninterrupted:
    """A run that nothing interfered with, and the token windows of each step (0 is the first)."""

    folder: Path
    windows: dict[int, list[list[int]]]


class Crash(Exception):
    """Raised by a probe where a test wants the session to crash."""


class Probe:
    """Watches every training in this process, and interferes where a test asked it to."""

    def __init__(self) -> None:
        self.windows: dict[int, list[list[int]]] = defaultdict(list)
        """The token windows that each optimizer step (0 is the first) was last trained on."""
        self.actions: dict[tuple[int, int], Callable[[], object]] = {}
        """What to do, once, in the forward pass of (step, micro-batch)."""
        self.factor: Callable[[int, Tensor], float] = lambda step, batch: 1.0
        """What the loss of this step's batch (B, T + 1) is multiplied by."""
        self.module: CausalLM
        """The module in training."""

    def at(self, step: int, action: Callable[[], object], micro: int = 0) -> None:
        """Call `action` once, in the forward pass of micro-batch `micro` after `step` completed
        steps.
        """
        self.actions[step, micro] = action

    def signal(self, step: int, number: int, micro: int = 0) -> None:
        """Send this process the signal `number` there."""
        self.at(step, lambda: signal.raise_signal(number), micro)

    def crash(self, step: int, micro: int = 0) -> None:
        """Raise Crash there."""

        def fail() -> None:
            raise Crash

        self.at(step, fail, micro)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the present weights."""
        return {name: tensor.clone() for name, tensor in self.module.net.state_dict().items()}


def final_state(folder: Path) -> dict[str, Any]:
    """What the newest full state restores: weights, optimizer, schedule, scaler and data position.

    Flat: path -> tensor or plain value.
    """
    checkpoint = torch.load(step_files(folder / "checkpoints")[0][1], weights_only=True)
    parts = (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "MixedPrecision",
        "global_step",
        "TokenDataModule",
        "branches",
    )
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}/{key}")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, f"{path}/{number}")
        else:
            flat[path] = value

    walk({part: checkpoint[part] for part in parts if part in checkpoint}, "")
    return flat


def curve(folder: Path) -> dict[str, dict[int, float]]:
    """The logged scalars except those that measure time and memory."""
    return {tag: values for tag, values in read_scalars(folder).items() if tag not in MEASURED}


def assert_same_end(left: Path, right: Path) -> None:
    """Bit-identical weights, optimizer state and logged values."""
    ours, theirs = final_state(left), final_state(right)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        other = theirs[path]
        same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
        assert same, f"{path} differs"
    ours, theirs = curve(left), curve(right)
    assert ours.keys() == theirs.keys()
    for tag, values in ours.items():
        assert str(values) == str(theirs[tag]), tag  # as text, since nan is not nan


def assert_close(ours: dict[int, float], theirs: dict[int, float]) -> None:
    """The same steps, and losses within what another order of additions changes in fp32."""
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-5, rel=0)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raw_points(folder: Path) -> list[tuple[str, int]]:
    """Every (tag, step) in the raw event files, in the order of writing."""
    from tensorboard.compat.proto.event_pb2 import Event

    events = map(Event.FromString, read_records(sorted(folder.glob(EVENTS))))
    return [(value.tag, event.step) for event in events for value in event.summary.value]


if __name__ == "__main__":
    entrance.main("train", train, RunConfig.from_mapping)
