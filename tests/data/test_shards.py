from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from azllm_lightning.data.shards import (
    MANIFEST,
    VERIFIED,
    Manifest,
    ShardWriter,
    Span,
    TokenShards,
)
from azllm_lightning.data.tokenizer import Tokenizer


def write(
    folder: Path,
    tokens: np.ndarray,
    shard_tokens: int = 100,
    vocab_size: int = 1000,
    fingerprint: str = "f",
) -> Path:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, "train", shard_tokens) as writer:
        for piece in np.array_split(tokens, max(1, len(tokens) // 30)):
            writer.write(piece, 1, 10)
        splits = {"train": writer.close()}
    Manifest(
        1,
        fingerprint,
        vocab_size,
        splits,
        (Span("a", "train", 0, len(tokens)),),
        {"duplicates": 2},
        {},
    ).write(folder)
    return folder


TOKENS = np.random.default_rng(0).integers(0, 1000, 1234)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shards", TOKENS)


def test_reads_across_files(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    assert len(shards) == 1234
    assert len(list(folder.glob("train_*.bin"))) > 5
    for start, length in ((0, 1234), (0, 1), (1233, 1), (1234, 0), (95, 300), (119, 2), (120, 1)):
        window = shards.read(start, length)
        assert window.dtype == np.uint16
        assert window.tolist() == TOKENS[start : start + length].tolist()
    for start, length in ((-1, 2), (1230, 5), (0, -1)):
        with pytest.raises(IndexError):
            shards.read(start, length)


def test_files_are_plain_little_endian(folder: Path) -> None:
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("train_*.bin")))
    assert data == b"".join(int(t).to_bytes(2, "little") for t in TOKENS)
    entry = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["splits"]["train"]["files"][
        0
    ]
    assert entry["sha256"] == hashlib.sha256((folder / "train_00000.bin").read_bytes()).hexdigest()


def test_manifest_round_trip(folder: Path) -> None:
    manifest = Manifest.read(folder)
    assert manifest.splits["train"].tokens == 1234
    assert manifest.splits["train"].documents == 41
    assert manifest.splits["train"].text_bytes == 410
    assert manifest.spans == (Span("a", "train", 0, 1234),)
    assert manifest.cleaning == {"duplicates": 2}


def test_pickling_leaves_open_files_out(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    shards.read(0, 10)
    data = pickle.dumps(shards)
    assert len(data) < 4000
    assert pickle.loads(data).read(5, 7).tolist() == TOKENS[5:12].tolist()


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    same = write(tmp_path / "same", TOKENS)
    other = write(tmp_path / "other", TOKENS[::-1])
    prints = [TokenShards.open(each, "train").fingerprint for each in (folder, same, other)]
    assert prints[0] == prints[1] != prints[2]


def edit_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def damage(folder: Path, how: str) -> None:
    shard = folder / "train_00001.bin"
    if how == "no manifest":
        (folder / MANIFEST).unlink()
    elif how == "truncated manifest":
        (folder / MANIFEST).write_text('{"version": 1, "spl', encoding="utf-8")
    elif how == "other json":
        (folder / MANIFEST).write_text("[1]", encoding="utf-8")
    elif how == "version":
        edit_manifest(folder, '"version": 1', '"version": 99')
    elif how == "missing file":
        shard.unlink()
    elif how == "short file":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif how == "flipped bit":
        data = bytearray(shard.read_bytes())
        data[7] ^= 1
        shard.write_bytes(data)
    elif how == "vocabulary":
        edit_manifest(folder, '"vocab_size": 1000', '"vocab_size": 900')


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no manifest", r"no manifest\.json.*azllm_lightning\.prepare data=text data\.path"),
        ("truncated manifest", "not a complete manifest"),
        ("other json", "not a complete manifest"),
        ("version", "has version 99, not 1"),
        ("missing file", "train_00001.bin is missing"),
        ("short file", r"train_00001.bin has \d+ bytes"),
        ("flipped bit", "train_00001.bin does not match its checksum"),
        ("vocabulary", r"token id \d+, but the vocabulary ends at 899"),
    ],
)
def test_damaged_shards_are_refused(
    folder: Path, how: str, message: str, opened_before: bool
) -> None:
    if opened_before:
        TokenShards.open(folder, "train")
    damage(folder, how)
    with pytest.raises(ValueError, match=message):
        TokenShards.open(folder, "train")


class Hashed:
    """Counts the bytes that are hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        outer = self

        class Sha256:
            def __init__(self) -> None:
                self._hash = hashlib.sha256()

            def update(self, data: bytes) -> None:
                outer.bytes += len(data)
                self._hash.update(data)

            def hexdigest(self) -> str:
                return self._hash.hexdigest()

        monkeypatch.setattr("azllm_lightning.data.shards.hashlib", SimpleNamespace(sha256=Sha256))


def open_and_count(hashed: Hashed, folder: Path, verify: str = "once") -> int:
    hashed.bytes = 0
    TokenShards.open(folder, "train", verify=verify)
    return hashed.bytes


def test_the_content_is_verified_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in folder.glob("train_*.bin"))
    monkeypatch.setattr("azllm_lightning.data.shards.SAMPLE_BYTES", 2)
    hashed = Hashed(monkeypatch)
    assert open_and_count(hashed, folder) >= size
    sample = open_and_count(hashed, folder)
    assert 0 < sample < size / 2
    assert open_and_count(hashed, folder, "always") >= size
    path = folder / "train_00001.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 8] ^= 1  # outside the sample; only the time tells
    stat = path.stat()
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        TokenShards.open(folder, "train")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    TokenShards.open(folder, "train")
    with pytest.raises(ValueError, match="checksum"):
        TokenShards.open(folder, "train", verify="always")
    data[-1] ^= 1  # in the sample
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match="checksum"):
        TokenShards.open(folder, "train")


@pytest.mark.parametrize("record", ["", "[]", "{", '{"train_00000.bin": 5}'])
def test_a_broken_record_of_the_verification_is_made_again(folder: Path, record: str) -> None:
    TokenShards.open(folder, "train")
    good = (folder / VERIFIED).read_text(encoding="utf-8")
    (folder / VERIFIED).write_text(record, encoding="utf-8")
    TokenShards.open(folder, "train")
    assert (folder / VERIFIED).read_text(encoding="utf-8") == good


def test_a_folder_that_cannot_be_written_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    TokenShards.open(folder, "train")
    assert not (folder / VERIFIED).exists()


def test_other_folders_and_splits_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no manifest"):
        TokenShards.open(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="no split 'test'; the splits are train"):
        TokenShards.open(folder, "test")


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    mine = write(tmp_path / "mine", TOKENS, fingerprint=tokenizer.fingerprint)
    assert len(TokenShards.open(mine, "train", tokenizer)) == 1234
    with pytest.raises(ValueError, match="a different tokenizer"):
        TokenShards.open(mine, "train", Tokenizer.train(["su " * 9], 300))
