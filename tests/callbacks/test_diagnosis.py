"""What a person is told of a run: each ailment once, with what to try, and nothing of a run in good health."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from events import texts
from lightning.pytorch.plugins.precision import MixedPrecision

from azllm_lightning.callbacks import diagnosis
from azllm_lightning.callbacks.console import Console
from azllm_lightning.callbacks.diagnosis import Diagnosis
from azllm_lightning.callbacks.panels import Validation
from azllm_lightning.callbacks.rules import against_overfitting, jitter, overfitting, underfitting
from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.config.optimizer import optimizer_config
from azllm_lightning.data.datamodule import Windows
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.session.build import check
from azllm_lightning.training import hardware
from azllm_lightning.training.causal_lm import CausalLM, StepReport

Train = Callable[..., Path]

# Validations of real runs: step, mean of train_loss since the one before, val_loss.
TALES = [
    (0, None, 7.680),
    (100, 4.986, 2.812),
    (200, 1.831, 1.347),
    (300, 1.035, 0.971),
    (400, 0.805, 0.788),
    (500, 0.638, 0.695),
    (600, 0.563, 0.640),
]
CORPUS = [
    (0, None, 9.048),
    (200, 6.780, 5.805),
    (400, 5.275, 5.101),
    (600, 4.887, 4.710),
    (800, 4.450, 4.416),
    (1000, 4.186, 4.178),
    (1200, 4.007, 4.039),
    (1400, 3.862, 3.904),
    (1600, 3.629, 3.790),
    (1800, 3.671, 3.686),
    (2000, 3.634, 3.606),
    (2200, 3.308, 3.565),
    (2400, 3.478, 3.526),
]
SMALL = [  # 26 k parameters on 36 k tokens
    (0, None, 5.703),
    (40, 4.821, 4.274),
    (80, 4.176, 4.203),
    (120, 4.012, 3.957),
    (160, 3.796, 3.825),
    (200, 3.565, 3.625),
    (240, 3.412, 3.508),
    (280, 3.338, 3.407),
    (320, 3.221, 3.328),
    (360, 3.160, 3.280),
    (400, 3.096, 3.252),
]
MEMORISING = [  # 126 k parameters on 1,600 tokens
    (0, None, 5.739),
    (10, 5.243, 4.571),
    (20, 4.269, 4.324),
    (30, 4.069, 4.216),
    (40, 3.892, 4.006),
    (50, 3.639, 3.856),
    (60, 3.388, 3.744),
    (70, 3.157, 3.664),
    (80, 2.916, 3.574),
    (90, 2.672, 3.605),
    (100, 2.440, 3.604),
    (110, 2.176, 3.679),
    (120, 2.027, 3.687),
]
# train_loss and grad_norm of the same runs: of tales every 10 steps; of the corpus means of 100, and every 60 steps.
TALES_LOSS = (
    "7.7 7.0 6.3 5.9 5.4 4.9 4.4 3.9 3.5 3.0 2.8 2.7 2.4 2.1 2.0 1.8 1.7 1.6 1.4 1.3 1.3 1.1 1.2 1.2 1.0 .9 1.0 1.0 "
    "1.0 .9 .9 .8 .9 .8 .8 .8 .8 .8 .8 .8 .7 .7 .8 .6 .6 .7 .6 .6 .6 .6 .6 .6 .6 .5 .6 .5 .6 .6 .5 .6 .5"
)
TALES_NORM = (
    "2.3 1.2 .7 2.3 1.3 1.0 1.0 .9 .8 .9 .9 1.0 1.0 1.0 1.0 1.0 1.1 .9 1.0 1.0 .9 .9 .9 .9 .8 .8 .9 .9 .8 .9 .8 .8 "
    ".8 .8 .7 .8 .7 .7 .7 .7 .6 .7 .6 .5 .6 .6 .6 .6 .6 .6 .6 .6 .6 .5 .6 .5 .6 .6 .5 .6 .5"
)
CORPUS_LOSS = (
    "9.08 7.19 6.14 5.42 5.13 5.06 4.71 4.39 4.51 4.30 4.07 4.14 3.87 3.94 3.79 3.69 3.57 3.84 3.50 3.70 3.56 3.25 "
    "3.37 3.44 3.52"
)
CORPUS_NORM = (
    "6.36 1.37 1.45 .83 .79 .78 .95 .69 .82 .74 .69 .78 .77 .8 .77 .8 .79 .75 .81 .72 .73 .84 .81 .79 .79 .87 .8 "
    ".92 .86 .89 1.07 .97 .84 .92 .97 .84 .99 .97 .88 .88 1.01"
)


def rows(values: Iterable[tuple[int, float | None, float]]) -> list[Validation]:
    return [Validation(step, train, val, math.exp(val), val / 3) for step, train, val in values]


def steps_between(points: str, every: int, scatter: float) -> list[float]:
    """A value for each step between recorded ones, with noise."""
    noise = random.Random(0)
    values = [float(point) for point in points.split()]
    return [
        a + (b - a) * step / every + noise.gauss(0, scatter)
        for a, b in pairwise(values)
        for step in range(1, every + 1)
    ]


# --- curves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [TALES, CORPUS, SMALL])
def test_a_healthy_curve_is_neither_over_nor_underfit(
    curve: list[tuple[int, float | None, float]],
) -> None:
    guess = curve[0][2]
    for end in range(1, len(curve) + 1):
        assert overfitting(rows(curve[:end]), 0.01) < 0.5
    assert underfitting(rows(curve), guess, warmup_steps=40) is None


def test_overfitting_is_a_rise_that_lasts_while_the_training_loss_falls() -> None:
    found = [overfitting(rows(MEMORISING[:end]), 0.01) for end in range(1, len(MEMORISING) + 1)]
    assert [severity >= 1 for severity in found] == [False] * 12 + [True]
    assert found[-1] > found[-2] > 0
    assert overfitting(rows(MEMORISING), 0.10) < 1  # the setting


def test_a_rise_of_both_losses_is_no_overfitting() -> None:
    risen = [(130, 3.9, 3.9), (140, 4.0, 4.1)]
    assert overfitting(rows([*MEMORISING[:9], *risen]), 0.01) < 1


def test_a_spike_that_is_recovering_is_no_overfitting() -> None:
    early = [
        (0, None, 9.0),
        (100, 6.8, 5.8),
        (200, 5.3, 5.1),
        (300, 5.25, 5.9),
        (400, 4.9, 5.4),
        (500, 4.8, 5.2),
    ]
    assert overfitting(rows(early), 0.01) < 1


def test_a_jumpy_val_loss_needs_a_larger_rise() -> None:
    """Up and down by 0.1 around a slow fall, as at a high rate; the training loss falls."""
    jumpy = [
        (100 * i, 5.0 - 0.05 * i, 4.9 - 0.01 * i + (0.1 if i % 3 else -0.1)) for i in range(1, 16)
    ]
    assert all(overfitting(rows([(0, None, 9.0), *jumpy[:end]]), 0.01) < 1 for end in range(1, 16))


def test_jitter_is_the_noise_and_not_the_curve() -> None:
    noise = random.Random(1)
    smooth = [4 + 3 * math.exp(-i / 4) for i in range(9)]
    assert jitter(smooth) < 0.02
    rough = [jitter([value + noise.gauss(0, 0.1) for value in smooth]) for _ in range(200)]
    assert statistics.fmean(rough) == pytest.approx(0.1, rel=0.25)
    assert jitter([1.0, 2.0, 1.0, 2.0]) == 0
    assert math.isfinite(jitter([*smooth, math.nan, math.inf]))


STEEP = [(0, None, 9.0), (100, 8.0, 7.0), (200, 6.6, 6.2), (300, 5.6, 5.0), (400, 4.6, 4.3)]
STUCK = [(0, None, 9.0), (100, 7.9, 7.0), (200, 6.9, 6.81), (300, 6.8, 6.80), (400, 6.79, 6.79)]


def test_underfitting_is_told_at_the_end() -> None:
    assert underfitting(rows(STEEP), 9.0, 40) == ("undertrained", rows(STEEP)[2])
    assert underfitting(rows(STUCK), 9.0, 40) == ("too_small", rows(STUCK)[2])
    assert underfitting(rows(STUCK), 13.0, 40) is None  # low enough among so many tokens
    for curve in (STEEP, STUCK):
        assert underfitting(rows(curve), 9.0, 150) is None  # hardly past its warm-up
        assert (
            underfitting(rows([curve[0], curve[-1]]), 9.0, 40) is None
        )  # nothing known of the middle
    apart = [*STEEP[:-1], (400, 3.0, 4.3)]
    assert underfitting(rows(apart), 9.0, 40) is None  # the text is what is short
    tuned = [(0, None, 3.50), (200, 3.45, 3.42), (300, 3.40, 3.39), (400, 3.37, 3.36)]
    assert underfitting(rows(tuned), 9.0, 40) is None  # from init_from: it had little to learn


# --- replays --------------------------------------------------------------------------------------------------------


class Replay:
    """Leads a recorded run past the monitor; `marks` are what it said, with the steps."""

    def __init__(
        self, vocab_size: int = 2048, warmup: int = 40, patience: int | None = None
    ) -> None:
        self.marks: list[tuple[str, int]] = []
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=1,
            global_step=0,
            is_global_zero=True,
            loggers=[SimpleNamespace(log_metrics=self._log, save=lambda: None)],
            max_steps=10**9,
            sanity_checking=False,
            should_stop=False,
        )
        self.module = Mock(spec=CausalLM)
        self.module.model_config = SimpleNamespace(vocab_size=vocab_size, dropout=0.0)
        self.module.schedule_config = SimpleNamespace(warmup_steps=warmup)
        self.module.optimizer_config = SimpleNamespace(lr=3e-3)
        self.module.logs_now = True
        self.patience = patience
        self.restart()

    def _log(self, values: dict[str, float], step: int) -> None:
        self.marks += [(tag.removeprefix("diagnosis/"), step) for tag in values]

    def restart(self) -> None:
        """Another session, from what a checkpoint would hold."""
        before = getattr(self, "diagnosis", None)
        console = Console(Words("en"), Mock())
        self.diagnosis = Diagnosis(console, Mock(), 0.01, Path("best.ckpt"), self.patience)
        if before is not None:
            console.load_state_dict(before.console.state_dict())
            self.diagnosis.load_state_dict(json.loads(json.dumps(before.state_dict())))

    def step(self, loss: float, norm: float = 1.0, scale: float = 1.0) -> None:
        self.trainer.global_step += 1
        self.module.step_report = StepReport(loss, norm, 3e-3, scale)
        self.diagnosis.on_train_batch_end(self.trainer, self.module)

    def validate(self, row: tuple[int, float | None, float]) -> None:
        self.trainer.global_step = row[0]
        self.diagnosis.console.validations += rows([row])
        self.diagnosis.on_validation_end(self.trainer, self.module)


@pytest.mark.parametrize(
    ("vocab_size", "losses", "norms"),
    [
        (2048, steps_between(TALES_LOSS, 10, 0.05), steps_between(TALES_NORM, 10, 0.05)),
        (8192, steps_between(CORPUS_LOSS, 100, 0.3), steps_between(CORPUS_NORM, 60, 0.1)),
        (
            8192,
            steps_between(CORPUS_LOSS, 100, 0.9),
            steps_between(CORPUS_NORM, 60, 0.3),
        ),  # a batch of few windows
    ],
)
def test_healthy_steps_leave_no_mark(
    vocab_size: int, losses: list[float], norms: list[float]
) -> None:
    replay = Replay(vocab_size)
    for loss, norm in zip(losses, norms, strict=True):
        replay.step(loss, norm)
    assert replay.marks == []


@pytest.mark.parametrize("curve", [TALES, CORPUS, SMALL])
def test_healthy_validations_leave_no_mark(curve: list[tuple[int, float | None, float]]) -> None:
    replay = Replay(round(math.exp(curve[0][2])), patience=3)
    replay.trainer.max_steps = curve[-1][0]
    for row in curve:
        replay.validate(row)
    assert replay.marks == []
    assert not replay.trainer.should_stop


def test_a_loss_that_rises_is_told_once_and_again_when_it_comes_back() -> None:
    for restart in (None, 205, 320):
        replay = Replay()
        losses = [*[3.0] * 200, *[5.0] * 100, *[2.9] * 100, *[5.0] * 20]
        for step, loss in enumerate(losses):
            if step == restart:
                replay.restart()
            replay.step(loss + 0.1 * (-1) ** step)
        assert replay.marks == [("lr_too_high", 203), ("lr_too_high", 403)], restart


def test_a_growing_gradient_is_told_if_the_loss_does_not_fall() -> None:
    for fall, expected in ((0.0, 1), (1e-3, 0)):
        replay = Replay()
        for step in range(400):
            replay.step(3.0 - fall * step, 1.0 if step < 300 else 6.0)
        assert len(replay.marks) == expected


def test_a_loss_that_stays_that_of_guessing_is_told_once() -> None:
    replay = Replay(vocab_size=300, warmup=30)
    for _ in range(300):
        replay.step(math.log(300) + 0.01)
    assert replay.marks == [("dead", 80)]


def test_overfitting_is_told_once_and_again_when_it_came_back() -> None:
    again = [(130, 1.9, 3.56), (140, 1.8, 3.50), (150, 1.7, 4.0), (160, 1.6, 4.0), (170, 1.5, 4.1)]
    for restart in (None, 12, 13, 15):
        replay = Replay()
        for index, row in enumerate([*MEMORISING, *again]):
            if index == restart:
                replay.restart()
            replay.validate(row)
        assert [name for name, _ in replay.marks] == ["overfitting", "overfitting"], restart
        assert replay.marks[0] == ("overfitting", 120)


def test_the_end_is_told_to_be_undertrained() -> None:
    replay = Replay(vocab_size=8100)
    replay.trainer.max_steps = 400
    for row in STEEP:
        replay.validate(row)
    assert replay.marks == [("undertrained", 400)]


def test_patience_counts_validations_since_the_best_over_a_resume() -> None:
    flat = [
        (0, None, 5.7),
        (10, 5.0, 4.0),
        (20, 4.0, 3.0),
        *[(step, 3.0, 3.001) for step in (30, 40, 50, 60)],
    ]
    for restart in (None, 4, 5):
        replay = Replay(patience=3)
        for index, row in enumerate(flat):
            if index == restart:
                replay.restart()
            replay.validate(row)
            if replay.trainer.should_stop:
                break
        assert replay.marks == [("early_stop", 50)], restart


def test_a_scale_that_falls_without_growing_is_told_once() -> None:
    level = [
        2.0**k for k in (13, 12, 11, 10, 11, 10, 9, 8, 9, 8, 7, 6, 7)
    ]  # finds its level, then up and down
    for scales, expected in (
        (level, []),
        ([2.0 ** (13 - k) for k in range(12)], [("scale_falls", 6)]),
        ([2.0**13, *[0.0] * 9], [("scale_falls", 2)]),
    ):
        for restart in (None, 4):
            replay = Replay()
            for step, scale in enumerate(scales):
                if step == restart:
                    replay.restart()
                replay.step(5.0, math.inf, scale)
            assert replay.marks == expected


@pytest.mark.parametrize("lang", ["en", "az"])
def test_each_line_can_be_said(lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field that a text names is given, in both languages."""
    lines: list[str] = []
    monkeypatch.setattr(diagnosis.log, "warning", lines.append)
    monkeypatch.setattr(diagnosis, "WATCHED_SECONDS", 0.0)
    replay = Replay(patience=3)
    replay.diagnosis.console.words = Words(lang)
    replay.trainer.datamodule = SimpleNamespace(config=SimpleNamespace(num_workers=0))
    replay.module.logs_now, replay.diagnosis.throughput.step_seconds = False, [1.0]
    for step in range(150):
        replay.diagnosis._waited = 0.5
        replay.step(math.log(2048) if step < 100 else 20.0)
    replay.module.logs_now = True
    for scale in (2.0**13, 2.0**7):
        replay.step(1.0, scale=scale)
    for row in MEMORISING:
        replay.validate(row)
    for curve in (STEEP, STUCK):
        replay.diagnosis.console.validations.clear()
        replay.trainer.max_steps = 400
        for row in curve:
            replay.validate(row)
    said = {name for name, _ in replay.marks}
    assert said == {
        *("dead", "lr_too_high", "data_bound", "scale_falls"),
        *("overfitting", "early_stop", "undertrained", "too_small"),
    }
    assert len(lines) == len(replay.marks)
    assert all(line.startswith(Words(lang)("diagnosis")) for line in lines)
    assert max(len(part) for line in lines for part in line.splitlines()) <= 80


# --- runs -----------------------------------------------------------------------------------------------------------


OVERFIT = [
    *(
        "data.tales_bytes=3_000",
        "data.val_fraction=0.3",
        "data.val_windows=null",
        "data.batch_size=8",
    ),
    *(
        "model.n_layer=2",
        "model.n_embd=64",
        "optimizer=adamw",
        "optimizer.lr=0.01",
        "schedule.name=constant",
    ),
    *("trainer.val_every_steps=8", "trainer.max_steps=136", "trainer.checkpoint_every_steps=50"),
    "callbacks.samples.max_new_tokens=0",
]
SHORT = ["optimizer=adamw", "trainer.val_every_steps=50", "trainer.checkpoint_every_steps=1000"]


def marks(run: Path) -> dict[str, list[int]]:
    """The ailments marked in TensorBoard, and at which steps."""
    found = {
        tag: list(points)
        for tag, points in read_scalars(run).items()
        if tag.startswith("diagnosis/")
    }
    return {tag.removeprefix("diagnosis/"): steps for tag, steps in found.items()}


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return values


def test_a_run_that_overfits_is_told_so_and_stops(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train_tiny(*OVERFIT)
    found, told = marks(straight), capsys.readouterr().err
    assert list(found) == ["overfitting"]
    step = found["overfitting"][0]
    best = min(read_scalars(straight)["val_loss"].items(), key=lambda point: point[1])[0]
    assert best < step < 136
    assert told.count("overfitting.") == len(found["overfitting"])
    plain = one_line(told)
    assert f"step {step}: overfitting." in plain
    assert f"at step {best};" in plain
    assert "best.ckpt" in plain
    marked, text = texts(straight, "diagnosis/overfitting")[0]
    assert marked == step
    assert "best.ckpt" in text
    assert summary(straight)["steps"] == 136

    stopped = train_tiny(*OVERFIT, "callbacks.early_stopping=true")
    assert marks(stopped) == {"overfitting": [step], "early_stop": [step]}
    assert summary(stopped)["steps"] == step
    assert summary(stopped)["status"] == "done"
    assert step_files(stopped / "checkpoints")[0][0] == step
    assert list(read_scalars(stopped)["val_loss"])[-1] == step
    assert "stopping early (callbacks.early_stopping): val_loss" in one_line(
        capsys.readouterr().err
    )


def test_a_resumed_run_says_and_does_what_the_uninterrupted_one_does(train_tiny: Train) -> None:
    straight = train_tiny(*OVERFIT)
    step = marks(straight)["overfitting"][0]

    def stopped_and_resumed(at: int, *overrides: str) -> Path:
        stop = [f"+callbacks.stop.step={at}", "+callbacks.stop.kill=false"]
        stop.append("+callbacks.stop._target_=azllm_lightning.callbacks.interrupt.Interrupt")
        with pytest.raises(cli.Resumable):
            train_tiny(*OVERFIT, *stop, *overrides)
        run = train_tiny("ckpt_path=last")
        assert summary(run)["resumed_from"]
        return run

    theirs = torch.load(step_files(straight / "checkpoints")[0][1], weights_only=True)
    for at in (step, step + 3):  # in the validation that tells, and after it
        resumed = stopped_and_resumed(at)
        assert marks(resumed) == marks(straight)
        assert (
            read_scalars(resumed)["generalization_gap"]
            == read_scalars(straight)["generalization_gap"]
        )
        ours = torch.load(step_files(resumed / "checkpoints")[0][1], weights_only=True)
        assert ours["callbacks"]["Diagnosis"] == theirs["callbacks"]["Diagnosis"]
    early = stopped_and_resumed(step, "callbacks.early_stopping=true")
    assert summary(early)["steps"] == step
    assert marks(early) == {"overfitting": [step], "early_stop": [step]}


def test_a_learning_rate_that_is_too_high_is_told(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(*SHORT, "optimizer.lr=1.0", "trainer.max_steps=40")
    assert list(marks(run)) == ["lr_too_high"]
    assert "the learning rate looks too high" in one_line(capsys.readouterr().err)


def test_a_run_that_learns_nothing_is_told(train_tiny: Train) -> None:
    run = train_tiny(*SHORT, "optimizer.lr=1e-9", "trainer.max_steps=70", "lang=az")
    assert marks(run) == {"dead": [60]}
    assert "model heç nə öyrənmir" in (run / "train.log").read_text(encoding="utf-8")


def test_noise_is_told_to_teach_nothing(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(self: Windows, indices: list[int]) -> torch.Tensor:
        return torch.randint(300, (len(indices), self.block_size + 1), generator=generator)

    monkeypatch.setattr(Windows, "__getitems__", noise)
    run = train_tiny(*SHORT, "trainer.max_steps=70")
    assert marks(run) == {"dead": [60]}


def test_waiting_for_data_is_told(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Windows.__getitems__

    def slow(self: Windows, indices: list[int]) -> torch.Tensor:
        time.sleep(0.05)
        return read(self, indices)

    monkeypatch.setattr(diagnosis, "WATCHED_SECONDS", 0.5)
    settings = [
        "trainer.max_steps=70",
        "trainer.log_every_steps=10",
        "callbacks.samples.max_new_tokens=0",
    ]
    monkeypatch.setattr(Windows, "__getitems__", slow)
    assert list(marks(train_tiny(*SHORT, *settings))) == ["data_bound"]


def test_an_fp16_scale_that_falls_is_told(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a scale at which each step overflows."""

    def plugin(precision: str, device: str) -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**80))

    monkeypatch.setattr(hardware, "precision_plugin", plugin)
    assert marks(train_tiny("trainer.max_steps=12")) == {"scale_falls": [6]}


def test_a_healthy_run_is_told_nothing(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(*SHORT, "trainer.max_steps=150", "schedule.warmup_steps=10")
    assert marks(run) == {}
    assert capsys.readouterr().err.strip() == ""


def test_what_is_told_against_overfitting_can_be_typed_and_is_not_told_twice() -> None:
    config, told = cli.compose(), []
    for _ in range(4):
        dropout = config["model"]["dropout"]
        told.append(against_overfitting(optimizer_config(config["optimizer"]), dropout))
        config = cli.compose(" ".join(told).split())
        check(config)
    assert told[0] == "optimizer.weight_decay=3 optimizer.adam_weight_decay=3"
    assert told[1:] == ["model.dropout=0.2", "model.dropout=0.4", "model.dropout=0.5"]
    adamw = optimizer_config(cli.compose(["optimizer=adamw"])["optimizer"])
    assert against_overfitting(adamw, 0.0) == "model.dropout=0.2"
