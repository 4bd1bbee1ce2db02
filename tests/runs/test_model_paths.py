"""Which model a path stands for, and which one was meant by a path that stands for none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from azllm_lightning.cli.messages import and_then
from azllm_lightning.config.compose import compose
from azllm_lightning.export import export
from azllm_lightning.generate import generate
from azllm_lightning.runs.model_paths import find_model, read_model, read_tokenizer
from azllm_lightning.train import train

NEWEST = Path("lightning_logs", "tiny", "version_1")
"""Of three versions, the newest one with a checkpoint."""

MISTAKEN = [
    "lightning_logs/tiny",
    "lightning_logs/tiny/version_2",
    "lightning_logs/tinyy",
    "tiny",
    "tinyy",
    "tiny/version_1",
]
"""What people type for NEWEST."""


@pytest.fixture
def versions(tiny_run: Path) -> None:
    """Versions 0 to 2 of the run `tiny`, the last one without checkpoints."""
    shutil.copytree(tiny_run, NEWEST)
    (NEWEST.with_name("version_2") / "checkpoints").mkdir(parents=True)


@pytest.mark.parametrize("typed", MISTAKEN)
@pytest.mark.parametrize(
    ("key", "resume"),
    [("ckpt_path", False), ("ckpt_path", True), ("init_from", False), ("teachers", False)],
)
def test_the_newest_complete_version_is_proposed(
    key: str, resume: bool, typed: str, versions: None
) -> None:
    with pytest.raises(ValueError, match=f"^{key}={typed}: no ") as told:
        find_model(key, typed, resume=resume)
    assert str(told.value).endswith(f"; did you mean {NEWEST}?")
    assert find_model(key, str(NEWEST), resume=resume).is_relative_to(NEWEST)


def test_a_version_whose_file_is_damaged_is_not_proposed(versions: None) -> None:
    best = NEWEST / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"did you mean .*version_0\?"):
        find_model("init_from", "tiny")
    with pytest.raises(ValueError, match=r"did you mean .*version_1\?"):
        find_model("ckpt_path", "tiny", resume=True)  # its full states are complete
    for read in (read_model, read_tokenizer):
        with pytest.raises(ValueError, match=r"^init_from: .*best\.ckpt is not a complete"):
            read("init_from", str(NEWEST))


def test_only_a_model_is_proposed(tiny: list[str]) -> None:
    Path("kitab.txt").write_text("Bakı", encoding="utf-8")
    Path("kitablar").mkdir()
    with pytest.raises(ValueError, match=r"an exported folder$"):
        find_model("init_from", "kitab")


@pytest.mark.parametrize(
    "use",
    [
        lambda tiny, logs: train(compose([*tiny, logs, "run_name=b", "init_from=tinyy"])),
        lambda tiny, logs: train(compose([*tiny, logs, "run_name=b", "teachers=tinyy"])),
        lambda tiny, logs: train(compose([logs, "ckpt_path=tiny"])),
        lambda tiny, logs: generate(compose([logs, "ckpt_path=tiny", "prompt=a"], "generate")),
        lambda tiny, logs: export(compose([logs, "ckpt_path=tiny", "out=b"], "export")),
    ],
    ids=["init_from", "teachers", "resume", "generate", "export"],
)
def test_every_command_looks_in_logs_dir(
    use: Callable[[list[str], str], object], tiny: list[str], versions: None
) -> None:
    shutil.move("lightning_logs", "təlimlər")
    meant = Path("təlimlər", *NEWEST.parts[1:])
    with pytest.raises(ValueError, match=re.escape(f"did you mean {meant}?")):
        use(tiny, "logs_dir=təlimlər")
    assert not Path("təlimlər", "b").exists()


def test_a_sentence_follows_a_question_as_it_follows_a_statement() -> None:
    assert and_then("No such file", "Give one") == "No such file. Give one"
    assert and_then("Did you mean a?", "Give one") == "Did you mean a? Give one"
