from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from training_runs import Probe

from azllm_lightning import prove_resume
from azllm_lightning.callbacks.interrupt import BrokenRestore
from azllm_lightning.cli import entrance
from azllm_lightning.config.compose import compose
from azllm_lightning.session import child
from azllm_lightning.session.proof import proof_of
from azllm_lightning.train import train
from azllm_lightning.training.branches import Branches
from azllm_lightning.training.saving import PeriodicCheckpoint


class Killed(Exception):
    """Stands for a kill in the process of the tests."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sessions run in this process, which saves seconds; gives the settings of each so far."""
    sessions: list[list[str]] = []

    def kill(*args: object) -> None:
        raise Killed

    def train_here(folder: Path, name: str, settings: list[str], ends_early: bool = False) -> None:
        typed = [*settings, f"run_name={name}"]
        sessions.append(typed)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            try:
                train(compose(typed))
            except (entrance.Resumable, Killed):
                assert ends_early

    monkeypatch.setattr(child, "train_in_child", train_here)
    monkeypatch.setattr("azllm_lightning.callbacks.interrupt.os.kill", kill)
    return sessions


def test_an_exact_resume_passes(
    quick: list[list[str]], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prove_resume.prove_resume(compose(tiny, "prove_resume"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS  8 steps uninterrupted")
    assert [("ckpt_path=last" in settings) for settings in quick] == [
        *(False, False),  # baseline, again
        *(False, True),  # stopped
        *(False, True),  # killed
    ]


@pytest.mark.slow
def test_an_exact_resume_with_branches_passes(
    quick: list[list[str]], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prove_resume.prove_resume(compose([*tiny, "schedule.branches=2"], "prove_resume"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS  12 steps uninterrupted")


@pytest.mark.thorough
def test_branches_are_part_of_the_proof(
    quick: list[list[str]],
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = Branches.load

    def forgetful(self: Branches, checkpoint: dict[str, Any], *args: Any) -> None:
        checkpoint.get("branches", {})["present"] = {}
        load(self, checkpoint, *args)

    monkeypatch.setattr(Branches, "load", forgetful)
    with pytest.raises(SystemExit, match="1"):
        prove_resume.prove_resume(compose([*tiny, "schedule.branches=2"], "prove_resume"))
    assert "FAIL  stopped: step 12:" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.parametrize("label", ["again", "stopped"])
def test_what_differs_first_is_named(
    label: str,
    quick: list[list[str]],
    probe: Probe,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A loss that is another in each run, or in resumed sessions only."""

    def factor(step: int, batch: object) -> float:
        resumed = "ckpt_path=last" in quick[-1]
        return 1 + 0.01 * (len(quick) if label == "again" else resumed)

    probe.factor = factor
    with pytest.raises(SystemExit, match="1"):
        prove_resume.prove_resume(compose(tiny, "prove_resume"))
    printed = capsys.readouterr().out
    step = {"again": 1, "stopped": 5}[label]
    pattern = rf"FAIL  {label}: step {step}: \w+ is .* in baseline, .* in {label}"
    assert re.search(pattern, printed)
    assert ("trainer.deterministic=true" in printed) == (label == "again")


@pytest.mark.thorough
def test_a_restore_broken_on_purpose_is_noticed(
    quick: list[list[str]],
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the callback that breaks it does nothing."""
    config = compose([*tiny, "control=true"], "prove_resume")
    prove_resume.prove_resume(config)
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS  control: a restore without")
    assert not any("control=true" in settings for settings in quick)

    monkeypatch.setattr(BrokenRestore, "on_train_start", lambda *args: None)
    with pytest.raises(SystemExit, match="1"):
        prove_resume.prove_resume(config)
    assert "FAIL  control" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_stop_that_saves_nothing_is_noticed(
    quick: list[list[str]],
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resuming from an earlier step would give the same result. What was typed must not save at
    each step.
    """
    save = PeriodicCheckpoint.save

    def at_intervals_only(self: PeriodicCheckpoint, trainer: Trainer) -> None:
        if trainer.global_step % 3 == 0 or trainer.global_step == trainer.max_steps:
            save(self, trainer)

    monkeypatch.setattr(PeriodicCheckpoint, "save", at_intervals_only)
    typed = [*tiny, "trainer.checkpoint_every_minutes=1e-9"]
    with pytest.raises(SystemExit, match="1"):
        prove_resume.prove_resume(compose(typed, "prove_resume"))
    assert "FAIL  stopped: stopped after step 4, but the newest" in capsys.readouterr().out


def test_models_and_tokenizer_have_places_that_hold_in_any_folder(
    tiny: list[str], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(folder: Path, name: str, settings: list[str]) -> None:
        assert compose(settings).data.tokenizer == str(tiny_run.absolute())
        assert compose(settings).init_from == str(tiny_run.absolute())
        assert compose(child.resuming(settings)).init_from is None
        raise Started

    monkeypatch.setattr(child, "train_in_child", start)
    typed = [f"data.tokenizer={tiny_run}", f"++init_from={tiny_run}"]
    with pytest.raises(Started):
        prove_resume.prove_resume(compose([*tiny, *typed], "prove_resume"))


def test_settings_that_it_replaces_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Those of its short runs, all of them; other settings hold."""
    replaced = [text.partition("=")[0] for text in proof_of(1).settings]
    assert {"trainer.max_steps", "logs_dir"} <= set(replaced)
    replaced += ["run_name", "data.val_windows"]
    values = {"run_name": "mənim", "logs_dir": "runs", "trainer.deadline": "1h"}
    typed = [f"{key}={values.get(key, 7)}" for key in replaced]
    compose([*typed, "trainer.gradient_clip_val=0.5"], "prove_resume")
    names = ", ".join(sorted(replaced))
    assert f"{names}: no effect, since prove_resume sets it for its short runs" in caplog.text
    caplog.clear()
    compose(["trainer.gradient_clip_val=0.5"], "prove_resume")
    assert not caplog.text


def test_a_run_that_fails_is_reported(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ckpt_path=last: prove_resume trains its own runs"):
        prove_resume.prove_resume(compose([*tiny, "ckpt_path=last"], "prove_resume"))
    settings = [*tiny, "trainer.devices=0"]
    message = r"the run baseline ended with exit code 2:\n(.*\n)*.*trainer.devices=0"
    with pytest.raises(ValueError, match=message):
        child.train_in_child(tmp_path, "baseline", settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [[], ["model.dropout=0.1", "trainer.devices=2", "trainer.strategy=ddp"]]
)
def test_the_command(
    settings: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny, *settings]
    prove_resume.prove_resume(compose(overrides, "prove_resume"))
    assert "PASS" in capsys.readouterr().out
