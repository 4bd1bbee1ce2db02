"""A resumed run equals the uninterrupted one, bit for bit: weights, optimizer state, curves, order
of the data.
"""

from __future__ import annotations

import itertools
import math
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import Strategy
from torch.optim.lr_scheduler import LambdaLR
from training_runs import (
    MEASURED,
    Crash,
    Probe,
    Uninterrupted,
    assert_same_end,
    curve,
    final_state,
    raw_points,
    sha256,
)

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.data import datamodule
from azllm_lightning.data.replacement import replace_tokens
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.training import causal_lm, hardware, stopping
from azllm_lightning.training.causal_lm import CausalLM

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]
Cell = tuple[str, float, int, int, bool]

SAVES = ("periodic", "validation", "SIGTERM", "SIGINT", "deadline")
"""What saves the state that a run is resumed from; after the first two it crashes."""

DROPOUTS = (0.0, 0.1)
"""Of the residual branches, and of the tokens that are read."""

MICRO_BATCHES = (4, 1)
WORKERS = (0, 2)
LATER_PASSES = (False, True)
"""Whether the run is interrupted in a later pass over the data."""

PIECE = 64
"""Tokens that windows of different passes over the same text share, at least once."""

CELLS: list[Cell] = list(itertools.product(SAVES, DROPOUTS, MICRO_BATCHES, WORKERS, LATER_PASSES))
QUICK: list[Cell] = [("SIGTERM", 0.1, 1, 2, False)]
THOROUGH: list[Cell] = [
    ("periodic", 0.1, 1, 0, True),
    ("validation", 0.0, 4, 2, False),
    ("SIGINT", 0.0, 4, 0, True),
    ("deadline", 0.1, 1, 0, False),
]


def marks(cell: Cell) -> list[pytest.MarkDecorator]:
    if cell in QUICK:
        return []
    return [pytest.mark.thorough if cell in THOROUGH else pytest.mark.slow]


def pieces(windows: list[list[int]]) -> set[tuple[int, ...]]:
    """The sequences of PIECE tokens in `windows`."""
    return {tuple(w[i : i + PIECE]) for w in windows for i in range(len(w) - PIECE + 1)}


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=marks(cell), id="-".join(map(str, cell))) for cell in CELLS],
)
def test_a_run_resumed_twice_equals_the_uninterrupted_one(
    cell: Cell,
    uninterrupted: Straight,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Lightning does not do by itself: it saves no RNG state, a plain loader resumes on other
    batches, an accumulating run resumes with a short step and overwrites the file it came from, and
    signals and max_time save in mid-accumulation or not at all.
    """
    save, dropout, micro_batch, workers, later_pass = cell
    learned = [f"model.dropout={dropout}", f"data.token_replacement={dropout}"]
    learned += [f"trainer.micro_batch_size={micro_batch}"]
    if later_pass:
        learned += ["data.tales_bytes=8_000", "data.val_fraction=0.3", "data.block_size=256"]
    straight = uninterrupted(*learned)
    # Neither the workers nor the interval of saves may change what is learned.
    overrides = [*learned, f"data.num_workers={workers}"]
    overrides += [f"trainer.checkpoint_every_steps={3 if save == 'periodic' else 4}"]

    stops = (4, 6)
    earlier = {piece for step in range(stops[0]) for piece in pieces(straight.windows[step])}
    assert bool(earlier & pieces(straight.windows[stops[0]])) == later_pass
    clock = SimpleNamespace(now=0.0)
    times = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(stopping, "time", times)
    for number, step in enumerate(stops):
        micro = 2 if micro_batch == 1 else 0
        if save in ("periodic", "validation"):
            probe.crash(step, micro)
        elif save == "deadline":
            probe.at(step, lambda: setattr(clock, "now", clock.now + 3600), micro)
        else:
            probe.signal(step, getattr(signal, save), micro)
        start = [*overrides, "trainer.deadline=1h"] if number == 0 else ["ckpt_path=last"]
        with pytest.raises(Crash if save in ("periodic", "validation") else Resumable):
            train_tiny(*start)
    resumed = train_tiny("ckpt_path=last")
    assert_same_end(straight.folder, resumed)
    assert probe.windows == straight.windows
    assert len(probe.windows) == 8


def test_whatever_is_not_restored_is_noticed(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, tmp_path: Path
) -> None:
    """The negative control of this file: each part of the restore is broken on purpose."""
    overrides = ("model.dropout=0.1", "data.token_replacement=0.1", "trainer.micro_batch_size=2")
    straight = uninterrupted(*overrides).folder
    probe.signal(5, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    stopped = Path("lightning_logs").absolute()

    draws = itertools.count()
    sampler, load = datamodule.StepSampler, CausalLM.on_load_checkpoint

    def without_loss_sum(self: CausalLM, checkpoint: dict[str, Any]) -> None:
        load(self, checkpoint | {"azllm": checkpoint["azllm"] | {"train_loss_sum": 0.0}})

    def other_tokens(windows: torch.Tensor, positions: Any, *settings: Any) -> torch.Tensor:
        return replace_tokens(windows, positions + next(draws), *settings)

    breakages: dict[str, tuple[Any, str, Any]] = {
        "nothing": (causal_lm, "__doc__", ""),
        "dropout": (causal_lm, "derived_seed", lambda *key: next(draws)),
        "replaced tokens": (datamodule, "replace_tokens", other_tokens),
        "data": (datamodule, "StepSampler", lambda first_step, **k: sampler(first_step=0, **k)),
        "optimizer": (Strategy, "load_optimizer_state_dict", lambda self, checkpoint: None),
        "schedule": (LambdaLR, "load_state_dict", lambda self, state: None),
        "mean loss": (CausalLM, "on_load_checkpoint", without_loss_sum),
    }
    for name, breakage in breakages.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(shutil.copytree(stopped, tmp_path / name / "lightning_logs").parent)
            patch.setattr(*breakage)
            resumed = train_tiny("ckpt_path=last").absolute()
        if name == "nothing":
            assert_same_end(straight, resumed)
        else:
            with pytest.raises(AssertionError):
                assert_same_end(straight, resumed)


@pytest.mark.thorough
def test_fp16_is_resumed_with_its_loss_scale(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler on the CPU runs the logic of fp16: a step that overflows is skipped, and counted."""

    def plugin(precision: str, device: str) -> hardware.MixedPrecision:
        assert precision == "16-mixed"
        # So high a scale overflows at first, and growing every second step it moves all the time.
        return hardware.MixedPrecision(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=2)
        )

    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: "16-mixed")
    monkeypatch.setattr(hardware, "precision_plugin", plugin)
    # Timing fp16 on a CPU takes long.
    monkeypatch.setattr(hardware, "peak_flops", lambda device, precision: 1e12)
    overrides = [
        "trainer.precision=16-mixed",
        "trainer.global_batch_size=2",
        "trainer.micro_batch_size=1",
        "data.val_windows=2",
        # An overflow above the floor of the scale is no reason to roll back.
        "callbacks.health.patience=1",
    ]
    straight = train_tiny(*overrides)
    scales = list(curve(straight)["loss_scale"].values())
    assert scales[1:] != scales[:-1]
    assert any(not math.isfinite(norm) for norm in curve(straight)["grad_norm"].values())

    probe.signal(2, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    probe.crash(6, micro=1)
    with pytest.raises(Crash):
        train_tiny("ckpt_path=last")
    with pytest.MonkeyPatch.context() as patch:  # the negative control
        patch.setattr(hardware.MixedPrecision, "load_state_dict", lambda self, state: None)
        shutil.copytree("lightning_logs", "copy/lightning_logs")
        patch.chdir("copy")
        forgetful = train_tiny("ckpt_path=last").absolute()
    resumed = train_tiny("ckpt_path=last")
    assert "/MixedPrecision/scale" in final_state(resumed)
    assert_same_end(straight, resumed)
    with pytest.raises(AssertionError):
        assert_same_end(straight, forgetful)


@pytest.mark.thorough
def test_the_file_resumed_from_is_not_changed(train_tiny: Train, probe: Probe) -> None:
    """With accumulation, Lightning saves over that file after the first resumed micro-batch."""
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny("trainer.micro_batch_size=2")
    source = Path("lightning_logs/tiny/version_0/checkpoints/step_00000004.ckpt")
    before = sha256(source)
    probe.crash(5, micro=1)
    with pytest.raises(Crash):
        train_tiny("ckpt_path=last")
    assert sha256(source) == before
    train_tiny("ckpt_path=last")
    assert sha256(source) == before


@pytest.mark.thorough
def test_two_resumes_leave_one_curve_in_one_folder(
    uninterrupted: Straight, train_tiny: Train, probe: Probe
) -> None:
    """A resumed TensorBoardLogger makes a new version by default, or logs the same steps again."""
    for step in (5, 7):
        probe.crash(step)
        with pytest.raises(Crash):
            train_tiny(*([] if step == 5 else ["ckpt_path=last"]))
    folder = train_tiny("ckpt_path=last")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    more = {"hp_metric", "resume/text_summary"}  # both resumes begin at the same step
    points = [(tag, step) for tag, step in raw_points(folder) if tag not in more]
    assert [point for point, count in Counter(points).items() if count > 1] == []
    for tag in {tag for tag, _ in points}:
        steps = [step for name, step in points if name == tag]
        assert steps == sorted(steps), tag
    assert {point for point in points if point[0] not in MEASURED} == {
        point
        for point in raw_points(uninterrupted().folder)
        if point[0] not in ("hp_metric", *MEASURED)
    }


@pytest.mark.parametrize(
    "change", ["trainer.checkpoint_every_steps=2", "trainer.log_every_steps=3"]
)
def test_the_best_score_survives_changed_intervals(
    change: str, train_tiny: Train, probe: Probe
) -> None:
    """With another every_n_*, Lightning's ModelCheckpoint forgets its best score and keeps a worse
    one.
    """
    probe.signal(5, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny()
    best = Path("lightning_logs/tiny/version_0/checkpoints/best.ckpt")
    before = sha256(best)
    # From here on every validation is worse than the one at step 4.
    compute, worse = CausalLM.on_validation_epoch_end, 10.0

    def spoiled(self: CausalLM) -> None:
        self.val_metric.nll += worse * self.val_metric.tokens
        compute(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "on_validation_epoch_end", spoiled)
        folder = train_tiny("ckpt_path=last", change)
    assert curve(folder)["val_loss"][8] > 10
    assert sha256(best) == before
    saved = torch.load(step_files(folder / "checkpoints")[0][1], weights_only=True)
    state = saved["callbacks"]["BestCheckpoint"]
    assert state["best_step"] == 4
    assert state["best_model_score"] == pytest.approx(curve(folder)["val_loss"][4])
