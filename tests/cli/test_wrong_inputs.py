"""Whatever is wrong with the input: exit code 2, and one message with value, place and way out."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from azllm_lightning.runs.paths import versions

Command = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Path:
    """A folder with a finished run `tiny` and with good and bad inputs; tests work on copies."""
    from azllm_lightning.config.compose import compose
    from azllm_lightning.train import train

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
        patch.chdir(folder)
        train(compose(TINY))
    (folder / "boş.txt").write_text("")
    (folder / "mətnsiz").mkdir()
    (folder / "mətnsiz" / "kitab.doc").write_text("x")
    (folder / "sahə.jsonl").write_text('{"mətn": "Salam."}\n', encoding="utf-8")
    (folder / "kəsik.jsonl").write_text('{"text": "Salam."}\n{"text": \n', encoding="utf-8")
    (folder / "utf8.txt").write_bytes(b"Salam.\n\nBu \xff.\n")
    (folder / "qısa.txt").write_text("Salam.\n\nNecəsən?\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordPiece"}}), encoding="utf-8"
    )
    torch.save({"a": 1}, folder / "yad.ckpt")
    (folder / "zibil.ckpt").write_bytes(b"zibil" * 1000)
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "səhv.yaml").write_text(
        "# @package _global_\ntrainer: { max_step: 5 }\nmodle: { n_layer: 2 }\n", encoding="utf-8"
    )
    (folder / "conf" / "experiment" / "boş.yaml").write_text(
        "# @package _global_\nmodel: null\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def place(trained: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`, the current folder."""
    shutil.copytree(trained, tmp_path / "yer", symlinks=True)
    monkeypatch.chdir(tmp_path / "yer")
    return tmp_path / "yer"


DATA = {
    "tales_bytes": "60_000",
    "vocab_size": 300,
    "block_size": 32,
    "val_windows": 8,
}
TRAINER = {
    "global_batch_size": 4,
    "max_steps": 8,
    "val_every_steps": 4,
    "checkpoint_every_steps": 4,
    "compile": "false",
    "accelerator": "cpu",
}
TINY = [
    "run_name=tiny",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "schedule.warmup_steps=2",
    "data.val_fraction=0.1",
    *(f"data.{key}={value}" for key, value in DATA.items()),
    *(f"trainer.{key}={value}" for key, value in TRAINER.items()),
]
TEXT = ["data=text", "data.vocab_size=300", "data.block_size=32"]
RESUME = ["run_name=tiny", "ckpt_path=last"]
BEST = "lightning_logs/tiny/version_0/checkpoints/best.ckpt"

WRONG: dict[str, tuple[list[str], list[str]]] = {
    # what a person typed: what the message has to say
    "misspelt key": (
        ["trainer.max_step=5"],
        ["unknown setting trainer.max_step", "did you mean trainer.max_steps"],
    ),
    "key without its group": (["lr=1e-3"], ["unknown setting lr; did you mean optimizer.lr?"]),
    "key of another group": (
        ["trainer.dropout=0"],
        ["unknown setting trainer.dropout; did you mean model.dropout?"],
    ),
    "part of a key without its group": (
        ["vocab=300"],
        ["unknown setting vocab; did you mean data.vocab_size?"],
    ),
    "misspelt top key": (["sed=5"], ["unknown setting sed", "did you mean seed"]),
    "misspelt added key": (["+model.n_layers=5"], ["model.n_layers", "did you mean model.n_layer"]),
    "misspelt keys in an experiment file": (
        ["--config-dir", "conf", "+experiment='səhv'"],
        ["trainer.max_step; did you mean trainer.max_steps", "modle; did you mean model"],
    ),
    "an empty group in an experiment file": (
        ["--config-dir", "conf", "+experiment='boş'"],
        ["model=null", "group"],
    ),
    "not key=value": (["t4"], ["t4", "key=value"]),
    "misspelt key of a text": (["run_nme=mənim mətnim"], ["did you mean run_name"]),
    "a key of other tools": (["optimizer.learning_rate=1e-3"], ["did you mean optimizer.lr"]),
    "a renamed key": (["data.batch_size=4"], ["data.batch_size", "trainer.micro_batch_size"]),
    "another renamed key": (
        ["+trainer.accumulate_grad_batches=2"],
        ["trainer.accumulate_grad_batches", "trainer.global_batch_size"],
    ),
    "unquoted letters": (
        ["model.n_layer=ə"],
        ["model.n_layer='ə'", "whole number"],
    ),
    "a comma": (["trainer.precision=a,b"], ["trainer.precision=a,b", "quote", "-m"]),
    "a list of GPUs": (["trainer.devices=0,1"], ["as trainer.devices=[0,1]"]),
    "a decimal comma": (["optimizer.lr=0,001"], ["optimizer.lr=0,001", "point", "lr=0.001"]),
    "thousands": (["trainer.max_steps=10,000"], ["max_steps=10000", "max_steps=10.000"]),
    "no such reference": (["run_name=${adı}"], ["run_name", "adı"]),
    "no such option": (["--nope"], ["--nope"]),
    "no such model": (["model=gpt5"], ['unknown model "gpt5"', "nano", "course"]),
    "no such experiment": (["+experiment=t5"], ['unknown experiment "t5"', "t4"]),
    "a group without a choice": (["model=null"], ["group", "model=nano", "--help"]),
    "word for a number": (
        ["trainer.max_steps=çox"],
        ["trainer.max_steps='çox'", "whole number"],
    ),
    "fraction for a count": (
        ["trainer.global_batch_size=4.5"],
        ["trainer.global_batch_size=4.5", "whole number"],
    ),
    "number for a list": (["optimizer.betas=0.9"], ["optimizer.betas=0.9", "is not a list"]),
    "number for a mapping": (["callbacks.health=5"], ["callbacks.health=5", "group"]),
    "seed is a word": (["seed=abc"], ["seed='abc'", "whole number"]),
    "seed out of range": (["seed=-1"], ["seed=-1", "from 0", "4294967295"]),
    "several at once": (
        ["model.dropout=1.5", "trainer.max_steps=0", "optimizer.lr=-1", "data.block_size=0"],
        ["model.dropout=1.5", "trainer.max_steps=0", "optimizer.lr=-1", "data.block_size=0"],
    ),
    "several misspelt keys": (
        ["sed=5", "modle.n_layer=2", "seed=abc", "batch_size=4", "sed=6"],
        [
            "unknown setting sed; did you mean seed?\nunknown setting modle.n_layer; did you mean "
            "model.n_layer?\nunknown setting batch_size; did you mean trainer.global_batch_size?\n"
        ],
    ),
    "several unknown choices": (
        ["optimizer=adm", "sed=5", "experiment=t5", "model=gpt5"],
        ["did you mean adamw?", 'unknown experiment "t5"', 'unknown model "gpt5"'],
    ),
    "several commas": (
        ["optimizer.lr=0,1", "trainer.max_steps=10,000", "trainer.devices=0,1"],
        ["optimizer.lr=0.1", "trainer.max_steps=10000", "as trainer.devices=[0,1]"],
    ),
    "several words that are no settings": (
        ["t4", "laptop"],
        ["t4 is not a setting", "laptop is not a setting"],
    ),
    "one misspelt key of several runs": (["-m", "seed=1,2", "sed=5"], ["did you mean seed?"]),
    "n_embd not divisible": (["model.n_head=5"], ["model.n_embd=192", "model.n_head=5", "190"]),
    "odd heads": (["model.n_head=64"], ["model.n_head=64", "even"]),
    "vocabulary too large": (["data.vocab_size=100_000"], ["data.vocab_size=100000", "65536"]),
    "unknown precision": (["trainer.precision=16"], ["trainer.precision=16", "16-mixed"]),
    "unknown strategy": (["trainer.strategy=dp"], ["trainer.strategy=dp", "one of auto, ddp"]),
    "sharded weights": (
        ["trainer.strategy=fsdp"],
        ["trainer.strategy=fsdp", "trainer.micro_batch_size", "optimizer=muon", "strategy=ddp"],
    ),
    "unknown accelerator": (["trainer.accelerator=tpu"], ["trainer.accelerator='tpu'", "cpu, gpu"]),
    "unknown devices": (["trainer.devices=all"], ["trainer.devices=all", "auto"]),
    "unknown schedule": (["schedule.name=cos"], ["schedule.name=cos", "cosine"]),
    "unknown language": (["lang=fr"], ["lang=fr", "en, az"]),
    "unknown logger": (["+logger.mlflow=true"], ["logger.mlflow"]),
    "bad run_name": (["run_name=a/b"], ["run_name='a/b'", "folder"]),
    "bad deadline": (["trainer.deadline=sabah"], ["trainer.deadline='sabah'", "11h30m"]),
    "class that is not there": (
        [*TINY, "+callbacks.mine._target_=no.such.Class"],
        ["callbacks.mine", "no.such.Class", "No module named 'no'"],
    ),
    "class that is no callback": (
        [*TINY, "+callbacks.mine._target_=builtins.dict"],
        ["callbacks.mine", "builtins.dict", "Callback"],
    ),
    "no path": (TEXT, ["data.path is not set: name the text, data.path=FILE or FOLDER"]),
    "path of tales": (["data.path=qısa.txt"], ["data.path=qısa.txt", "data=text"]),
    "missing file": ([*TEXT, "data.path=yoxdur.txt"], ["data.path=yoxdur.txt"]),
    "empty file": ([*TEXT, "data.path=boş.txt"], ["data.path=boş.txt", "no text"]),
    "folder without text": ([*TEXT, "data.path=mətnsiz"], ["data.path=mətnsiz", ".parquet"]),
    "wrong text field": (
        [*TEXT, "data.path=sahə.jsonl"],
        ["sahə.jsonl", "'text'", "mətn", "data.text_field"],
    ),
    "broken jsonl": ([*TEXT, "data.path=kəsik.jsonl"], ["kəsik.jsonl:2", "JSON"]),
    "broken UTF-8": (
        [*TEXT, "data.path=utf8.txt", "data.on_bad_utf8=refuse"],
        ["utf8.txt", "line 3", "data.on_bad_utf8=replace"],
    ),
    "too little text": (
        [*TEXT, "data.path=qısa.txt"],
        ["data.block_size=32", "33 tokens", "kB of text"],
    ),
    "foreign tokenizer": (
        [*TEXT, "data.path=utf8.txt", "data.tokenizer=tokenizer.json"],
        ["tokenizer.json"],
    ),
    "missing tokenizer": ([*TEXT, "data.path=utf8.txt", "data.tokenizer=yox.json"], ["yox.json"]),
    "folder that is no data": (
        ["data.dir=mətnsiz"],
        ["data.dir=mətnsiz", "manifest.json", "prepare"],
    ),
    "foreign checkpoint": (
        ["ckpt_path=yad.ckpt"],
        ["yad.ckpt", "not a checkpoint of azllm-lightning"],
    ),
    "garbage checkpoint": (["ckpt_path=zibil.ckpt"], ["zibil.ckpt", "not a complete checkpoint"]),
    "missing checkpoint": (["ckpt_path=yox.ckpt"], ["ckpt_path=yox.ckpt", "last"]),
    "folder without checkpoints": (["ckpt_path=mətnsiz"], ["ckpt_path=mətnsiz", "checkpoint"]),
    "weights to resume from": (
        [f"ckpt_path={BEST}"],
        [BEST, "weights only", "ckpt_path=last", "init_from="],
    ),
    "best to resume from": (
        ["run_name=tiny", "ckpt_path=best"],
        ["best.ckpt", "weights only", "ckpt_path=last"],
    ),
    "last without runs": (
        ["run_name=yeni", "ckpt_path=last"],
        ["ckpt_path=last", "yeni", "omit ckpt_path"],
    ),
    "other shape on resume": (
        [*RESUME, "model.n_layer=2"],
        ["model.n_layer", "1 in the checkpoint, 2", "init_from"],
    ),
    "other seed on resume": ([*RESUME, "seed=7"], ["seed: 1234 in the checkpoint, 7 requested"]),
    "other context on resume": (
        [*RESUME, "data.block_size=16"],
        ["data.block_size: 32 in the checkpoint, 16"],
    ),
    "other batch on resume": (
        [*RESUME, "trainer.global_batch_size=8"],
        ["trainer.global_batch_size: 4 in the checkpoint, 8 requested"],
    ),
    "a micro-batch that does not divide": (
        [*RESUME, "trainer.micro_batch_size=3"],
        ["trainer.micro_batch_size=3", "4 sequences", "1, 2, 4"],
    ),
    "more devices than sequences": (
        [*TINY, "trainer.devices=3"],
        ["trainer.global_batch_size=4", "3"],
    ),
    "other text on resume": ([*RESUME, "data.tales_seed=5"], ["different data", "start a new run"]),
    "other vocabulary on resume": (
        [*RESUME, "data.vocab_size=299"],
        ["different data", "start a new run"],
    ),
    "weights of another model": (
        [*TINY, "init_from=lightning_logs/tiny/version_0", "model.n_layer=2"],
        [
            "init_from=lightning_logs/tiny/version_0",
            "n_layer is 1 there and 2 here",
            "data.tokenizer=lightning_logs/tiny/version_0",
        ],
    ),
    "weights in a damaged file": (
        [*TINY, "init_from=zibil.ckpt"],
        ["init_from: zibil.ckpt is not a complete checkpoint"],
    ),
    "missing weights": ([*TINY, "init_from=yox.ckpt"], ["init_from=yox.ckpt: no such file"]),
    "T4 job without a GPU": (
        ["+experiment=t4"],
        ["trainer.accelerator=gpu", "finds no GPU", "Runtime", "trainer.accelerator=cpu"],
    ),
    "compiling without a compiler": (
        [*TINY, "trainer.compile=true"],
        ["trainer.compile=true", "C++ compiler", "false"],
    ),
}


@pytest.mark.parametrize(("typed", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input(
    typed: list[str],
    parts: list[str],
    command: Command,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("azllm_lightning.training.hardware.shutil.which", lambda name: None)
    assert command(*typed) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error: ") == 1
    assert "Error executing job" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    "typed", [[*RESUME, "data.tales_seed=5"], [*RESUME, "seed=7"], [f"ckpt_path={BEST}"]]
)
def test_a_refused_resume_leaves_the_run_alone(
    typed: list[str], command: Command, place: Path
) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in place.glob("lightning_logs/**/*")
            if path.is_file()
        }

    before = files()
    assert command(*typed) == 2
    assert files() == before
    assert len(versions(place / "lightning_logs" / "tiny")) == 1


def test_bf16_on_a_t4(
    command: Command,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *args, **settings: True
    )  # as it says on a real one
    assert command(*TINY, "trainer.accelerator=gpu", "trainer.precision=bf16-mixed") == 2
    error = capsys.readouterr().err
    for part in ("trainer.precision=bf16-mixed", "Tesla T4", "sm_75", "trainer.precision=16-mixed"):
        assert part in error


def prepared(command: Command, folder: Path) -> list[str]:
    """Overrides of a tiny run on shards in `folder`, which are made."""
    typed = [*TINY, f"data.dir={folder}"]
    assert command(*typed, "trainer.max_steps=1") == 0
    return typed


@pytest.mark.thorough
def test_a_foreign_shard(command: Command, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = prepared(command, place / "data")
    shard = place / "data" / "train_00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert command(*typed) == 2
    assert f"{shard} does not match its checksum in the manifest" in capsys.readouterr().err
    shard.write_bytes(content[:-10])
    assert command(*typed) == 2
    assert f"{shard} has {len(content) - 10:,} bytes" in capsys.readouterr().err
    shard.unlink()
    assert command(*typed) == 2
    assert f"{shard} is missing" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_foreign_tokenizer_next_to_the_shards(
    command: Command, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = prepared(command, place / "data")
    prepared_elsewhere = [
        *TINY,
        f"data.dir={place / 'other'}",
        "data.vocab_size=290",
        "trainer.max_steps=1",
    ]
    assert command(*prepared_elsewhere) == 0
    shutil.copyfile(place / "other" / "tokenizer.json", place / "data" / "tokenizer.json")
    assert command(*typed) == 2
    error = capsys.readouterr().err
    assert f"{place / 'data'} was prepared with a different tokenizer" in error
    assert "prepare the text again" in error


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["trainer.max_step=5"], "did you mean trainer.max_steps"),
        # in this process too, as others above: these two import torch
        pytest.param(
            ["data=text", "data.path=yoxdur ə.txt"],
            "data.path=yoxdur ə.txt",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["+experiment=t4", "data=tales"], "trainer.accelerator=cpu", marks=pytest.mark.slow
        ),
    ],
)
def test_the_real_command(typed: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "azllm_lightning.train", *typed],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_hub_offline(
    command: Command,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*args: object, **settings: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert command("data=wikipedia") == 2
    error = capsys.readouterr().err
    for part in (
        "hf://datasets/wikimedia/wikipedia",
        "could not be reached",
        "connection",
        "data=text data.path=",
    ):
        assert part in error


def test_python_has_the_message_of_the_command() -> None:
    from azllm_lightning.config.compose import compose

    with pytest.raises(ValueError, match=r"unknown setting sed.*\n.*trainer\.max_step;"):
        compose(["sed=5", "trainer.max_step=1"])


def test_a_choice_that_is_unknown_hides_the_names_that_depend_on_it(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be right for what was meant."""
    assert command("schedule=wds", "schedule.decay_ratio=0.2") == 2
    error = capsys.readouterr().err
    assert "did you mean wsd?" in error
    assert "decay_ratio" not in error
