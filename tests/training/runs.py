"""What the tests of runs look at: the final state, the curve, and the processes of a run."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from azllm_lightning.training.checkpoint import step_files
from azllm_lightning.training.curve import read_scalars

TRAIN = [sys.executable, "-m", "azllm_lightning.train"]


class Crash(Exception):
    """What a probe raises where a test wants the session to fall over."""


class Probe:
    """Watches every training in this process, and interferes where a test asked it to."""

    def __init__(self) -> None:
        self.windows: dict[int, list[list[int]]] = defaultdict(list)
        """The token windows that each optimizer step (0 is the first) was last trained on."""
        self.actions: dict[tuple[int, int], Callable[[], object]] = {}
        """What to do, once, in the forward pass of (step, micro-batch)."""
        self.poisoned: Callable[[int, Tensor], bool] = lambda step, batch: False
        """Whether the network returns NaN for the batch (B, T + 1) of this step."""

    def at(self, step: int, action: Callable[[], object], micro: int = 0) -> None:
        """Do `action` once in the forward pass of micro-batch `micro` of the step after `step` completed ones."""
        self.actions[step, micro] = action

    def signal(self, step: int, number: int, micro: int = 0) -> None:
        """Send this process the signal `number` then."""
        self.at(step, lambda: os.kill(os.getpid(), number), micro)

    def crash(self, step: int, micro: int = 0) -> None:
        """Raise Crash then."""

        def fall_over() -> None:
            raise Crash

        self.at(step, fall_over, micro)


def final_state(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, schedule and scaler of a run's newest full state, flat: path -> tensor or plain value."""
    checkpoint = torch.load(step_files(folder / "checkpoints")[0][1], weights_only=True)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "MixedPrecision", "global_step", "TokenDataModule")
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
    """The logged scalars but for those that measure time."""
    return {tag: values for tag, values in read_scalars(folder).items() if tag not in ("tokens_per_sec", "mfu")}


def assert_same_end(left: Path, right: Path) -> None:
    """Bit-identical weights, optimizer state and logged values."""
    ours, theirs = final_state(left), final_state(right)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        same = torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path]
        assert same, f"{path} differs"
    ours, theirs = curve(left), curve(right)
    assert ours.keys() == theirs.keys()
    for tag, values in ours.items():
        assert values == theirs[tag], f"{tag}: {values} {theirs[tag]}"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raw_points(folder: Path) -> list[tuple[str, int]]:
    """Every (tag, step) in the raw event files, in the order of writing."""
    from tensorboard.compat.proto.event_pb2 import Event

    from azllm_lightning.training.curve import EVENTS, _records

    events = map(Event.FromString, _records(sorted(folder.glob(EVENTS))))
    return [(value.tag, event.step) for event in events for value in event.summary.value]
