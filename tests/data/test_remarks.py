"""What is said of prepared text fits what can be done: a run under way can have no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.remarks import prepare_and_warn, warn_of_text_of_run
from azllm_lightning.disk.lock import Lock

Said = Callable[..., str]


def lines(path: Path, name: str, count: int) -> None:
    text = "\n\n".join(f"{name} {i} uzaq dağlarda yaşayırdı." for i in range(count))
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZLLM_DATA_DIR", "cache")
    Path("text").mkdir()
    lines(Path("text", "a.txt"), "Qurd", 200)
    lines(Path("text", "b.txt"), "Tülkü", 200)
    return DataConfig(path="text", vocab_size=300, block_size=16, prepare_workers=1)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """said(config): what is said when that text is prepared, or was before; with `resumes`, by a
    run that goes on with it.
    """

    def call(config: DataConfig, resumes: bool = False) -> str:
        caplog.clear()
        if resumes:
            warn_of_text_of_run(config, prepare(config), Path("step_4.ckpt"))
        else:
            prepare_and_warn(config)
        return caplog.text

    return call


@pytest.mark.parametrize("change", ["changed", "new", "gone", "touched"])
def test_a_folder_with_the_text_from_before_is_named(
    two_files: DataConfig, change: str, said: Said
) -> None:
    config = replace(two_files, dir="prepared")
    said(config)
    text = Path("text")
    if change == "changed":
        lines(text / "b.txt", "Ayı", 300)
    elif change == "new":
        lines(text / "c.txt", "Ayı", 300)
    elif change == "gone":
        shutil.rmtree(text)
    else:
        os.utime(text / "b.txt", (1, 1))
    is_said = "has changed since data.dir=" in said(config)
    assert is_said == (change in ("changed", "new"))


def test_a_setting_that_is_no_longer_given_is_named(two_files: DataConfig, said: Said) -> None:
    config = replace(two_files, dir="prepared", max_bytes=9000)
    assert "no effect" not in said(config)
    named = "have no effect: data.max_bytes=null (prepared with 9000)"
    assert named in said(replace(config, max_bytes=None))
    assert "no effect" not in said(replace(config, path=None, max_bytes=None))


def test_one_that_waited_for_another_text_is_told(two_files: DataConfig, said: Said) -> None:
    """Another process has filled the folder meanwhile."""
    ours = replace(two_files, dir="prepared")
    theirs = replace(ours, val_fraction=0.2)
    with pytest.MonkeyPatch.context() as patch:
        wait = Lock.wait

        def waits(self: Lock, message: str) -> None:
            patch.setattr(Lock, "wait", wait)
            prepare(theirs)
            wait(self, message)

        patch.setattr(Lock, "wait", waits)
        assert "data.val_fraction=0.05 (prepared with 0.2)" in said(ours)


def test_a_run_is_told_to_keep_its_text(two_files: DataConfig, said: Said) -> None:
    config = replace(two_files, dir="prepared")
    said(config)
    assert said(config, resumes=True) == ""
    lines(Path("text", "b.txt"), "Ayı", 300)
    told = said(config, resumes=True)
    assert "which is kept in prepared: keep that folder." in told
    assert "init_from=step_4.ckpt" in told
    assert "delete" not in told


def test_a_run_is_not_told_of_few_windows(two_files: DataConfig, said: Said) -> None:
    """Neither its windows nor its text can be others: its start has said it."""
    config = replace(two_files, dir="prepared", block_size=128)
    assert "val_loss will be inexact" in said(config)
    assert said(config, resumes=True) == ""


@pytest.mark.parametrize("folder", [None, "prepared"])
def test_files_that_are_skipped_are_counted_each_time(
    folder: str | None, two_files: DataConfig, said: Said
) -> None:
    config = replace(two_files, dir=folder)
    assert "skipped" not in said(config)
    Path("text", "c.pdf").write_bytes(b"%PDF-1.4")
    told = "data.path=text: 2 files; skipped: .pdf 1 (c.pdf)"
    assert told in said(config)
    assert "skipped" not in said(config, resumes=True)
    new = replace(config, val_fraction=0.1, dir=folder and "new")
    assert said(new).count(told) == 1


def test_skipped_files_of_text_for_validation_are_counted_too(
    two_files: DataConfig, said: Said
) -> None:
    Path("val").mkdir()
    lines(Path("val", "v.txt"), "Ayı", 200)
    config = replace(two_files, val_path="val")
    said(config)
    Path("val", "v.md").write_text("Ayı", encoding="utf-8")
    assert "data.val_path=val: 1 file; skipped: .md 1 (v.md)" in said(config)


def test_text_that_is_gone_or_elsewhere_is_not_searched(two_files: DataConfig, said: Said) -> None:
    config = replace(two_files, dir="prepared")
    said(config)
    for path in (None, "gone", "hf://datasets/a/b@main/c.txt"):
        assert "skipped" not in said(replace(config, path=path))
