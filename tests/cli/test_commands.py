"""Commands that are printed to be pasted into a shell."""

from __future__ import annotations

import random
import re
import shlex
import sys
from pathlib import Path

import pytest

from azllm_lightning.cli.overrides import (
    command,
    hydra_overrides,
    reject_flags,
)
from azllm_lightning.cli.shell import without_foreign_quotes


def test_a_command_to_paste_is_as_a_person_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
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


def windows_words(line: str) -> list[str]:
    """The words of a command line as programs on Windows split it."""
    words: list[str] = []
    word = ""
    is_open = is_quoted = False
    for slashes, sign in re.findall(r"(\\*)(\"{1,2}|[^\\]|$)", line):
        quotes = sign.startswith('"')
        word += slashes[: len(slashes) // 2] if quotes else slashes
        if quotes and len(slashes) % 2:
            word, sign = f'{word}"', sign[1:]
        if sign == '""' and is_quoted:
            word += '"'
        elif sign == '"' or sign == '""':
            is_quoted ^= len(sign) == 1
        elif (sign in " \t" or not sign) and not is_quoted:
            words += [word] if is_open or word else []
            word, is_open = "", False
            continue
        else:
            word += sign
        is_open = True
    return words


def test_a_command_to_paste_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For cmd.exe and PowerShell: quotes only where one of them needs them, and double ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    typed = ["data.path=C:\\Mənim mətnim\\", r"data.dir=D:\şəhər", "run_name=şah", "prompt=[a,b]"]
    assert command("prepare", hydra_overrides(typed)) == (
        r'python -m azllm_lightning.prepare "data.path=C:\Mənim mətnim\\" data.dir=D:\şəhər '
        "run_name=şah \"prompt=['a','b']\""
    )
    with pytest.raises(ValueError, match=r'write "data\.path=a b"$'):
        reject_flags(["--path=a b"], ["data.path"])
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab ə'\"\\,={}[]", k=draw.randint(0, 8)))
        quoted = hydra_overrides([f"{draw.choice(['prompt', 'data.path', 'run_name'])}={text}"])
        line = command("generate", quoted)
        assert hydra_overrides(windows_words(line)[3:]) == quoted, line


def test_quotes_of_another_shell_are_no_part_of_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cmd.exe passes single quotes on."""
    typed = ["'run_name=şah'", "prompt='Bir'", "'", "''", "seed=1"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert without_foreign_quotes(typed) == ["run_name=şah", "prompt='Bir'", "'", "''", "seed=1"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert without_foreign_quotes(typed) == typed


def test_a_command_to_paste_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab ə'\"\\,=${}[]", k=draw.randint(0, 8)))
        quoted = hydra_overrides([f"{draw.choice(['prompt', 'data.path', 'run_name'])}={text}"])
        assert hydra_overrides(shlex.split(command("generate", quoted))[3:]) == quoted
