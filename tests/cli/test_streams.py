"""Output that nobody reads any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from azllm_lightning.cli.entrance import EXIT_CLOSED, EXIT_DONE, EXIT_INTERRUPTED
from azllm_lightning.cli.overrides import command
from azllm_lightning.cli.streams import NAMES

PROGRAM = """
import sys
from azllm_lightning.cli import entrance

def run(values):
    {body}

class Settings:
    def ignored(self):
        return []

entrance.main("{verb}", run, lambda values, overrides: Settings())
"""
PRINTS = "print('x' * 100_000); print('y', flush=True); open('end', 'w').close()"


def program(verb: str, body: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(verb=verb, body=body)]


@pytest.mark.skipif(os.name != "posix", reason="needs its pipes")
@pytest.mark.parametrize(("verb", "code"), [("train", EXIT_DONE), ("runs", EXIT_CLOSED)])
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.thorough)])
def test_a_closed_pipe(verb: str, code: int, unbuffered: str, tmp_path: Path) -> None:
    """A training goes on to its end; a command that only prints ends without a message."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        program(verb, PRINTS),
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
        encoding="utf-8",
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")
    assert (tmp_path / "end").exists() == (verb == "train")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
@pytest.mark.parametrize(("verb", "code"), [("train", EXIT_DONE), ("runs", 2)])
def test_a_full_disk_under_the_output(verb: str, code: int, tmp_path: Path) -> None:
    """Losing a log is no reason to end a training; losing a result is an error."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program(verb, PRINTS),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=60,
            encoding="utf-8",
        )
    assert done.returncode == code
    assert ("the disk is full" in done.stderr) == (verb == "runs")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs its pipes")
@pytest.mark.parametrize("typed", [[], ["--help"], ["--version"], ["no_verb"]], ids=str)
def test_the_list_of_verbs_for_nobody_is_quiet(typed: list[str], tmp_path: Path) -> None:
    full = Path("/dev/full")
    for output in ["closed", *(["full"] if full.exists() else [])]:
        reader, writer = os.pipe()
        os.close(reader)
        descriptor = writer if output == "closed" else os.open(full, os.O_WRONLY)
        done = subprocess.run(
            [sys.executable, "-m", "azllm_lightning", *typed],
            stdout=descriptor,
            stderr=subprocess.PIPE,
            timeout=60,
            encoding="utf-8",
        )
        for each in {writer, descriptor}:
            os.close(each)
        unknown = typed == ["no_verb"]
        assert done.returncode == (2 if unknown else 0)
        assert len(done.stderr.splitlines()) == unknown, done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        "prepare",
        "runs",
        *(
            pytest.param(verb, marks=pytest.mark.thorough)
            for verb in ("evaluate", "export", "generate")
        ),
    ],
)
def test_ctrl_c_is_quiet(verb: str, tmp_path: Path) -> None:
    required = {"export": "out=x", "prepare": "data=tales"}
    done = subprocess.run(
        [*program(verb, "raise KeyboardInterrupt"), *required.get(verb, "").split()],
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("папка".encode("cp1251"), "папка"),
        ("kitabö.txt".encode("cp1254"), "kitabö.txt"),
        ("Bakı".encode(), "Bakı"),
    ],
)
def test_names_in_an_old_encoding_are_shown_as_letters(raw: bytes, shown: str) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    assert f"a {name}".encode("utf-8", NAMES).decode() == f"a {shown}"
    assert "ə\udcef".encode("ascii", NAMES) == b"??"


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are Unicode there")
def test_a_command_with_such_a_name_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "папка".encode("cp1251").decode("utf-8", "surrogateescape")
    line = command("train", [f"data.path={name}", "run_name=a b"])
    assert line.isascii()
    words = line.partition("azllm_lightning.train ")[2]
    done = subprocess.run(
        ["bash", "-c", f"printf '%s|' {words}"], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b"data.path=" + "папка".encode("cp1251") + b"|run_name=a b|"
