"""The user's own objects, which no checkpoint brings: a resume has them if they are typed again."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from training_runs import Probe, add_callback

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.resume import own_entries

Train = Callable[..., Path]


def typed_in(command: str) -> list[str]:
    """What a command of ours sets."""
    return shlex.split(command.partition("azllm_lightning.train ")[2])


def test_they_are_found_among_what_was_typed() -> None:
    own = [
        "+callbacks.mine._target_=my.Callback",
        "+callbacks.mine.path=data.txt",
        "+logger.other={_target_: my.Logger, name: a}",
        "callbacks.mine.path=kitab.txt",
    ]
    others = ["callbacks.early_stopping=true", "logger.csv=true", "model=tiny", "run_name=a"]
    assert own_entries([*own[:2], *others, *own[2:]]) == own
    assert own_entries(others) == []


def test_the_commands_that_go_on_have_them(
    train_tiny: Train, probe: Probe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = add_callback("Recorder", folder=tmp_path)
    probe.signal(4, signal.SIGTERM)
    with pytest.raises(Resumable) as stop:
        train_tiny(*own, "callbacks.early_stopping=false")
    typed = typed_in(stop.value.command)
    assert typed == ["run_name=tiny", "ckpt_path=last", *own]
    capsys.readouterr()
    train_tiny(*typed)
    captured = capsys.readouterr()
    assert "not part of the run" not in captured.err
    (longer,) = [line for line in captured.out.splitlines() if "trainer.max_steps=16" in line]
    assert typed_in(longer)[-len(own) :] == own


def test_a_resume_without_them_says_so_once(
    train_tiny: Train, probe: Probe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.signal(4, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*add_callback("Recorder", folder=tmp_path), "callbacks.early_stopping=false")
    capsys.readouterr()
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable) as stop:
        train_tiny("ckpt_path=last")
    assert "callbacks.recorder: not part of the run" in capsys.readouterr().err
    assert typed_in(stop.value.command) == ["run_name=tiny", "ckpt_path=last"]
    folder = train_tiny("ckpt_path=last")
    assert "not part of the run" not in capsys.readouterr().err
    stored = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    assert own_entries(stored["overrides"]) == []
    assert "callbacks.early_stopping=false" in stored["overrides"]
