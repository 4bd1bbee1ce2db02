"""A group that is chosen on a resume is taken, refused, or said to leave settings as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.config.compose import compose
from azllm_lightning.config.resume import kept_settings, resumed_config
from azllm_lightning.config.run import RunConfig

Train = Callable[..., Path]

CHECKPOINT = "step_00000001.ckpt"
TEXT = ["data=text", "data.path=here.txt"]


def started(*typed: str) -> RunConfig:
    """The settled config of a run that was started with `typed`."""
    config = compose(typed)
    shape = config.model.for_data(vocab_size=300, block_size=config.data.block_size, eos_id=0)
    total = config.schedule.total_steps or config.trainer.max_steps
    return replace(config, model=shape, schedule=replace(config.schedule, total_steps=total))


def resumed(run: RunConfig, *typed: str) -> RunConfig:
    return resumed_config(run.to_mapping(), compose(["ckpt_path=last", *typed]), CHECKPOINT)


def said(run: RunConfig, *typed: str) -> list[str]:
    now = compose(["ckpt_path=last", *typed])
    return kept_settings(run.to_mapping(), now, resumed(run, *typed))


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize(("before", "now"), itertools.permutations(choices("model"), 2))
def test_another_model_is_refused_with_all_sizes_that_differ(before: str, now: str) -> None:
    """The default too, and sizes that would not fit those of the run."""
    run, other = started(f"model={before}"), compose([f"model={now}"]).model
    with pytest.raises(ValueError, match="cannot be resumed with different values") as refusal:
        resumed(run, f"model={now}")
    for key in ("n_layer", "n_head", "n_embd"):
        old, new = getattr(run.model, key), getattr(other, key)
        line = f"model.{key}: {old} in the checkpoint, {new} requested"
        assert (line in str(refusal.value)) == (old != new)


def test_another_model_is_compared_as_a_whole() -> None:
    """Also what it has in common with the choice that it replaces, and what it leaves at null."""
    with pytest.raises(ValueError, match=r"model\.n_layer: 2 in the checkpoint, 3 requested"):
        resumed(started("model=tiny", "model.n_layer=2"), "model=nano")
    sizes = ["model.n_layer=4", "model.n_head=2", "model.n_embd=256"]
    assert resumed(started(*sizes), "model=tiny").model == started(*sizes).model
    with pytest.raises(ValueError, match=r"model\.n_kv_head: 1 in the checkpoint, 2 requested"):
        resumed(started(*sizes, "model.n_kv_head=1"), "model=tiny")


@pytest.mark.parametrize("size", ["n_head=5", "n_embd=100", "n_kv_head=3", "n_head=3"])
def test_a_size_is_compared_before_it_has_to_fit_the_others(size: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{size.partition('=')[0]}: \d+ in the checkp"):
        resumed(started("model=tiny"), f"model.{size}")


@pytest.mark.parametrize("size", ["n_embd=256", "n_head=2", "n_kv_head=null", "n_kv_head=2"])
def test_a_size_that_the_run_has_need_not_fit_the_defaults(size: str) -> None:
    run = started("model=tiny")
    assert resumed(run, f"model.{size}").model == run.model


@pytest.mark.parametrize(
    ("run", "now", "refused"),
    [
        (["optimizer=adamw"], "optimizer=muon", "optimizer.name: adamw .*, muon requested"),
        (["optimizer=muon"], "optimizer=adamw", "optimizer.name: muon .*, adamw requested"),
        (TEXT, "data=tales", "data.name: text .*, tales requested"),
        ([*TEXT, "data.block_size=128"], "data=tales", "data.name: text .*, tales requested"),
        ([], "data=text", "data.name: tales .*, text requested"),
        (["data=wikipedia"], "data=text", "data.block_size: 512 .*, 256 requested"),
        (["experiment=course"], "experiment=t4", "optimizer.name: adamw .*, muon requested"),
        (["experiment=t4"], "experiment=course", "optimizer.name: muon .*, adamw requested"),
        (["model=tiny", *TEXT], "experiment=laptop_4gb", "model.n_embd: 256 .*, 512 requested"),
        (["experiment=small_text", TEXT[1]], "model=nano", "model.n_embd: 256 .*, 192 requested"),
        (["experiment=debug"], "model=tiny", "model.n_layer: 2 .*, 4 requested"),
        (["experiment=debug"], "experiment=t4", "model.n_layer: 2 .*, 12 requested"),
    ],
)
def test_another_run_is_refused(run: Sequence[str], now: str, refused: str) -> None:
    with pytest.raises(ValueError, match=refused.replace(".n", r"\.n")):
        resumed(started(*run), now)


@pytest.mark.parametrize(("before", "now"), itertools.permutations(choices("schedule"), 2))
def test_another_schedule_is_taken(before: str, now: str) -> None:
    run = started(f"schedule={before}", "schedule.warmup_steps=7")
    expected = started(f"schedule={now}", "schedule.warmup_steps=7").schedule
    assert resumed(run, f"schedule={now}").schedule == expected


def test_another_optimizer_is_refused_by_its_name_alone() -> None:
    with pytest.raises(ValueError, match="muon in the checkpoint, adamw requested") as refusal:
        resumed(started(), "optimizer=adamw")
    assert "head_" not in str(refusal.value)


def test_the_default_logger_is_taken() -> None:
    run = started("logger=csv")
    assert run.logger.csv
    assert not resumed(run, "logger=tensorboard").logger.csv


def test_a_choice_counts_until_the_next_one() -> None:
    """In later resumes, which see what was typed in all sessions before."""
    run = started("schedule=linear")
    for name in ("cosine", "power", "linear", "cosine", "linear"):
        run = replace(resumed(run, f"schedule={name}"), ckpt_path=None)
        assert run.schedule.name == name
        compose(run.overrides)  # which are chosen once each


def test_a_choice_of_an_experiment_need_not_be_kept_by_typing_it() -> None:
    """A new experiment sets where it runs, and what it leaves alone stays as it was typed."""
    run = started("experiment=t4", "optimizer=adamw", "trainer.max_steps=6000")
    now = resumed(run, "experiment=kaggle")
    assert now.optimizer == run.optimizer
    assert (now.trainer.devices, now.trainer.max_steps) == ("auto", 6000)
    kept = "experiment=kaggle: what was typed for this run before stays: trainer.max_steps=6000"
    assert [message.partition(" (")[0] for message in said(run, "experiment=kaggle")] == [kept]


@pytest.mark.parametrize(
    ("own", "choice", "alone"),
    [
        ("schedule.name=linear", "schedule=power", "schedule.name=power"),
        ("optimizer.lr=0.005", "optimizer=muon", "optimizer.lr=0.01"),
        ("model.n_layer=2", "model=nano", "model.n_layer=3"),
        ("data.tales_seed=3", "data=tales", "data.tales_seed=0"),
        ("trainer.max_steps=7", "trainer=default", "trainer.max_steps=360"),
    ],
)
def test_what_a_choice_leaves_as_it_was_typed_is_said(own: str, choice: str, alone: str) -> None:
    run = started(own)
    key = own.partition("=")[0]
    stays = f"{choice}: what was typed for this run before stays: {own} ({choice} alone: {alone})"
    assert [message.partition(". To")[0] for message in said(run, choice)] == [stays]
    assert said(run, choice, own) == []  # typed again
    assert said(started(own, choice), choice) == []  # as at the start
    group, name = key.split(".")
    before = getattr(getattr(run, group), name)
    assert getattr(getattr(resumed(run, choice), group), name) == before


def test_what_an_experiment_of_the_run_set_is_said_too() -> None:
    (message,) = said(started("experiment=debug"), "model=nano")
    assert "stays: model.n_layer=2, model.n_head=2, model.n_embd=64 (model=nano alone: " in message


def test_a_command_that_is_typed_again_says_nothing() -> None:
    typed = ["experiment=small_text", TEXT[1], "model.dropout=0.1", "schedule=cosine"]
    run = started(*typed)
    for again in (typed, typed[:1], typed[3:], [*typed, "model=tiny"]):
        assert said(run, *again) == []
        now = resumed(run, *again)
        assert now == replace(run, ckpt_path="last", overrides=now.overrides)


def test_a_resume_says_what_stays(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_tiny("trainer.max_steps=2")
    capsys.readouterr()
    train_tiny("ckpt_path=last", "trainer.max_steps=3", "trainer=default")
    error = capsys.readouterr().err
    assert error.count("trainer=default: what was typed for this run before stays: ") == 1
    assert "trainer.global_batch_size=4" in error
    assert "max_steps" not in error  # typed now
