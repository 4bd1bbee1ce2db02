"""A signal at any line of this project's code loses no step, and nothing is trained twice."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from training_runs import Uninterrupted, assert_same_end, raw_points

import azllm_lightning
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.training.causal_lm import CausalLM

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]

PACKAGE = str(Path(azllm_lightning.__file__).parent)
SHORT = [
    "trainer.max_steps=4",
    "trainer.val_every_steps=2",
    "trainer.micro_batch_size=2",
    "callbacks.samples.max_new_tokens=0",
]
SLOW = pytest.mark.slow
ROOMS = tuple(f"{PACKAGE}/{room}/" for room in ("callbacks", "runs", "session", "training"))


class SignalAtLine:
    """Sends this process a signal before the n-th line of ROOMS that it executes; 0: never."""

    def __init__(self, number: int = signal.SIGTERM, line: int = 0) -> None:
        self.number = number
        self.line = line
        self.count = 0
        self.place = ""

    def __enter__(self) -> SignalAtLine:
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(ROOMS) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.line:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                signal.raise_signal(self.number)
        return self._line


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer steps that were taken, by all trainings of the test."""
    steps: list[int] = []
    clip = CausalLM.configure_gradient_clipping

    def watched(self: CausalLM, *args: Any, **kwargs: Any) -> None:
        clip(self, *args, **kwargs)
        steps.append(self.trainer.global_step + 1)

    monkeypatch.setattr(CausalLM, "configure_gradient_clipping", watched)
    return steps


def check_signal(
    number: int, line: int, settings: list[str], straight: Path, train_tiny: Train, steps: list[int]
) -> int:
    """Train with a signal before line `line`, then resume; returns the number of lines until then.

    The newest file must have the last step that was taken, and no step may be trained twice.
    """
    shutil.rmtree("lightning_logs", ignore_errors=True)
    steps.clear()
    source = SignalAtLine(number, line)
    stop = None
    folder = Path()
    try:
        with source:
            folder = train_tiny(*settings)
    except Resumable as end:
        stop = end
    if stop is not None:
        newest = step_files(Path("lightning_logs/tiny/version_0/checkpoints"))[:1]
        assert [step for step, _ in newest] == steps[-1:], source.place
        assert ("ckpt_path=last" in stop.command) == bool(newest), source.place
        folder = train_tiny(*(["ckpt_path=last"] if newest else settings))
    assert steps == [1, 2, 3, 4], source.place
    points = raw_points(folder)
    assert len(points) == len(set(points)), f"{source.place}: a point is there twice"
    assert_same_end(straight, folder)
    return source.count


def signals(count: int, lines: int) -> list[tuple[int, int]]:
    """`count` signals at lines spread over a run, with their numbers in turn."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP")]
    return [
        (numbers[place % 3], 1 + (2 * place + 1) * lines // (2 * count)) for place in range(count)
    ]


def check_run(count: int, every: int, straight: Path, train_tiny: Train, steps: list[int]) -> None:
    settings = [*SHORT, f"trainer.checkpoint_every_steps={every}"]
    lines = check_signal(signal.SIGTERM, 0, settings, straight, train_tiny, steps)
    for number, line in signals(count, lines):
        check_signal(number, line, settings, straight, train_tiny, steps)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs its signals")
@pytest.mark.parametrize(
    ("every", "count"),
    [
        *(pytest.param(every, 3, marks=pytest.mark.thorough) for every in (1, 3)),
        *(pytest.param(every, 60, marks=SLOW) for every in (1, 3)),
    ],
)
def test_a_signal_at_any_line_loses_no_step(
    every: int, count: int, uninterrupted: Straight, train_tiny: Train, reached: list[int]
) -> None:
    check_run(count, every, uninterrupted(*SHORT).folder, train_tiny, reached)
