"""What `prepare` says of too little text holds: the settings it names work, its amounts suffice."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cleaning import cut
from azllm_lightning.data.enough import FEW_WINDOWS, warn_of_few_windows
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.shards import Manifest
from azllm_lightning.data.tokenizer import Tokenizer

SEEDS = range(3)
AMOUNT = re.compile(r"(?:With (\S+), about|About) ([\d,]+) kB of text")
SETTINGS = re.compile(r"Set ((?:\S+=\S+(?:, | or )?)+)\.(?: |$)")


@cache
def tales(num_bytes: int, seed: int) -> str:
    return " ".join(write_tales(num_bytes, seed)).replace("\n", " ")


def write(folder: Path, num_bytes: int, length: int, seed: int) -> str:
    """A file of `num_bytes` of documents of `length`; a shorter one is the start of a longer."""
    # a power of two, so that many sizes share one text
    long_enough = 1 << (num_bytes + 2 * length).bit_length()
    documents = cut(tales(long_enough, seed)[: num_bytes + 2 * length], length)
    path = folder / f"{num_bytes}_{length}_{seed}.txt"
    whole = "\n\n".join(documents).encode("utf-8")
    path.write_text(whole[:num_bytes].decode("utf-8", errors="ignore"), encoding="utf-8")
    return str(path)


def changed(config: DataConfig, setting: str | None) -> DataConfig:
    if setting is None:
        return config
    key, _, value = setting.removeprefix("data.").partition("=")
    return replace(config, **{key: type(getattr(config, key))(value)})


def refusal(config: DataConfig) -> str:
    """Why the text is refused; "" if it is not."""
    try:
        prepare(config)
    except ValueError as error:
        return str(error)
    return ""


def proposed(message: str) -> list[str]:
    found = SETTINGS.search(message)
    return re.split(", | or ", found[1]) if found else []


CASES = [
    # bytes, length of the documents, block_size, val_fraction
    (100, 9000, 256, 0.05),
    (1500, 9000, 256, 0.05),
    (20_000, 9000, 256, 0.05),
    (20_000, 300, 256, 0.05),
    (20_000, 4000, 64, 0.1),
    (8000, 1500, 32, 0.02),
    (30_000, 12_000, 512, 0.5),
    (5000, 2000, 128, 0.95),
]


@pytest.mark.thorough
def test_the_stated_amount_is_enough_and_not_several_times_too_large(tmp_path: Path) -> None:
    refused = followed = with_less = 0
    for size, length, block_size, val_fraction in CASES:
        given = DataConfig(
            vocab_size=1024, block_size=block_size, val_fraction=val_fraction, prepare_workers=1
        )
        for seed in SEEDS:
            message = refusal(replace(given, path=write(tmp_path, size, length, seed)))
            if not message:
                continue
            refused += 1
            found = AMOUNT.search(message)
            assert found is not None, message
            wanted = int(found[2].replace(",", "")) * 1000
            config = changed(given, found[1])
            followed += not refusal(replace(config, path=write(tmp_path, wanted, length, seed)))
            less = write(tmp_path, wanted // 5, length, seed)
            with_less += not refusal(replace(config, path=less))
    assert refused > len(CASES)
    assert followed >= 0.8 * refused  # by chance, one in ten is refused again
    assert with_less <= 0.5 * refused


@pytest.mark.thorough
def test_the_amount_does_not_grow_with_the_text(tmp_path: Path) -> None:
    config = DataConfig(vocab_size=1024, prepare_workers=1)
    amounts = set()
    for size in (200, 1500, 3000, 20_000):
        for seed in SEEDS:
            message = refusal(replace(config, path=write(tmp_path, size, 9000, seed)))
            amounts |= {found[2] for found in AMOUNT.finditer(message)}
    numbers = [int(amount) for amount in amounts]
    assert max(numbers) <= 2 * min(numbers)


@pytest.mark.parametrize(("size", "length", "block_size", "val_fraction"), CASES)
def test_the_proposed_settings_work(
    tmp_path: Path, size: int, length: int, block_size: int, val_fraction: float
) -> None:
    for seed in SEEDS:
        config = DataConfig(
            path=write(tmp_path, size, length, seed),
            vocab_size=1024,
            block_size=block_size,
            val_fraction=val_fraction,
            prepare_workers=1,
        )
        for setting in proposed(refusal(config)):
            assert refusal(changed(config, setting)) == "", setting


def test_what_works_with_a_few_long_documents_is_proposed(tmp_path: Path) -> None:
    names = set()
    for seed in SEEDS:
        path = write(tmp_path, 30_000, 9000, seed)
        message = refusal(DataConfig(path=path, vocab_size=1024, prepare_workers=1))
        names |= {setting.partition("=")[0] for setting in proposed(message)}
        if "has 0." in message:  # no block fits into a split without a document
            assert "data.block_size" not in message.partition("has 0.")[2]
    assert names >= {"data.val_fraction", "data.max_document_bytes"}


def test_few_windows_get_settings_that_give_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, 60_000, 1000, 2)
    config = DataConfig(path=path, vocab_size=1024, block_size=128, prepare_workers=1)
    manifest = Manifest.read(prepare(config))
    assert manifest.splits["val"].tokens // 129 < FEW_WINDOWS
    warn_of_few_windows(config, manifest)
    (warning,) = [text for text in caplog.messages if "val_loss will be inexact" in text]
    settings = proposed(warning)
    assert settings
    for setting in settings:
        caplog.clear()
        better = changed(config, setting)
        warn_of_few_windows(better, Manifest.read(prepare(better)))
        assert "inexact" not in caplog.text, setting


def test_settings_of_prepared_text_name_its_folder(tmp_path: Path) -> None:
    """Another data.val_fraction would have no effect there."""
    path = write(tmp_path, 20_000, 9000, 0)
    folder = tmp_path / "prepared"
    config = DataConfig(path=path, dir=str(folder), vocab_size=1024, block_size=4000)
    for _ in range(2):
        message = refusal(config)
        assert f"data.dir={folder} keeps the text" in message
        Path(path).unlink(missing_ok=True)  # without its text, nothing can be tried


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"name": "tales", "tales_bytes": 3000}, r"data\.tales_bytes=\d+\."),
        ({"max_bytes": 3000}, r"data\.max_bytes=\d+\."),
        ({"val_path": "short.txt"}, r"Need about \d+ kB of text in data\.val_path, got 0\.1 kB"),
    ],
)
def test_more_text_comes_from_where_it_is_limited(
    tmp_path: Path, settings: dict[str, Any], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Bakı gözəl şəhərdir. " * 5, encoding="utf-8")
    given = {} if "name" in settings else {"path": write(tmp_path, 50_000, 500, 0)}
    config = DataConfig(**{**given, "vocab_size": 1024, "prepare_workers": 1, **settings})
    assert re.search(wanted, refusal(config))


@pytest.mark.parametrize("has_tokenizer", [False, True])
@pytest.mark.parametrize("block_size", [1, 256])
def test_no_text_at_all_has_an_amount_too(
    tmp_path: Path, has_tokenizer: bool, block_size: int
) -> None:
    """No token says how long tokens are, and a given tokenizer need not learn from more text."""
    tokenizer = str(tmp_path / "tokenizer.json")
    Tokenizer.train(["Bakı gözəl şəhərdir. " * 9], 280).save(Path(tokenizer))
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " "}\n', encoding="utf-8")
    config = DataConfig(
        path=str(tmp_path / "a.jsonl"),
        tokenizer=tokenizer if has_tokenizer else None,
        block_size=block_size,
        prepare_workers=1,
    )
    message = refusal(config)
    assert "the train split has 0" in message
    assert AMOUNT.search(message)
