"""A path or a choice that does not exist is answered with the one that was meant."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from azllm_lightning.cli.composition import composed_mapping, conf_dir, explanation, group_choices
from azllm_lightning.cli.messages import use_language
from azllm_lightning.cli.misspelled import nearest, with_near_path
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.data.files import find_files
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import checkpoint_of
from azllm_lightning.inference.pair_files import read_pairs
from azllm_lightning.machine.planner import KEYS, LONGEST_REPORT, read_check
from azllm_lightning.runs.folder import claim, find_checkpoint
from azllm_lightning.runs.model_paths import find_model

GROUPS = sorted(
    path.name
    for path in conf_dir().iterdir()
    if path.is_dir() and path.name not in ("hydra", "__pycache__")
)


@pytest.mark.parametrize(
    ("typed", "names", "meant"),
    [
        ("kitabar", ["kitab.txt", "şəkil.png"], "kitab.txt"),
        ("kitablar.txt", ["kitablar", "oxu.txt"], "kitablar"),
        ("metnler.jsonl", ["mətnlər.jsonl", "menbe.csv"], "mətnlər.jsonl"),
        ("KİTAB.TXT", ["kitab.txt"], "kitab.txt"),
        ("kitab", ["tamam.başqa"], None),
        ("kitab", [], None),
    ],
)
def test_the_nearest_name(typed: str, names: list[str], meant: str | None) -> None:
    assert nearest(typed, names) == meant


@pytest.mark.parametrize("choice", ["smal_text", "small-text", "Small_Text", "smalltext"])
def test_a_misspelled_experiment_is_recognized(choice: str) -> None:
    with pytest.raises(ValueError, match="did you mean small_text"):
        composed_mapping("train", [f"experiment={choice}"])


@pytest.mark.parametrize("group", GROUPS)
def test_a_misspelled_choice_of_every_group_is_recognized(group: str) -> None:
    for file in sorted(conf_dir().glob(f"{group}/*.yaml")):
        typed = file.stem + file.stem[-1]
        with pytest.raises(ValueError, match=f"did you mean {file.stem}\\? Available: "):
            composed_mapping("train", [f"{group}={typed}"])


def test_an_unlike_choice_lists_the_others() -> None:
    with pytest.raises(ValueError, match='unknown model "qqq"; available: '):
        composed_mapping("train", ["model=qqq"])


@pytest.mark.thorough
@pytest.mark.parametrize("verb", [file.stem for file in sorted(conf_dir().glob("*.yaml"))])
@pytest.mark.parametrize("setting", ["experiment=small_text", "model=tiny", "data=text"])
def test_a_choice_that_a_verb_lacks_names_the_verbs_that_have_it(verb: str, setting: str) -> None:
    group = setting.partition("=")[0]
    having = {"experiment": "trainer", "model": "model", "data": "data"}[group]
    if having in group_choices(verb):
        composed_mapping(verb, [setting])
        return
    with pytest.raises(ValueError, match=f"^{group}=.* is for check, plan, .*train") as caught:
        composed_mapping(verb, [setting])
    assert verb in str(caught.value)


READERS = {
    "data.path": lambda path: find_files([path], "data.path"),
    "pairs": read_pairs,
    "tokenizer": Tokenizer.from_file,
    "load": lambda path: checkpoint_of(Path(path)),
    "init_from": lambda path: find_model("init_from", path),
    "ckpt_path": lambda path: find_checkpoint(path, None, Path("lightning_logs")),
    "check": lambda path: read_check(Path(path)),
}


KINDS = {
    "data.path": ".txt",
    "pairs": ".tsv",
    "tokenizer": ".json",
    "load": ".ckpt",
    "init_from": ".ckpt",
    "ckpt_path": ".ckpt",
    "check": ".json",
}
"""The ending of what each of them reads."""

TEXTS = {".txt", ".jsonl", ".json", ".tsv"}
TAKEN = {reader: {own} for reader, own in KINDS.items()} | {"data.path": TEXTS, "pairs": TEXTS}
"""Endings of files that each may have meant."""

CHECK = json.dumps(dict.fromkeys(KEYS))
"""The text of every file: a check.json has to be one."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("typed", "meant"),
    [("kitabar", "kitab"), ("qovlug/kitab", "qovluq/kitab"), ("yox", None)],
)
def test_every_path_that_is_missing_names_the_one_meant(
    reader: str, typed: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = KINDS[reader]
    typed, meant = typed + own, meant and meant + own
    Path("qovluq").mkdir()
    for name in ("kitab", "qovluq/kitab"):
        Path(name + own).write_text(CHECK, encoding="utf-8")
    for folder in ("", f"{tmp_path}/"):
        with pytest.raises(ValueError, match=re.escape(typed)) as missing:
            READERS[reader](folder + typed)
        message = str(missing.value)
        assert "Errno" not in message
        assert ("did you mean" in message) == (meant is not None)
        if meant is not None:
            assert f"did you mean {Path(folder + meant)}?" in message


@pytest.mark.parametrize("reader", KINDS)
def test_a_file_of_another_kind_is_not_proposed(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in {".pdf", ".png", ".jsonl", *KINDS.values()} - TAKEN[reader]:
        Path(f"kitab{ending}").write_text("Bakı", encoding="utf-8")
    with pytest.raises(ValueError, match="kitabar") as missing:
        READERS[reader](f"kitabar{KINDS[reader]}")
    assert "did you mean" not in str(missing.value)


def test_only_a_report_of_check_is_proposed_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checks.json").write_text("{}", encoding="utf-8")  # nearer, but not one
    Path("check_gpu.json").write_text(CHECK, encoding="utf-8")
    with pytest.raises(ValueError, match=r"did you mean check_gpu\.json\?"):
        read_check(Path("check.json"))
    Path("check_gpu.json").write_text(CHECK + " " * LONGEST_REPORT, encoding="utf-8")
    with pytest.raises(ValueError, match=r"on the machine that will train$"):
        read_check(Path("check.json"))


def test_the_folder_searched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"no such file in {re.escape(str(tmp_path))}$"):
        find_files(["yox/kitab.txt"], "data.path")


def test_a_file_in_the_place_of_a_folder_is_not_proposed(tmp_path: Path) -> None:
    (tmp_path / "kitab.txt").write_text("Bakı", encoding="utf-8")
    assert with_near_path("yox", tmp_path / "kitab.txt" / "kitab.txt") == "yox"


@pytest.mark.parametrize("language", ["en", "az"])
@pytest.mark.parametrize(
    "code",
    [
        *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.ENOSPC),
        *(errno.EROFS, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EIO),
    ],
)
def test_an_error_of_the_system_is_told_in_words(code: int, language: str) -> None:
    use_language(language)
    try:
        error = OSError(code, os.strerror(code), "kitab.txt")
        message = explanation(error, "train")
        assert message == f"kitab.txt: {system_reason(error)}"
        assert "Errno" not in message
    finally:
        use_language(None)
    assert explanation(OSError("a whole sentence"), "train") == "a whole sentence"


def test_a_check_that_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    with pytest.raises(ValueError, match=rf"azllm_lightning\.check out={re.escape(str(path))}"):
        read_check(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"check\.json: a folder, not a file$"):
        read_check(path)
    other = tmp_path / "mətn.txt"
    for content in ("no JSON", "{}", "[1]"):
        other.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="is not a report of check"):
            read_check(other)


def test_a_folder_of_runs_that_is_a_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot be written \(a part of its path is a file"):
        claim("ad", tmp_path / "logs")
