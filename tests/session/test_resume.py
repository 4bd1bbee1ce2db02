"""What a resume may change, and what would make it another run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import HERE, TRAIN, Probe, add_callback, assert_same_end, curve, final_state

from azllm_lightning.cli.entrance import Resumable, compose
from azllm_lightning.config.resume import check_same_run, resumed_config
from azllm_lightning.runs.checkpoint_files import step_files

Train = Callable[..., Path]


def assert_close(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-5, rel=0)


@pytest.mark.parametrize(("size", "accumulate"), [(2, 4), (1, 8), (8, 1)])
def test_another_micro_batch_keeps_the_windows_of_each_step(
    size: int, accumulate: int, train_tiny: Train, probe: Probe
) -> None:
    """The position is counted in windows; the accumulation follows, and the loss stays a mean over tokens."""
    overrides = ["trainer.accumulate_grad_batches=2"]
    straight = train_tiny(*overrides)
    order = dict(probe.windows)
    probe.signal(2, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides)
    probe.windows.clear()
    resumed = train_tiny("ckpt_path=last", f"data.batch_size={size}")
    assert probe.windows == {step: order[step] for step in range(3, 8)}
    assert final_state(resumed)["/TokenDataModule/global_batch_size"] == 8
    for tag in ("train_loss", "val_loss", "tokens_seen"):
        assert_close(curve(straight)[tag], curve(resumed)[tag])
    assert len(order[0]) == size * accumulate


def test_settings_younger_than_the_run_take_their_defaults() -> None:
    overrides = ["run_name=old", "trainer.max_steps=7", "model=tiny"]
    whole = compose(overrides)
    stored = compose(overrides)
    for group, key in [
        ("schedule", "decay_ratio"),
        ("callbacks", "health"),
        ("trainer", "compile"),
        ("logger", "tensorboard"),
    ]:
        del stored[group][key]
    resumed = resumed_config(
        {**stored, "overrides": overrides}, compose(["ckpt_path=last"]), ["ckpt_path=last"], compose
    )
    assert resumed.pop("ckpt_path") == "last"
    assert resumed == {
        **{k: v for k, v in whole.items() if k != "ckpt_path"},
        "logger": {},
    }  # a logger left out stays out


def test_two_processes_keep_the_windows_and_the_losses(
    train_tiny: Train, probe: Probe, tmp_path: Path
) -> None:
    """FACTS 1: DDP re-instantiates a loader or does not shard it, and saves the state of rank 0 only."""
    straight = train_tiny()
    probe.signal(3, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny()
    devices = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=2"]
    command = [
        *TRAIN,
        "run_name=tiny",
        "ckpt_path=last",
        *devices,
        *add_callback("Recorder", folder=tmp_path),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps: dict[int, list[list[int]]] = {}
    for rank in range(2):
        for line in (tmp_path / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            step, windows = json.loads(line)
            steps.setdefault(step, []).extend(windows)
    assert steps == {step: probe.windows[step] for step in range(4, 8)}
    resumed = straight.with_name("version_1")
    for tag in ("train_loss", "val_loss", "grad_norm", "tokens_seen"):
        assert_close(curve(straight)[tag], curve(resumed)[tag])


def test_a_longer_run_with_other_intervals_is_the_same_run(train_tiny: Train) -> None:
    """max_steps, intervals and workers may change; the schedule keeps the length settled at the first start."""
    straight = train_tiny(
        "trainer.max_steps=12", "schedule.total_steps=8", "schedule.min_lr_ratio=0.1"
    )
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


def test_steps_that_would_learn_nothing_are_warned_of(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    train_tiny("ckpt_path=last", "trainer.max_steps=9")
    assert "from step 8 on the learning rate is 0" in (told := capsys.readouterr()).err
    assert "trainer.max_steps=16 schedule.total_steps=16" in told.out
    folder = train_tiny("ckpt_path=last", "trainer.max_steps=10", "schedule.total_steps=10")
    assert "the learning rate is 0" not in capsys.readouterr().err
    assert curve(folder)["lr"][10] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.n_embd=64", "model.n_embd: 32 in the checkpoint, 64 asked for"),
        ("data.block_size=16", "data.block_size: 32 in the checkpoint, 16 asked for"),
        ("seed=7", "seed: 1234 in the checkpoint, 7 asked for"),
        ("data.tales_seed=1", r"other data \(fingerprint [0-9a-f]{32}\) than .* \([0-9a-f]{32}\)"),
        (
            "data.vocab_size=290",
            r"other data \(fingerprint [0-9a-f]{32}\) than .* \([0-9a-f]{32}\)",
        ),
        ("trainer.accumulate_grad_batches=3", "takes 4 windows a step.*accumulate_grad_batches=3"),
        ("data.batch_size=3", "takes 4 windows a step; data.batch_size=3 .* can be one of 1, 2, 4"),
    ],
)
def test_what_makes_another_run_is_refused_with_both_values(
    change: str, message: str, train_tiny: Train
) -> None:
    folder = train_tiny()
    told = {path.name: path.read_bytes() for path in (folder / ".hydra").iterdir()}
    with pytest.raises(ValueError, match=message):
        train_tiny("ckpt_path=last", change, "trainer.max_steps=10")
    assert {path.name: path.read_bytes() for path in (folder / ".hydra").iterdir()} == told
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


def test_another_optimizer_is_refused() -> None:
    config = {"seed": 1, "model": {}, "data": {"block_size": 1}, "optimizer": {"name": "adamw"}}
    with pytest.raises(
        ValueError, match=r"optimizer\.name: adamw in the checkpoint, muon asked for"
    ):
        check_same_run(config, {**config, "optimizer": {"name": "muon"}}, "run")


def test_a_resume_from_an_older_step_forks(train_tiny: Train) -> None:
    """One folder holds one curve: the newer steps of the first stay, the fork starts with the curve up to its step."""
    first = train_tiny("trainer.max_steps=12")
    before = {path: path.read_bytes() for path in first.rglob("*.*") if path.is_file()}
    fork = train_tiny(f"ckpt_path={first}/checkpoints/step_00000004.ckpt")
    assert fork.name == "version_1"
    assert_same_end(first, fork)
    assert {path: path.read_bytes() for path in before} == before
