"""What a resume may change, and what would make it another run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import (
    Probe,
    Uninterrupted,
    add_callback,
    assert_close,
    assert_same_end,
    curve,
    final_state,
    start,
)

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.messages import LANGUAGES
from azllm_lightning.config.compose import compose
from azllm_lightning.config.optimizer import CHOICES
from azllm_lightning.config.resume import resumed_config
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.checkpoint_files import step_files

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]


@pytest.mark.parametrize("size", [1, 4])
def test_another_micro_batch_keeps_the_windows_of_each_step(
    size: int, uninterrupted: Straight, train_tiny: Train, probe: Probe
) -> None:
    """The accumulation follows, and the loss stays a mean over tokens."""
    straight = uninterrupted("trainer.micro_batch_size=2")
    probe.signal(2, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny("trainer.micro_batch_size=2")
    resumed = train_tiny("ckpt_path=last", f"trainer.micro_batch_size={size}")
    assert probe.windows == straight.windows
    assert final_state(resumed)["/TokenDataModule/global_batch_size"] == 4
    for tag in ("train_loss", "val_loss", "tokens_seen"):
        assert_close(curve(straight.folder)[tag], curve(resumed)[tag])


def settled(config: RunConfig) -> RunConfig:
    """`config` with the complete shape that a checkpoint's has."""
    return replace(config, model=config.model.for_data(vocab_size=300, block_size=32, eos_id=0))


def test_settings_younger_than_the_run_get_their_defaults() -> None:
    typed = settled(compose(["run_name=old", "trainer.max_steps=7", "model=tiny"]))
    stored = typed.to_mapping()
    for group, key in [
        ("schedule", "decay_ratio"),
        ("callbacks", "health"),
        ("trainer", "compile"),
        ("data", "num_workers"),
    ]:
        del stored[group][key]
    resumed = resumed_config(stored, compose(["ckpt_path=last"]), "step_00000001.ckpt")
    assert resumed == replace(typed, ckpt_path="last", overrides=resumed.overrides)
    assert resumed.overrides == (*typed.overrides, "ckpt_path=last")


def test_a_setting_that_is_typed_again_is_stored_once() -> None:
    typed = settled(compose(["model=tiny", "trainer.max_steps=7", "seed=3", "optimizer.lr=0.01"]))
    again = ["trainer.max_steps=9", "ckpt_path=last", "optimizer.lr=0.02"]
    resumed = resumed_config(typed.to_mapping(), compose(again), "step_00000001.ckpt")
    assert resumed.overrides == ("model=tiny", "seed=3", *again)


def test_an_experiment_that_is_typed_again_adds_nothing_to_an_older_run() -> None:
    typed = settled(compose(["experiment=small_text", "data.path=here.txt"]))
    stored = typed.to_mapping()
    del stored["data"]["token_replacement"]  # the run began before this setting
    again = compose(["experiment=small_text", "ckpt_path=last"])
    resumed = resumed_config(stored, again, "step_00000001.ckpt")
    assert typed.data.token_replacement > 0
    assert resumed.data == replace(typed.data, token_replacement=0.0)


@pytest.mark.parametrize("again", [[], ["model=tiny"]])
def test_a_run_with_a_tied_head_keeps_it(again: list[str]) -> None:
    """Runs of models that had one by default did not type it."""
    typed = settled(compose(["run_name=old", "model=tiny"]))
    stored = replace(typed, model=replace(typed.model, tie_embeddings=True)).to_mapping()
    typed_now = compose(["ckpt_path=last", *again])
    assert typed_now.model.tie_embeddings is False
    assert resumed_config(stored, typed_now, "step_00000001.ckpt").model.tie_embeddings is True


def test_what_is_typed_belongs_to_the_run_and_not_to_the_defaults() -> None:
    """By default, data=tales reads no text; but this run has a text, which was moved."""
    typed = compose(["+experiment=small_text", "data.path=here.txt", "data.vocab_size=500"])
    moved = compose(["ckpt_path=last", "data.path=there.txt"])
    stored = settled(typed).to_mapping()
    resumed = resumed_config(stored, moved, "step_00000001.ckpt")
    assert resumed.data == replace(typed.data, path="there.txt")
    with pytest.raises(ValueError, match=r"data\.path=there\.txt is not read"):
        resumed_config(settled(compose()).to_mapping(), moved, "step_00000001.ckpt")


@pytest.mark.slow
def test_two_processes_keep_the_windows_and_the_losses(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, tmp_path: Path
) -> None:
    """9 validation windows are 5 for one process and 4 for the other; each counts once.

    Under DDP, Lightning saves the loader's state of rank 0 only, and shards no loader of its own.
    """
    straight = uninterrupted("data.val_windows=9")
    probe.signal(3, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny("data.val_windows=9")
    devices = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.micro_batch_size=2"]
    recorder = add_callback("Recorder", folder=tmp_path)
    process = start(["run_name=tiny", "ckpt_path=last", *devices, *recorder], tmp_path)
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text(encoding="utf-8")
    steps: dict[int, list[list[int]]] = {}
    for rank in range(2):
        for line in (tmp_path / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            step, windows = json.loads(line)
            steps.setdefault(step, []).extend(windows)
    assert steps == {step: straight.windows[step] for step in range(4, 8)}
    resumed = Path("lightning_logs/tiny/version_0")
    for tag in ("train_loss", "val_loss", "val_bpb", "tokens_seen", "grad_norm"):
        assert_close(curve(straight.folder)[tag], curve(resumed)[tag])


@pytest.mark.thorough
def test_a_longer_run_with_other_intervals_is_the_same_run(
    uninterrupted: Straight, train_tiny: Train
) -> None:
    """max_steps, intervals and workers may change; the schedule keeps its length."""
    straight = uninterrupted(
        "trainer.max_steps=12", "schedule.total_steps=8", "schedule.min_lr_ratio=0.1"
    ).folder
    train_tiny(
        "trainer.val_every_steps=3", "trainer.log_every_steps=5", "schedule.min_lr_ratio=0.1"
    )
    changes = [
        "trainer.val_every_steps=4",
        "trainer.log_every_steps=1",
        "trainer.checkpoint_every_steps=1",
    ]
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=12", "data.num_workers=1", *changes)
    ours, theirs = final_state(straight), final_state(resumed)
    assert all(str(value) == str(theirs[path]) for path, value in ours.items())
    assert [step for step, _ in step_files(resumed / "checkpoints")] == [12, 11, 10]
    assert list(curve(resumed)["val_loss"]) == [0, 3, 6, 8, 12]
    assert list(curve(resumed)["train_loss"]) == [1, 5, 8, 9, 10, 11, 12]


def test_a_resume_with_a_learning_rate_of_zero_is_warned_of(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    train_tiny("ckpt_path=last", "trainer.max_steps=9")
    output = capsys.readouterr()
    assert "from step 8 on the learning rate is 0" in output.err
    assert "trainer.max_steps=16 schedule.total_steps=16" in output.out
    folder = train_tiny("ckpt_path=last", "trainer.max_steps=10", "schedule.total_steps=10")
    assert "the learning rate is 0" not in capsys.readouterr().err
    assert curve(folder)["lr"][10] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.n_embd=48", r"model\.n_embd: 32 in the checkpoint, 48 requested"),
        ("data.block_size=16", r"data\.block_size: 32 in the checkpoint, 16 requested"),
        ("data.val_windows=2", r"data\.val_windows: \d+ in the checkpoint, 2 requested"),
        ("seed=7", "seed: 1234 in the checkpoint, 7 requested"),
        ("optimizer=adamw", r"optimizer\.name: muon in the checkpoint, adamw requested"),
        (
            "trainer.global_batch_size=8",
            r"trainer\.global_batch_size: 4 in the checkpoint, 8 requested",
        ),
        ("trainer.micro_batch_size=3", r"micro_batch_size=3 does not divide the 4 .*: 1, 2, 4"),
        (
            "data.tales_seed=1",
            r"different data \(.*Omit data\.tales_seed ",
        ),
        ("data.vocab_size=290", r"different data \(.*Omit data\.vocab_size "),
    ],
)
def test_what_would_make_another_run_is_refused_with_both_values(
    change: str, message: str, uninterrupted: Straight, train_tiny: Train
) -> None:
    folder = uninterrupted().folder
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        train_tiny(f"ckpt_path={folder}", change, "trainer.max_steps=10")
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert not Path("lightning_logs").exists()


def test_a_resume_from_an_older_step_forks(train_tiny: Train) -> None:
    """One folder holds one curve: the newer steps stay where they are, and the fork starts with the
    curve up to its step.
    """
    first = train_tiny("trainer.max_steps=12")
    before = {path: path.read_bytes() for path in first.rglob("*.*") if path.is_file()}
    fork = train_tiny(f"ckpt_path={first}/checkpoints/step_00000004.ckpt")
    assert fork.name == "version_1"
    assert_same_end(first, fork)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("optimizer", CHOICES)
def test_changed_settings_of_the_optimizer_take_effect(optimizer: str, train_tiny: Train) -> None:
    train_tiny(f"optimizer={optimizer}", "trainer.max_steps=4")
    changed = ["optimizer.betas=[0.5,0.6]", "optimizer.eps=1e-6", "optimizer.weight_decay=0.3"]
    if optimizer == "muon":
        changed.append("optimizer.head_eps=1e-3")
    folder = train_tiny("ckpt_path=last", "trainer.max_steps=5", *changed)
    _, newest = step_files(folder / "checkpoints")[0]
    groups = torch.load(newest, weights_only=True)["optimizer_states"][0]["param_groups"]
    adam = [group for group in groups if group.get("kind") != "muon"]
    assert {tuple(group["betas"]) for group in adam} == {(0.5, 0.6)}
    assert [group["eps"] for group in adam][:2] == [1e-6] * 2  # muon's third is the head's own
    assert 0.3 in [group["weight_decay"] for group in groups]
    if optimizer == "muon":
        assert adam[-1]["eps"] == 1e-3


def test_whether_the_head_has_settings_of_its_own_cannot_change(train_tiny: Train) -> None:
    shared = ["optimizer.head_lr=null", "optimizer.head_eps=null"]
    train_tiny("trainer.max_steps=4")
    asked = r"optimizer\.head_lr: 0\.02 .*, None requested\n.*optimizer\.head_eps: 1e-05 .*, None"
    with pytest.raises(ValueError, match=asked):
        train_tiny("ckpt_path=last", "trainer.max_steps=5", *shared)
    train_tiny("trainer.max_steps=4", *shared)
    with pytest.raises(ValueError, match=r"optimizer\.head_lr: None .*, 0\.02 requested"):
        train_tiny("ckpt_path=last", "trainer.max_steps=5", "optimizer.head_lr=0.02")


def test_a_finished_run_says_that_it_is_finished(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny("trainer.max_steps=2")
    capsys.readouterr()
    train_tiny("ckpt_path=last")
    assert "already at its last step, 2" in capsys.readouterr().err


@pytest.mark.parametrize("own", LANGUAGES)
def test_the_language_is_as_typed_then_of_the_environment_then_of_the_run(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "az" if own == "en" else "en"
    stored = compose([f"lang={own}"]).to_mapping()

    def language_of(*typed: str) -> str:
        return resumed_config(stored, compose(["ckpt_path=last", *typed]), "a.ckpt").lang

    assert language_of() == own
    assert language_of(f"lang={other}") == other
    monkeypatch.setenv("AZLLM_LANG", other)
    assert language_of() == other
    assert language_of(f"lang={own}") == own


def test_a_resume_is_refused_in_the_language_of_its_run(
    tiny: list[str],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command(*tiny, "trainer.max_steps=1", "lang=az") == 0
    refused = ["run_name=tiny", "ckpt_path=last", "data.block_size=64"]
    capsys.readouterr()
    for variable, words in ((None, "xəta: "), ("en", "error: ")):
        if variable is not None:
            monkeypatch.setenv("AZLLM_LANG", variable)
        assert command(*refused) == 2
        assert capsys.readouterr().err.startswith(words)
