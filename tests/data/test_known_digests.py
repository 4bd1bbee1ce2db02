"""Hashes of the text are remembered while it stays as it is, and never longer."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import known_digests, pipeline
from azllm_lightning.data.known_digests import file_digest

OLD = b"a" * 200
NEW = b"b" * 200


def expected(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache of the test's own, in a future in which its files have long been as they are; the
    list gets an entry for each file that is read.
    """
    reads: list[int] = []

    def counted(**settings: Any) -> Any:
        reads.append(1)
        return blake2b(**settings)

    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(known_digests, "SMALLEST", 100)
    monkeypatch.setattr(known_digests, "hashlib", SimpleNamespace(blake2b=counted))
    monkeypatch.setattr(known_digests, "time", SimpleNamespace(time=lambda: time.time() + 60))
    return reads


def test_a_file_is_read_once(
    hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    assert [file_digest(str(path)) for _ in range(3)] == [expected(OLD)] * 3
    monkeypatch.chdir(tmp_path)
    assert file_digest("a.txt") == expected(OLD)
    assert len(hashed) == 1


def written_over(path: Path) -> None:
    path.write_bytes(NEW)


def written_over_with_its_time_put_back(path: Path) -> None:
    before = path.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    path.write_bytes(NEW)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(NEW)
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.skipif(os.name == "nt", reason="the time of a change is one of creation there")
@pytest.mark.parametrize(
    "change",
    [written_over, written_over_with_its_time_put_back, replaced_by_another_file],
    ids=lambda change: change.__name__,
)
def test_no_change_remains_unnoticed(
    change: Callable[[Path], None], hashed: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    assert file_digest(str(path)) == expected(OLD)
    change(path)
    assert file_digest(str(path)) == expected(NEW)
    assert len(hashed) == 2


def test_what_may_still_change_is_not_remembered(
    hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the last seconds, one that is written meanwhile, and a small one."""
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(known_digests, "time", time)
        file_digest(str(path))
    read = known_digests.hashlib.blake2b

    def meanwhile(**settings: Any) -> Any:
        with path.open("ab") as file:
            file.write(b"c")
        return read(**settings)

    with monkeypatch.context() as patch:
        patch.setattr(known_digests.hashlib, "blake2b", meanwhile)
        file_digest(str(path))
    path.write_bytes(OLD[:50])
    file_digest(str(path))
    assert file_digest(str(path)) == expected(OLD[:50])
    assert len(hashed) == 4
    assert not (tmp_path / "cache" / "digests.json").exists()


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 1', None])
def test_a_damaged_record_or_a_cache_that_cannot_be_written_costs_only_time(
    damage: str | None, hashed: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    if damage is None:
        (tmp_path / "cache").write_text("a file where the folder should be")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "digests.json").write_text(damage)
    assert [file_digest(str(path)) for _ in range(2)] == [expected(OLD)] * 2
    assert len(hashed) == (2 if damage is None else 1)


def test_the_record_stays_small(
    hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_digests, "MOST", 3)
    for number in range(5):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(OLD)
        file_digest(str(path))
    record = json.loads((tmp_path / "cache" / "digests.json").read_text(encoding="utf-8"))
    assert [Path(name).stem for name in record] == ["2", "3", "4"]


@pytest.mark.parametrize("is_named", [False, True])
def test_new_text_is_looked_at_once_to_know_it(
    is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "cache"))
    texts = "\n\n".join(
        f"{number}. Nənə {number * 7919 % 1000} alma aldı." for number in range(900)
    )
    (tmp_path / "a.txt").write_text(texts, encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "a.txt"), vocab_size=300, block_size=16)
    if is_named:
        config = replace(config, dir=str(tmp_path / "data"))
    keys: list[str] = []
    content_key = pipeline.content_key
    monkeypatch.setattr(
        pipeline, "content_key", lambda config: keys.append(content_key(config)) or keys[-1]
    )
    folder = pipeline.prepare(config)
    assert len(keys) == 1
    assert is_named or folder.name == keys[0]
    # what an interrupted build left is still known to be of this text
    shutil.rmtree(folder)
    monkeypatch.setattr(pipeline, "build", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    unfinished = next(folder.parent.glob(".azllm-*.unfinished"))
    assert (unfinished / "key").read_text(encoding="utf-8") == keys[0]
