"""A resumed run is the uninterrupted run, bit for bit: weights, optimizer state, curves, order of the data."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import (
    MEASURED,
    Crash,
    Probe,
    assert_same_end,
    curve,
    final_state,
    raw_points,
    sha256,
)

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.training import hardware, stopping

Train = Callable[..., Path]
SAVES = ("periodic", "validation", "SIGTERM", "SIGINT", "deadline")
CHOICES = {
    "dropout": (0.0, 0.1),
    "accumulate": (1, 4),
    "workers": (0, 2),
    "later_pass": (False, True),
}
CELLS = list(itertools.product(SAVES, *CHOICES.values()))
# Each way of saving with a pattern of the other choices and with its opposite: all pairs of values occur.
PATTERNS = dict(zip(SAVES, (0b0000, 0b0011, 0b0101, 0b0110, 0b0001), strict=True))


def is_quick(save: str, *values: object) -> bool:
    chosen = [choices.index(value) for choices, value in zip(CHOICES.values(), values, strict=True)]
    number = sum(bit << place for place, bit in enumerate(chosen))
    return number in (PATTERNS[save], PATTERNS[save] ^ 0b1111)


def test_the_quick_cells_cover_all_pairs() -> None:
    quick = [cell for cell in CELLS if is_quick(*cell)]
    for one, other in itertools.combinations(range(5), 2):
        assert {(cell[one], cell[other]) for cell in quick} == {
            (cell[one], cell[other]) for cell in CELLS
        }


def cell_overrides(
    save: str, dropout: float, accumulate: int, workers: int, later_pass: bool
) -> list[str]:
    overrides = [
        f"model.dropout={dropout}",
        f"trainer.accumulate_grad_batches={accumulate}",
        "trainer.max_steps=10",
    ]
    overrides += [
        f"data.num_workers={workers}",
        f"trainer.checkpoint_every_steps={3 if save == 'periodic' else 4}",
    ]
    return overrides + (["data.tales_bytes=12_000", "data.block_size=256"] if later_pass else [])


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell, marks=[] if is_quick(*cell) else pytest.mark.slow, id="-".join(map(str, cell))
        )
        for cell in CELLS
    ],
)
def test_a_run_resumed_twice_is_the_run_that_was_never_stopped(
    cell: tuple[str, float, int, int, bool],
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FACTS 1 and 3: no RNG state is saved, a plain loader comes back on other batches, an accumulating run resumes
    with a short step and saves over the file it came from, signals and max_time save in mid-accumulation or not at all.
    """
    save, _, accumulate, _, later_pass = cell
    overrides = cell_overrides(*cell)
    straight = train_tiny(*overrides)
    order, probe.windows = dict(probe.windows), type(probe.windows)(list)

    stops = (5, 8) if later_pass else (4, 7)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(time=lambda: clock.now))
    for number, step in enumerate(stops):
        micro = accumulate // 2
        if save in ("periodic", "validation"):
            probe.crash(step, micro)
        elif save == "deadline":
            probe.at(step, lambda: setattr(clock, "now", clock.now + 3600), micro)
        else:
            probe.signal(step, getattr(signal, save), micro)
        how = [*overrides, "trainer.deadline=1h"] if number == 0 else ["ckpt_path=last"]
        with pytest.raises(Crash if save in ("periodic", "validation") else Resumable):
            train_tiny(*how)
    resumed = train_tiny("ckpt_path=last")
    assert resumed != straight
    assert_same_end(straight, resumed)
    assert probe.windows == order
    assert len(order) == 10


def test_fp16_comes_back_with_its_loss_scale(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FACTS 4 and 6: an injected CPU scaler runs the fp16 logic; a step that overflows is left out, and counted."""

    def plugin(precision: str, device: str) -> hardware.MixedPrecision:
        assert precision == "16-mixed"
        # So high a scale overflows at first, and growing every second step it moves all the time.
        return hardware.MixedPrecision(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=2)
        )

    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: "16-mixed")
    monkeypatch.setattr(hardware, "precision_plugin", plugin)
    monkeypatch.setattr(
        hardware, "peak_flops", lambda device, precision: 1e12
    )  # timing fp16 on a CPU takes long
    overrides = [
        "trainer.max_steps=10",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=1",
        "data.val_windows=2",
    ]
    overrides += [
        "callbacks.health.patience=1"
    ]  # an overflow above the floor of the scale is no reason to roll back
    straight = train_tiny(*overrides, "trainer.precision=16-mixed")
    scales = list(curve(straight)["loss_scale"].values())
    assert scales[1:] != scales[:-1]
    assert any(not math.isfinite(norm) for norm in curve(straight)["grad_norm"].values())

    probe.signal(2, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides, "trainer.precision=16-mixed")
    probe.crash(7, micro=1)
    with pytest.raises(Crash):
        train_tiny("ckpt_path=last")
    resumed = train_tiny("ckpt_path=last")
    assert "/MixedPrecision/scale" in final_state(resumed)
    assert_same_end(straight, resumed)


def test_the_file_resumed_from_is_not_changed(train_tiny: Train, probe: Probe) -> None:
    """FACTS 1: with accumulation, Lightning saves again after the first resumed micro-batch, over the same file."""
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny("trainer.accumulate_grad_batches=2")
    source = Path("lightning_logs/tiny/version_0/checkpoints/step_00000004.ckpt")
    before = sha256(source)
    probe.crash(5, micro=1)
    with pytest.raises(Crash):
        train_tiny("ckpt_path=last")
    assert sha256(source) == before
    train_tiny("ckpt_path=last")
    assert sha256(source) == before


def test_two_resumes_leave_one_curve_in_one_folder(train_tiny: Train, probe: Probe) -> None:
    """FACTS 4: a resumed TensorBoardLogger makes a new version, or writes the same steps again."""
    straight = train_tiny()
    for step in (5, 7):
        probe.crash(step)
        with pytest.raises(Crash):
            train_tiny(*([] if step == 5 else ["ckpt_path=last"]))
    folder = train_tiny("ckpt_path=last")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["version_0", "version_1"]
    points = [(tag, step) for tag, step in raw_points(folder) if tag != "hp_metric"]
    assert len(points) == len(set(points)), "a step is doubled"
    for tag in {tag for tag, _ in points}:
        steps = [step for name, step in points if name == tag]
        assert steps == sorted(steps), tag
    assert {point for point in points if point[0] not in MEASURED} == {
        point for point in raw_points(straight) if point[0] not in ("hp_metric", *MEASURED)
    }


@pytest.mark.parametrize(
    "change", ["trainer.checkpoint_every_steps=2", "trainer.log_every_steps=3"]
)
def test_the_best_score_survives_changed_intervals(
    change: str, train_tiny: Train, probe: Probe
) -> None:
    """FACTS 1: a changed every_n_* makes ModelCheckpoint forget its best score; a worse one replaces it."""
    from azllm_lightning.training.causal_lm import CausalLM

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
    assert saved["callbacks"]["BestCheckpoint"]["best_step"] == 4
    assert saved["callbacks"]["BestCheckpoint"]["best_model_score"] == pytest.approx(
        curve(folder)["val_loss"][4]
    )
