"""Commands that are printed to be pasted into a shell."""

from __future__ import annotations

import random
import shlex
import sys
from pathlib import Path

import pytest

from azllm_lightning.cli.overrides import command, hydra_overrides


def test_a_command_to_paste_is_as_a_person_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["data=text", r"data.path=C:\Mənim mətnim", "run_name=şah", "data.block_size=32"]
    shown = command("prepare", hydra_overrides(typed))
    expected = (
        r"python -m azllm_lightning.prepare data=text 'data.path=C:\Mənim mətnim' 'run_name=şah' "
        "data.block_size=32"
    )
    assert shown == expected
    # As after `make train`, where no environment is active and plain python would be another.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert command("train", []) == f"{Path('.venv/bin/python')} -m azllm_lightning.train"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert command("train", []) == "python -m azllm_lightning.train"


def test_a_command_to_paste_means_the_same() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab ə'\"\\,=${}[]", k=draw.randint(0, 8)))
        quoted = hydra_overrides([f"{draw.choice(['prompt', 'data.path', 'run_name'])}={text}"])
        assert hydra_overrides(shlex.split(command("generate", quoted))[3:]) == quoted
