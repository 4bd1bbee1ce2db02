"""What a run suggests at its end fits what happened in it."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.callbacks.history import Validation
from azllm_lightning.callbacks.panels import longer_command
from azllm_lightning.callbacks.rules import more_steps_help
from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.planning.far_off import TextSize
from azllm_lightning.runs.checkpoint_files import step_path
from azllm_lightning.runs.folder import Run, claim
from azllm_lightning.runs.paths import address_of, name_address_of
from azllm_lightning.session import session
from azllm_lightning.session.outcome import resume_command, resume_settings
from azllm_lightning.session.report import better_command, remedy
from azllm_lightning.training.batch import divides_a_step


def validations(*losses: float) -> list[Validation]:
    return [Validation(100 * i, 2.0, loss, 2.7**loss, 1.0) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((7.0, 3.0, 2.5), True),
        ((7.0, 3.0, 2.5, 2.6), True),  # one may be noise
        ((7.0, 3.0, 2.5, 2.6, 2.55), False),
        ((7.0, 3.0, math.nan), False),
        ((7.0,), False),
    ],
)
def test_more_steps_are_not_offered_past_the_best_or_after_a_divergence(
    losses: tuple[float, ...], expected: bool
) -> None:
    assert more_steps_help(validations(*losses), {"data_bound"}) is expected
    assert not more_steps_help(validations(*losses), {"too_small"})


MUON = compose(["optimizer=muon", "optimizer.lr=3e-3"]).optimizer
ADAMW = compose(["optimizer=adamw", "optimizer.lr=3e-3"]).optimizer


@pytest.mark.parametrize(
    ("present", "optimizer", "diverged", "expected"),
    [
        (set(), MUON, False, []),
        ({"data_bound"}, MUON, False, []),
        ({"overfitting"}, ADAMW, False, ["model.dropout=0.2"]),
        ({"lr_too_high", "overfitting"}, MUON, False, ["optimizer.lr=0.001"]),
        ({"too_small"}, MUON, False, ["optimizer.lr=0.009"]),
        (set(), MUON, True, ["optimizer.lr=0.001"]),
    ],
)
def test_the_settings_to_change_fit_the_problem(
    present: set[str], optimizer: OptimizerConfig, diverged: bool, expected: list[str]
) -> None:
    assert remedy(present, optimizer, 0.0, False, diverged) == expected


def test_the_text_of_a_mix_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TextSize] = []
    monkeypatch.setattr(session.far_off, "advice", lambda config, text, models: seen.append(text))
    config = compose(["data.mix=kitab.txt: 10", "data.block_size=128"])
    config = replace(config, model=config.model.for_data(300, 128, 0))
    session.warn_if_far_off(config, prepared_data(500, 30_000, 3.0))
    assert seen[0].tokens == 500 * 128


def prepared_data(windows: int, tokens: int, bytes_per_token: float) -> Any:
    """Text of a run: both splits have so many tokens."""
    split = SimpleNamespace(text_bytes=bytes_per_token * tokens, tokens=tokens)
    manifest = SimpleNamespace(splits={"train": split, "val": split})
    found = SimpleNamespace(num_windows=10 * windows, unique_windows=windows)
    found.shards = SimpleNamespace(manifest=manifest)
    return SimpleNamespace(train_windows=found)


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("experiment=t4 trainer.max_steps=300", {"nano", "tiny", "small10m"}),
        ("model=course trainer.max_steps=500", {"nano", "tiny", "small10m"}),
        ("model=course model.n_layer=10 model.n_head=12 trainer.max_steps=500", {"nano"}),
    ],
)
def test_a_better_command_is_accepted_and_has_the_model_that_was_compared(
    typed: str, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an experiment, or what was typed, has sizes of another model."""
    lines: list[str] = []
    monkeypatch.setattr(session.log, "warning", lambda text: lines.extend(text.splitlines()))
    config = compose(["data=text", "data.path=kitab.txt", *typed.split()])
    shape = config.model.for_data(8192, config.data.block_size, 0)
    tokens = 20_000_000
    data = prepared_data(tokens // shape.block_size, tokens, 5.0)
    session.warn_if_far_off(replace(config, model=shape), data)
    better = compose(shlex.split(lines[-1])[4:])
    trainer = better.trainer
    new = better.model.for_data(8192, better.data.block_size, 0)
    assert len([name for name in names if f"model={name}" in better.overrides]) == 1
    assert trainer.micro_batch_size == "auto" or divides_a_step(trainer, 1)

    def work(run: RunConfig, shape: GPTConfig) -> float:
        steps, batch = run.trainer.max_steps, run.trainer.global_batch_size
        return steps * batch * shape.block_size * shape.flops_per_token()

    assert work(better, new) == pytest.approx(work(config, shape), rel=0.1)


def test_a_student_is_not_told_to_decay_more() -> None:
    assert remedy({"overfitting"}, MUON, 0.1, True, False) == ["model.dropout=0.3"]


def test_the_command_of_the_next_run_keeps_what_was_typed() -> None:
    typed = ["data=tales", "ckpt_path=last", "optimizer=adamw", "+experiment=debug", "run_name=a"]
    config: Any = SimpleNamespace(
        overrides=(*typed, "model.dropout=0"),
        run_name="a",
        optimizer=ADAMW,
        shape=SimpleNamespace(dropout=0.0),
        teachers=None,
    )
    parts: Any = SimpleNamespace(
        diagnosis=SimpleNamespace(present=frozenset({"overfitting"})),
        io=SimpleNamespace(diverged=None),
    )
    assert better_command(parts, config) == (
        "python -m azllm_lightning.train data=tales optimizer=adamw experiment=debug run_name=a "
        "model.dropout=0.2"
    )
    parts.diagnosis.present = frozenset()
    assert better_command(parts, config) is None


@pytest.mark.parametrize(
    ("saved", "start", "typed", "again"),
    [
        (4, 4, ["ckpt_path=last", "trainer.max_steps=8"], True),
        (None, 4, ["ckpt_path=a.ckpt", "trainer.max_steps=8"], True),  # a fork
        (6, 4, ["ckpt_path=last", "trainer.max_steps=8"], False),
        # A rollback, or a launcher, went back to what a session of these settings saved.
        (4, 4, ["model=tiny", "trainer.max_steps=8"], False),
    ],
)
def test_what_no_checkpoint_has_is_typed_again(
    saved: int | None,
    start: int,
    typed: list[str],
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = claim("kitab")
    if saved is not None:
        step_path(run.checkpoints, saved).touch()
    by_name = ["run_name=kitab", "ckpt_path=last"]
    assert resume_settings(run, typed, start) == (typed if again else by_name)


@pytest.mark.parametrize("logs", ["lightning_logs", "elsewhere"])
def test_commands_name_the_folder_of_a_run_that_is_not_the_newest_of_its_name(
    logs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = [] if logs == "lightning_logs" else [f"logs_dir={logs}"]
    old = claim("kitab", Path(logs))
    (old.checkpoints / "step_00000004.ckpt").touch()
    train = "python -m azllm_lightning.train"
    by_name = " ".join([train, "run_name=kitab", *where, "ckpt_path=last"])
    assert resume_command(old) == by_name
    assert longer_command(old, 8).startswith(by_name)
    new = claim("kitab", Path(logs))  # another terminal trains the same name meanwhile
    assert resume_command(old) == f"{train} ckpt_path={old.folder}"
    assert longer_command(old, 8).startswith(f"{train} ckpt_path={old.folder} ")
    assert address_of(old.folder) == [f"ckpt_path={old.folder}"]
    assert address_of(new.folder) == ["run_name=kitab", *where]
    assert name_address_of(old.folder) == ["run_name=kitab/version_0", *where]
    # On the disk of another machine nothing is known of other versions.
    far_off = Run(Path("lightning_logs/yox/version_3"))
    assert address_of(far_off.folder) == ["run_name=yox"]
    for run in (old, new):
        run.release()
