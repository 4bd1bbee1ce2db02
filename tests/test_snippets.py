"""The code blocks of README and docs do what they say: Python is run, and so are the commands."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_readme import ROOT, all_commands
from training_runs import tiny_overrides

import azllm_lightning
from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.config.compose import compose
from azllm_lightning.train import train

DOCS = ROOT / "docs" / "en"

ELSEWHERE = re.compile(r"hf://|/content/|=colab|=kaggle|devices=2|^chat|^prove_resume")
"""What needs a network, a drive or a second GPU, or has a test of its own."""

SMALL = [text for text in tiny_overrides() if not text.startswith(("run_name=", "data.tales"))]
TALES = ["data=tales", "data.tales_bytes=60_000"]
RUNS = "tales kitablar corpus A B NAME"


def python_of(page: str) -> str:
    """The Python block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


def test_the_page_on_the_language_gives_true_answers() -> None:
    imports, examples = python_of("language.md").split("\n\n")
    names: dict[str, object] = {}
    exec(imports, names)
    found = []
    for line in examples.splitlines():
        expression, answer = line.split("  # ")
        value = eval(expression, names)
        if answer.startswith("three "):
            assert isinstance(value, list)
            assert len(value) == 3
        else:
            assert str(value) == re.split(r"[ :]", answer)[0]
        found.append(value)
    assert len(found) >= 4


@pytest.mark.slow
def test_the_page_on_python_runs(
    tiny: list[str],
    train_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib").use("agg")
    train_tiny("run_name=tales")

    def small(overrides: list[str]) -> object:
        return compose([*tiny, *overrides, "trainer.max_steps=8"])

    monkeypatch.setattr(azllm_lightning, "compose", small, raising=False)
    capsys.readouterr()
    names: dict[str, object] = {}
    exec(python_of("python.md"), names)
    printed = capsys.readouterr().out
    assert "Bir gün" in printed
    assert "Bakı" in printed
    columns = names["compared"].columns  # type: ignore[attr-defined]
    assert list(columns) == ["mənim/version_0", "tales/version_0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the texts, runs and files that the commands of the pages name."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AZLLM_DATA_DIR", str(folder / "cache"))
        tales = list(write_tales(60_000, 0))
        for name in ("kitablar", "TEXT", "web"):
            Path(name).mkdir()
            Path(name, "a.txt").write_text("\n\n".join(tales), encoding="utf-8")
        for name in ("yeni.txt", "kitab.txt"):
            shutil.copy("kitablar/a.txt", name)
        Path("flores.txt").write_text("\n".join(tales[:20]), encoding="utf-8")
        rows = [{"text": tale, "source": f"s{i % 2}"} for i, tale in enumerate(tales)]
        Path("az_open.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for name in RUNS.split():
            text = ["data=text", "data.path=kitablar"] if name == "kitablar" else TALES
            train(compose([*text, *SMALL, f"run_name={name}"]))
        shutil.copy("lightning_logs/tales/version_0/checkpoints/best.ckpt", "moved.ckpt")
        yield folder


def quick(command: list[str]) -> list[str]:
    """The command with the file that FILE stands for, and a model and a text that are tiny."""
    verb, *typed = [text.replace("=FILE", "=moved.ckpt") for text in command]
    has_text = any(re.match(r"data=|data\.path=|experiment=(small_text|debug)", t) for t in typed)
    tales = [] if has_text else TALES
    more = {
        "train": ["trainer.max_steps=12"] if "ckpt_path=last" in typed else [*tales, *SMALL],
        "prepare": [text for text in SMALL if text.startswith("data.")],
        "generate": ["max_new_tokens=4"],
        "check": [*TALES, *SMALL, "minutes=0.2"],
        "plan": ["trainer.accelerator=cpu"],
    }
    return [verb, *typed, *more.get(verb, [])]


def run(verb: str, *typed: str) -> int:
    """`python -m azllm_lightning.VERB TYPED` in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [verb, *typed])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        try:
            runpy.run_module(f"azllm_lightning.{verb}", run_name="__main__", alter_sys=True)
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
@pytest.mark.xdist_group("commands")
@pytest.mark.parametrize(
    "command", [one for one in all_commands() if not ELSEWHERE.search(" ".join(one))], ids=" ".join
)
def test_a_command_of_the_pages_runs(
    command: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("AZLLM_DATA_DIR", str(home / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    shutil.rmtree("FOLDER", ignore_errors=True)  # of another command
    if "hf=another_model" in command and not Path("another_model").exists():
        assert run("export", "run_name=tales", "out=another_model") == 0
    if "check=check.json" in command and not Path("check.json").exists():
        assert run(*quick(["check"])) == 0
    for name in ("wandb", "trackio"):
        if f"logger={name}" in command:
            pytest.importorskip(name)
    assert run(*quick(command)) == 0
