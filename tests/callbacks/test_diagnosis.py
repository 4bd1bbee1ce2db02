"""What a run reports about itself: each problem once, and nothing if it is healthy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driven import DrivenRun, Row
from events import texts
from recorded import (
    CORPUS,
    CORPUS_LOSS,
    CORPUS_NORM,
    MEMORISING,
    SMALL,
    STEEP,
    STUCK,
    TALES,
    TALES_LOSS,
    TALES_NORM,
    steps_between,
)
from recorded_runs import OVERFIT, validations

from azllm_lightning.callbacks import diagnosis
from azllm_lightning.callbacks.diagnosis import (
    Diagnosis,
    overfitting_text,
    too_small_text,
    undertrained_text,
)
from azllm_lightning.callbacks.history import History, Validation
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.callbacks import CallbacksConfig
from azllm_lightning.config.compose import compose
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.training.causal_lm import CausalLM

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]


def config(*overrides: str) -> CallbacksConfig:
    return compose([f"callbacks.{text}" for text in overrides]).callbacks


class Judged(DrivenRun):
    """A driven run with a Diagnosis."""

    def __init__(
        self, vocab_size: int = 2048, warmup: int = 40, patience: int | None = None
    ) -> None:
        super().__init__(vocab_size, warmup)
        stopping = ["early_stopping=true", f"early_stopping_patience={patience}"]
        self.settings = config(*(stopping if patience else []))
        self.diagnosis = Diagnosis(self.history, self.settings)
        self.callbacks.append(self.diagnosis)

    def restart(self) -> None:
        """Another session, from what a checkpoint would hold."""
        history = History(self.io)
        self.diagnosis = Diagnosis(history, self.settings)
        self.resume([history, self.diagnosis])


# --- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "losses", "norms"),
    [
        (2048, steps_between(TALES_LOSS, 10, 0.05), steps_between(TALES_NORM, 10, 0.05)),
        (8192, steps_between(CORPUS_LOSS, 100, 0.3), steps_between(CORPUS_NORM, 60, 0.1)),
        # A batch of few windows:
        (8192, steps_between(CORPUS_LOSS, 100, 0.9), steps_between(CORPUS_NORM, 60, 0.3)),
    ],
)
def test_healthy_steps_leave_no_mark(
    vocab_size: int, losses: list[float], norms: list[float]
) -> None:
    run = Judged(vocab_size)
    for loss, norm in zip(losses, norms, strict=True):
        run.step(loss, norm)
    assert run.marks == []


@pytest.mark.parametrize("restart", [None, 205, 320])
def test_a_loss_that_rises_is_reported_once_and_again_when_it_comes_back(
    restart: int | None,
) -> None:
    run = Judged()
    losses = [*[3.0] * 200, *[5.0] * 100, *[2.9] * 100, *[5.0] * 20]
    for step, loss in enumerate(losses):
        if step == restart:
            run.restart()
        run.step(loss + 0.1 * (-1) ** step)
    assert run.marks == [("lr_too_high", 203), ("lr_too_high", 403)]


def test_a_loss_above_chance_from_the_start_is_reported() -> None:
    run = Judged(vocab_size=300)
    for step in range(100):
        run.step(6.0 + 0.2 * step)
    assert run.marks[0][0] == "lr_too_high"


@pytest.mark.parametrize(("fall", "expected"), [(0.0, 1), (1e-3, 0)])
def test_a_growing_gradient_is_reported_if_the_loss_does_not_fall(
    fall: float, expected: int
) -> None:
    run = Judged()
    for step in range(400):
        run.step(3.0 - fall * step, 1.0 if step < 300 else 6.0)
    assert len(run.marks) == expected


def test_a_loss_that_stays_at_chance_is_reported_once() -> None:
    run = Judged(vocab_size=300, warmup=30)
    for _ in range(300):
        run.step(math.log(300) + 0.01)
    assert run.marks == [("dead", 80)]


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        # Finds its level, then goes up and down:
        ([2.0**k for k in (13, 12, 11, 10, 11, 10, 9, 8, 9, 8, 7, 6, 7)], []),
        ([2.0 ** (13 - k) for k in range(12)], [("scale_falls", 6)]),
        ([2.0**13, *[0.0] * 9], [("scale_falls", 2)]),
    ],
)
@pytest.mark.parametrize("restart", [None, 4])
def test_a_scale_that_falls_without_growing_is_reported_once(
    scales: list[float], expected: list[tuple[str, int]], restart: int | None
) -> None:
    run = Judged()
    for step, scale in enumerate(scales):
        if step == restart:
            run.restart()
        run.step(5.0, math.inf, scale)
    assert run.marks == expected


@pytest.mark.parametrize(("wait", "expected"), [(0.3, [("data_bound", 60)]), (0.1, [])])
def test_waiting_for_data_is_reported_once(
    wait: float, expected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Judged()
    monkeypatch.setattr("time.perf_counter", lambda: run.now)
    run.call("on_train_start")
    for _ in range(300):
        run.step(wait=wait, seconds=1.0 - wait)
    assert run.marks == expected


SLOW = [1.0] * 20


@pytest.mark.parametrize("lang", ["en", "az"])
@pytest.mark.parametrize(
    ("device", "seconds", "reserved", "expected"),
    [
        ("cuda", [9.0, *SLOW, *[5.0] * 40], 0.97, [("slow_steps", 30)]),
        ("cuda", [9.0, *SLOW, *[3.0] * 40], 0.97, []),
        ("cuda", [9.0, *SLOW, *[5.0] * 4, *SLOW], 0.97, []),  # a moment of another program
        ("cuda", [50.0, *SLOW, *SLOW], 0.97, []),  # the first step compiles
        ("cuda", [9.0, *SLOW, *SLOW], 1.2, [("memory_spills", 10)]),
        ("cuda", [9.0, *SLOW, *[5.0] * 40], 1.2, [("memory_spills", 10)]),  # and so it is slow
        ("cpu", [9.0, *SLOW, *[5.0] * 40], 0.0, []),
    ],
)
def test_gpu_memory_that_spills_to_the_host_is_reported_once(
    device: str,
    seconds: list[float],
    reserved: float,
    expected: list[tuple[str, int]],
    lang: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows, where a run that needs more than the GPU has only becomes slow."""
    use_language(lang)
    lines: list[str] = []
    run = Judged()
    run.module.device.type = device
    monkeypatch.setattr("time.perf_counter", lambda: run.now)
    monkeypatch.setattr(diagnosis, "reserved_share", lambda: reserved)
    monkeypatch.setattr(diagnosis.log, "warning", lines.append)
    run.call("on_train_start")
    for duration in seconds:
        run.step(seconds=duration, wait=0.1)
    assert run.marks == expected
    for text in lines:
        assert "trainer.micro_batch_size" in text
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 2


# --- validations --------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [TALES, CORPUS, SMALL])
def test_healthy_validations_leave_no_mark(curve: list[Row]) -> None:
    run = Judged(round(math.exp(curve[0][2])), patience=3)
    run.trainer.max_steps = curve[-1][0]
    for row in curve:
        run.validate(row)
    assert run.marks == []
    assert not run.trainer.should_stop


@pytest.mark.parametrize("name", OVERFIT)
def test_overfitting_is_reported_once_however_bad_it_gets(name: str) -> None:
    run = Judged()
    recorded = validations(OVERFIT[name])
    run.trainer.max_steps = recorded[-1].step
    for row in recorded:
        run.validate((row.step, row.train_loss, row.val_loss))
    assert [mark for mark, _ in run.marks] == ["overfitting"]  # and no advice to train longer
    assert run.diagnosis.overfitting


@pytest.mark.parametrize("restart", [None, 12, 13, 15])
@pytest.mark.parametrize(("lowest", "expected"), [(3.58, 1), (3.50, 2)])
def test_only_a_new_best_ends_an_episode_of_overfitting(
    lowest: float, expected: int, restart: int | None
) -> None:
    """The best before is 3.574."""
    up = [(150, 1.7, 4.0), (160, 1.6, 4.0), (170, 1.5, 4.1)]
    run = Judged()
    for index, row in enumerate([*MEMORISING, (130, 1.9, 3.60), (140, 1.8, lowest), *up]):
        if index == restart:
            run.restart()
        run.validate(row)
    assert [name for name, _ in run.marks] == ["overfitting"] * expected


@pytest.mark.parametrize(("curve", "name"), [(STEEP, "undertrained"), (STUCK, "too_small")])
def test_underfitting_is_reported_at_the_end(curve: list[Row], name: str) -> None:
    run = Judged(vocab_size=8100)
    run.trainer.max_steps = 400
    for row in curve:
        run.validate(row)
    assert run.marks == [(name, 400)]
    run.restart()
    assert run.diagnosis.present == {name}  # a session that only reports the end
    run.trainer.max_steps = 800
    run.step()
    assert run.diagnosis.present == set()  # the run is trained longer


@pytest.mark.parametrize("restart", [None, 4, 5])
def test_patience_counts_validations_since_the_best_over_a_resume(restart: int | None) -> None:
    flat = [(step, 3.0, 3.001) for step in (30, 40, 50, 60)]
    run = Judged(patience=3)
    for index, row in enumerate([(0, None, 5.7), (10, 5.0, 4.0), (20, 4.0, 3.0), *flat]):
        if index == restart:
            run.restart()
        run.validate(row)
        if run.trainer.should_stop:
            break
    assert run.marks == [("early_stop", 50)]


def test_within_a_later_branch_no_validation_is_judged() -> None:
    """The mean with a branch that has just begun is worse than the model will be."""
    run = Judged(patience=3)
    for row in [(0, None, 5.7), (10, 5.0, 4.0), (20, 4.0, 3.0)]:
        run.validate(row)
    run.module.is_within_branch = True
    for step in (30, 40, 50, 60):
        run.validate((step, 3.0, 3.5))
    assert not run.trainer.should_stop
    run.module.is_within_branch = False
    run.validate((70, 2.9, 3.2))
    assert run.marks == [("early_stop", 70)]


# --- messages -----------------------------------------------------------------------------------


def messages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Each message that there is, by its name, from histories that call for it."""
    lines: list[str] = []
    names: list[str] = []
    monkeypatch.setattr(diagnosis.log, "warning", lines.append)

    run = Judged(patience=3)
    monkeypatch.setattr("time.perf_counter", lambda: run.now)
    for step in range(150):
        run.step(math.log(2048) if step < 100 else 20.0, wait=0.5, seconds=0.5)
    for scale in (2.0**13, 2.0**7):
        run.step(1.0, scale=scale)
    for row in validations(OVERFIT["short_5"]):
        run.validate((row.step, row.train_loss, row.val_loss))
        if run.trainer.should_stop:
            break
    names += [name for name, _ in run.marks]
    for curve in (STEEP, STUCK):
        run = Judged(vocab_size=8100)
        run.trainer.max_steps = 400
        for row in curve:
            run.validate(row)
        names += [name for name, _ in run.marks]
    return dict(zip(names, lines, strict=True))


@pytest.mark.parametrize("lang", ["en", "az"])
def test_each_problem_has_a_message_of_two_lines(
    lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_language(lang)
    found = messages(monkeypatch)
    assert found.keys() == {
        *("dead", "lr_too_high", "data_bound", "scale_falls"),
        *("overfitting", "early_stop", "undertrained", "too_small"),
    }
    for name, text in found.items():
        assert max(map(len, text.splitlines())) <= 80, name
        assert len(text.splitlines()) <= 2, name


def test_what_the_messages_advise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: " ".join(text.split()) for name, text in messages(monkeypatch).items()}
    assert re.match(
        r"step \d+: overfitting\. val_loss 3\.\d+ \(best 3\.343 at step 57\), while train_loss "
        r"falls\. Try model\.dropout=0\.2$",
        found["overfitting"],
    )
    assert "trainer.max_steps=800" in found["undertrained"]
    assert "optimizer.lr=0.001 (now 0.003)" in found["lr_too_high"]
    assert "chance is 7.625" in found["dead"]
    assert "50% of the time" in found["data_bound"]
    assert "data.num_workers=2 (now 0)" in found["data_bound"]
    assert "6 halvings" in found["scale_falls"]
    assert "since step 57" in found["early_stop"]


@pytest.mark.parametrize("lang", ["en", "az"])
def test_late_steps_and_long_remedies_fit_two_lines(lang: str) -> None:
    use_language(lang)
    optimizer = compose(["optimizer=muon"]).optimizer
    module: Any = SimpleNamespace(
        optimizer_config=optimizer, model_config=SimpleNamespace(dropout=0.0), teachers=None
    )
    best, middle, last = (
        Validation(step, 12.345, 12.345, 2e5, 4.1) for step in (98_000, 50_000, 100_000)
    )
    texts = [
        overfitting_text(last, best, module),
        undertrained_text(last, middle),
        too_small_text(last, middle, 0.00035),
    ]
    assert "optimizer.adam_weight_decay=3" in texts[0]
    for text in texts:
        lines = paragraph(text).splitlines()
        assert len(lines) <= 2, lines
        assert max(map(len, lines)) <= 80


def test_a_mark_is_a_point_of_the_loss_chart() -> None:
    """Its value is val_loss where that shows the problem, else train_loss."""
    logged: dict[str, float] = {}
    run = Judged(vocab_size=300, warmup=30)
    run.trainer.loggers[0].log_metrics = lambda values, step: logged.update(values)
    for _ in range(100):
        run.step(math.log(300) + 0.01)
    for row in validations(OVERFIT["short_5"]):
        run.validate((row.step, row.train_loss, row.val_loss))
        if run.diagnosis.overfitting:
            break
    assert logged["diagnosis/dead"] == pytest.approx(math.log(300) + 0.01)
    assert logged["diagnosis/overfitting"] == row.val_loss


# --- runs ---------------------------------------------------------------------------------------

PLANTED = ["trainer.val_every_steps=1", "trainer.max_steps=20", "trainer.checkpoint_every_steps=50"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a run learns, its validations have the losses of a recorded run that overfits."""
    recorded = [(row.train_loss, row.val_loss) for row in validations(OVERFIT["short_5"])]
    end = CausalLM.on_validation_epoch_end

    def on_validation_epoch_end(self: CausalLM) -> None:
        end(self)
        train_loss, val_loss = recorded[min(self.trainer.global_step, len(recorded) - 1)]
        values = {"val_loss": val_loss, "val_ppl": math.exp(val_loss), "val_bpb": val_loss / 3}
        if train_loss is not None:
            values["generalization_gap"] = val_loss - train_loss
        self.last_validation = values
        self.log_pinned(values)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", on_validation_epoch_end)


def marks(run: Path) -> dict[str, list[int]]:
    """The problems marked in TensorBoard, and at which steps."""
    scalars = read_scalars(run).items()
    found = {tag: list(points) for tag, points in scalars if tag.startswith("diagnosis/")}
    return {tag.removeprefix("diagnosis/"): steps for tag, steps in found.items()}


def summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return values


def stop_at(step: int) -> list[str]:
    target = "azllm_lightning.callbacks.interrupt.Interrupt"
    pairs = (f"_target_={target}", f"step={step}", "kill=false")
    return [f"+callbacks.stop.{pair}" for pair in pairs]


@pytest.mark.usefixtures("planted")
@pytest.mark.slow
def test_a_run_that_overfits_reports_it_and_a_resumed_one_does_the_same(
    train_short: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train_short(*PLANTED)
    captured = capsys.readouterr()
    (step,) = marks(straight)["overfitting"]
    assert captured.err.count("overfitting.") == 1
    assert "train longer" not in captured.out
    marked, text = texts(straight, "diagnosis/overfitting")[0]
    assert marked == step
    assert f"step {step}: overfitting." in text
    assert summary(straight)["steps"] == 20

    theirs = torch.load(step_files(straight / "checkpoints")[0][1], weights_only=True)
    for at in (step, step + 1):  # in the validation that reports it, and after it
        with pytest.raises(Resumable):
            train_short(*PLANTED, *stop_at(at))
        resumed = train_short("ckpt_path=last")
        assert marks(resumed) == marks(straight)
        assert len(summary(resumed)["resumed_from"]) == 1
        ours = torch.load(step_files(resumed / "checkpoints")[0][1], weights_only=True)
        assert ours["callbacks"]["Diagnosis"] == theirs["callbacks"]["Diagnosis"]
        assert (
            ours["callbacks"]["History"]["validations"]
            == theirs["callbacks"]["History"]["validations"]
        )


@pytest.mark.usefixtures("planted")
def test_a_run_that_overfits_stops_early_where_that_is_wanted(
    train_short: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_short(*PLANTED, "callbacks.early_stopping=true")
    (step,) = marks(run)["overfitting"]
    assert marks(run) == {"overfitting": [step], "early_stop": [step]}
    assert summary(run)["steps"] == step < 20
    assert summary(run)["status"] == "done"
    assert step_files(run / "checkpoints")[0][0] == step
    assert list(read_scalars(run)["val_loss"])[-1] == step
    assert "train longer" not in capsys.readouterr().out


def test_a_run_that_cannot_learn_reports_it_in_its_language(train_short: Train) -> None:
    settings = ["optimizer=adamw", "optimizer.lr=1e-9", "trainer.max_steps=60"]
    run = train_short(*settings, "trainer.val_every_steps=60", "lang=az")
    assert marks(run) == {"dead": [60]}
    assert "model heç nə öyrənmir" in (run / "train.log").read_text(encoding="utf-8")
