"""A user's own callback, whose state is in every full state, must not make them unreadable."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from training_runs import Probe

from azllm_lightning.runs import checkpoint_files
from azllm_lightning.runs.checkpoint_files import check_readable, step_files, verify

Train = Callable[..., Path]
OWN = "+callbacks.mine._target_=test_own_state"


class Constant(Callback):
    """Has always the same state."""

    state: ClassVar[dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state


class Mean(Callback):
    """Has a state of NumPy's numbers from its first step on."""

    mean: Any = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.mean = np.float64(1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"of": [{"mean": self.mean}]}


class Late(Callback):
    """Has a state that could not be read again when the second full state is saved, and adds
    something of its own to each.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    seen: Any = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 5:
            self.seen = deque([1])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
        checkpoint["mine"] = Path("kitab.txt")


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.5),
        np.zeros(3),
        deque([1.0]),
        Path("kitab.txt"),
        datetime(2026, 1, 1),
        [{"a": (1, np.float32(1))}],
        {np.int64(1): 2},
        lambda: 1,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_state_that_no_resume_could_read_is_found(value: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\['callbacks'\]\['Mine'\]\['best'\]"):
        check_readable({"callbacks": {"Mine": {"step": 1, "best": value}}})


def test_a_state_that_a_resume_reads_is_none_of_these(tmp_path: Path) -> None:
    ema = torch.nn.Linear(2, 2)
    state = {
        "numbers": [1, 0.5, math.nan, True, None, 1j, b"ab", "ə"],
        "tensors": {1: torch.zeros(2, dtype=torch.bfloat16), "ema": ema.state_dict()},
        "parameters": list(ema.parameters()),
        "others": OrderedDict(a=(torch.float16, torch.Size([2]), {1, 2})),
    }
    check_readable(state)
    torch.save(state, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=True)


@pytest.mark.parametrize(
    ("name", "place", "kind", "trained"),
    [
        ("Constant", "['Constant']['seen']", "collections.deque", 0),
        ("Mean", "['Mean']['of'][0]['mean']", "numpy.float64", 1),
    ],
)
def test_such_a_state_ends_the_run_before_much_is_lost(
    name: str,
    place: str,
    kind: str,
    trained: int,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first step, or after it."""
    monkeypatch.setattr(Constant, "state", {"seen": deque([1])})
    with pytest.raises(ValueError, match=r"float\(x\)") as error:
        train_tiny(f"{OWN}.{name}")
    assert place in str(error.value)
    assert kind in str(error.value)
    assert len(probe.windows) == trained
    assert not step_files(Path("lightning_logs/tiny/version_0/checkpoints"))


def test_a_state_that_becomes_unreadable_is_left_out_and_the_run_goes_on(
    train_tiny: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours may have been trained since the last full state."""
    run = train_tiny(f"{OWN}.Late", "trainer.checkpoint_every_steps=2")
    states = {step: verify(path) for step, path in step_files(run / "checkpoints")}
    assert len(states) > 1
    assert [sorted(state["callbacks"]["Late"]) for step, state in states.items() if step < 5]
    assert not [
        step for step, state in states.items() if step >= 5 and "Late" in state["callbacks"]
    ]
    assert not [step for step, state in states.items() if "mine" in state]
    warned = [text for text in caplog.messages if "without a part" in text]
    assert len(warned) == 2, "once for each"
    assert any("checkpoint['mine']" in text for text in warned)
    assert any("['Late']['seen']" in text for text in warned)


def unreadable(path: Path) -> dict[str, Any]:
    raise ValueError(f"{path}: not a complete checkpoint")


def test_a_rollback_without_a_readable_state_leaves_the_files(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained until then may still be of use."""
    monkeypatch.setattr(checkpoint_files, "verify", unreadable)
    probe.factor = lambda step, batch: math.nan if step >= 5 else 1.0
    with pytest.raises(ValueError, match="none of the full states"):
        train_tiny("callbacks.health.patience=2", "trainer.checkpoint_every_steps=2")
    left = step_files(Path("lightning_logs/tiny/version_0/checkpoints"))
    assert [step for step, _ in left] == [4, 2]


def test_out_of_memory_without_a_readable_state_does_not_start_again(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint_files, "verify", unreadable)
    probe.at(5, fail)
    with pytest.raises(ValueError, match="none of the full states"):
        train_tiny("trainer.checkpoint_every_steps=2")
    assert max(probe.windows) == 5
    left = step_files(Path("lightning_logs/tiny/version_0/checkpoints"))
    assert 4 in [step for step, _ in left]
