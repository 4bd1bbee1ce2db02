"""The verb `prepare`: what it prints, and what a signal leaves behind."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from azllm_lightning.cli import entrance
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.compose import compose
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.shards import Manifest, Span, Split
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.prepare import main, prepare, summary

OVERRIDES = ["data.tales_bytes=60_000", "data.vocab_size=300", "data.block_size=32"]


def test_prints_a_summary_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(compose(OVERRIDES, "prepare"))
    train = Manifest.read(folder).splits["train"]
    printed = capsys.readouterr().out.splitlines()[-6:]
    lines = dict(line.split(maxsplit=1) for line in printed)
    assert lines["folder"] == str(folder)
    assert lines["vocabulary"] == "300 tokens"
    assert lines["train"] == (
        f"{train.documents:,} documents, {train.text_bytes / 1e3:.1f} kB, {train.tokens:,} tokens, "
        f"{train.text_bytes / train.tokens:.2f} bytes per token"
    )
    assert lines["sources"] == "tales 100.0 %"
    assert lines["next"] == command("train", OVERRIDES)


def test_training_uses_what_prepare_made() -> None:
    folder = prepare(compose(OVERRIDES, "prepare"))
    datamodule = TokenDataModule(compose(OVERRIDES).data, micro_batch_size=1)
    datamodule.setup()
    assert datamodule.folder == folder


def test_prints_azerbaijani(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_LANG", "az")
    prepare(compose(OVERRIDES, "prepare"))
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert labels[-6:] == ["qovluq", "lüğət", "train", "val", "mənbələr", "növbəti"]


def test_the_summary_names_the_largest_sources_and_what_was_cleaned() -> None:
    split = Split(documents=1, text_bytes=400, tokens=200, files=())
    manifest = Manifest(
        version=1,
        tokenizer="",
        vocab_size=300,
        splits={"train": split, "val": split},
        spans=tuple(Span(f"mənbə {i}", "train", 0, 100 - i) for i in range(15)),
        cleaning={"duplicates": 1, "cut_documents": 0},
        made_from={},
    )
    *_, val, cleaning, sources = summary(manifest).splitlines()
    assert val == "val         1 document, 0.4 kB, 200 tokens, 2.00 bytes per token"
    assert cleaning == "cleaning    1 duplicate removed"
    assert sources.startswith("sources     mənbə 0 7.2 %, mənbə 1 ")
    assert sources.endswith("mənbə 11 6.4 %, and 3 more")


def test_a_signal_keeps_what_is_finished_and_the_same_command_goes_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", *OVERRIDES])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "train", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as leaving:
            main()
    assert leaving.value.code == entrance.EXIT_RESUMABLE
    assert command("prepare", OVERRIDES) in capsys.readouterr().err
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] != []
    folder = prepare(compose(OVERRIDES, "prepare"))
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == [folder]
