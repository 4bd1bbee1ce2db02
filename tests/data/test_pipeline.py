from __future__ import annotations

import errno
import json
import logging
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_texts import make_texts

from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import building, pipeline
from azllm_lightning.data.blocks import clean_block
from azllm_lightning.data.building import build
from azllm_lightning.data.corpus import documents
from azllm_lightning.data.files import search, stamps
from azllm_lightning.data.pipeline import prepare, prepared_folder
from azllm_lightning.data.shards import MANIFEST, Manifest, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.disk.lock import Lock, State


def decoded(folder: Path, split: str) -> list[str]:
    """The documents of a split, read back from its shards."""
    tokenizer = Tokenizer.from_file(folder)
    shards = TokenShards.open(folder, split, tokenizer)
    tokens = shards.read(0, len(shards))
    ends = np.flatnonzero(tokens == tokenizer.eot_id)
    assert len(ends) == 0 or ends[-1] == len(tokens) - 1
    return [
        tokenizer.decode(part[part != tokenizer.eot_id].tolist())
        for part in np.split(tokens, ends + 1)[:-1]
    ]


def test_shards_contain_the_documents(small: DataConfig) -> None:
    folder = prepare(small)
    assert sorted(path.name for path in folder.iterdir()) == [
        MANIFEST,
        "tokenizer.json",
        "train_00000.bin",
        "val_00000.bin",
    ]
    manifest = Manifest.read(folder)
    for split in ("train", "val"):
        expected = [d.text for d in documents(small) if d.split == split]
        assert decoded(folder, split) == expected
        assert manifest.splits[split].documents == len(expected)
        assert manifest.splits[split].text_bytes == sum(
            len(text.encode("utf-8")) for text in expected
        )
    assert manifest.tokenizer == Tokenizer.from_file(folder).fingerprint
    assert manifest.vocab_size == Tokenizer.from_file(folder).vocab_size == 320


def test_a_quoted_end_of_text_token_does_not_end_a_text(tmp_path: Path) -> None:
    many = [f"sətir {n} `<|endoftext|>` davamı var" for n in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(many), encoding="utf-8")
    folder = prepare(DataConfig(path=str(tmp_path), vocab_size=300, block_size=8, val_fraction=0.3))
    assert sorted(decoded(folder, "train") + decoded(folder, "val")) == sorted(many)


def test_sources_are_contiguous_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 500)
    rows = [{"text": text, "site": "abc"[n % 3]} for n, text in enumerate(make_texts(300))]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    config = DataConfig(
        path=str(tmp_path), source_field="site", vocab_size=320, block_size=16, val_fraction=0.2
    )
    folder = prepare(config)
    spans = Manifest.read(folder).spans
    assert sorted((s.split, s.source) for s in spans) == [
        (split, s) for split in ("train", "val") for s in "abc"
    ]
    tokenizer = Tokenizer.from_file(folder)
    sources = {row["text"]: row["site"] for row in rows}
    for split in ("train", "val"):
        shards = TokenShards.open(folder, split)
        here = [span for span in spans if span.split == split]
        assert [span.start for span in here] == [0, *[span.end for span in here[:-1]]]
        assert here[-1].end == len(shards)
        for span in here:
            text = tokenizer.decode(shards.read(span.start, span.end - span.start - 1).tolist())
            assert sources[next(t for t in sources if text.startswith(t))] == span.source


def test_the_tokenizer_sees_only_training_text_and_only_a_sample(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = Tokenizer.train

    def spy(texts: Any, vocab_size: int) -> Tokenizer:
        seen.extend(texts)
        return train(seen, vocab_size)

    monkeypatch.setattr(Tokenizer, "train", spy)
    prepare(small)
    training_texts = [d.text for d in documents(small) if d.split == "train"]
    assert seen == training_texts
    seen.clear()
    total = sum(len(text.encode("utf-8")) for text in training_texts)
    prepare(replace(small, tokenizer_sample_bytes=total // 4))
    assert set(seen) <= set(training_texts)
    assert 0.2 * total < sum(len(text.encode("utf-8")) for text in seen) < 0.3 * total
    # spread over the text, not only its beginning
    assert training_texts.index(seen[-1]) > 0.9 * len(training_texts)


def test_a_given_tokenizer_is_used(small: DataConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    folder = prepare(replace(small, tokenizer=str(tmp_path)))
    assert Manifest.read(folder).tokenizer == tokenizer.fingerprint
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a complete tokenizer"):
        prepare(replace(small, tokenizer=str(tmp_path)))


def read_again(*_: Any) -> None:
    pytest.fail("the text is read again")


def test_a_text_is_prepared_once(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = prepare(small)
    assert folder.parent == cache
    monkeypatch.setattr("azllm_lightning.data.pipeline.build", read_again)
    other_use = replace(
        small, block_size=16, val_windows=1, num_workers=2, prepare_workers=1, token_replacement=0.1
    )
    assert prepare(small) == prepare(other_use) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 300},
        {"val_fraction": 0.2},
        {"max_document_bytes": 300},
        {"max_bytes": 30_000},
        {"txt_documents": "file", "max_document_bytes": 300},
        {"tokenizer_sample_bytes": 1000},
        {"on_bad_utf8": "refuse"},
    ],
    ids=str,
)
def test_what_decides_the_content_makes_a_new_folder(
    small: DataConfig, change: dict[str, Any]
) -> None:
    assert prepared_folder(small) != prepared_folder(replace(small, **change))


def test_changed_files_make_a_new_folder(small: DataConfig, tmp_path: Path) -> None:
    before = prepared_folder(small)
    path = tmp_path / "text.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("Bakı", "Gəncə"), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert prepared_folder(small) != before


def test_a_text_that_is_only_touched_or_copied_is_not_prepared_again(
    small: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(small)
    monkeypatch.setattr("azllm_lightning.data.pipeline.build", read_again)
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    assert prepare(small) == folder


@pytest.mark.parametrize(
    ("second", "most", "is_new"), [("a.txt", 256, True), ("b.txt", 256, False), ("a.txt", 1, False)]
)
def test_a_folder_that_names_sources_is_part_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, most: int, is_new: bool
) -> None:
    """So that the sources of prepared text have the names that the folders have now."""
    monkeypatch.setattr("azllm_lightning.data.files.MAX_SOURCES", most)
    folder = tmp_path / "metn"
    for path in (folder / "xeber" / "a.txt", folder / "kitab" / second):
        path.parent.mkdir(parents=True)
        path.write_text(path.parent.name, encoding="utf-8")
    (before,) = stamps([str(folder)], "data.path")
    moved = folder.rename(tmp_path / "basqa")
    assert stamps([str(moved)], "data.path") == [before]
    (moved / "xeber").rename(moved / "qezet")
    (after,) = stamps([str(moved)], "data.path")
    assert (sorted(after) != sorted(before)) == is_new
    if not is_new:  # nothing but the name: what was prepared before keeps its place
        assert sorted(name for name, _ in after) == ["a.txt", second]


def test_a_large_text_that_was_touched_is_prepared_again_and_the_old_folder_is_named(
    small: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("azllm_lightning.data.files.DIGEST_BYTES", 10)
    older = prepare(small)
    assert "earlier version" not in caplog.text
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    assert prepare(small) != older
    assert re.search(rf"earlier version if no run needs it \(.* MB\): {older}", caplog.text)
    assert older.is_dir()


@pytest.mark.parametrize("setting", [None, "dir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_named_with_the_setting(
    number: int,
    setting: str | None,
    small: DataConfig,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("azllm_lightning.data.building.write_arrays", full)
    config = replace(small, dir=str(tmp_path / "out" / "d")) if setting else small
    place = tmp_path / "out" if setting else cache
    reason = system_reason(OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=re.escape(f"in {place} ({reason})")) as no:
        prepare(config)
    assert "data.dir" in str(no.value)
    assert ("AZLLM_DATA_DIR" in str(no.value)) == (setting is None)
    assert leftovers(place) == []


def test_an_error_of_reading_the_text_is_not_blamed_on_the_cache(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), small.path)

    monkeypatch.setattr("azllm_lightning.data.corpus.read_records", unreadable)
    with pytest.raises(PermissionError, match=r"text\.txt"):
        prepare(small)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_folder_where_no_file_can_be_made_is_reported_at_once(small: DataConfig) -> None:
    with pytest.raises(OSError, match=r"in /proc \(no such file.*data\.dir"):
        prepare(replace(small, dir="/proc/azllm"))


def test_a_wait_for_another_process_is_reported(
    small: DataConfig, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepared_folder(small)
    cache.mkdir()
    lock = Lock(cache / f".azllm-{folder.name}.lock")
    assert lock.try_acquire() is State.HELD
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(prepare, small)
        end = time.monotonic() + 60
        while "preparing the same text" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        assert not done.done()
        lock.release()
        assert done.result(60) == folder
    assert caplog.text.count("another process is preparing the same text") == 1


def test_a_pinned_hub_url_needs_no_network_once_prepared(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(small, path="hf://datasets/a/b@" + "0" * 40 + "/x/*.parquet")
    local = search([str(small.path)], "data.path")
    monkeypatch.setattr("azllm_lightning.data.corpus.search", lambda *_: local)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("the network is used"))
    assert prepare(pinned) == prepare(pinned)


@pytest.mark.thorough
def test_the_number_of_processes_does_not_change_the_bytes(
    small: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 700)
    folders = [
        prepare(replace(small, dir=str(tmp_path / f"out{workers}"), prepare_workers=workers))
        for workers in (1, 2, 5)
    ]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


def test_tales(cache: Path) -> None:
    config = DataConfig(name="tales", tales_bytes=100_000, vocab_size=320, block_size=64)
    folder = prepare(config)
    manifest = Manifest.read(folder)
    assert 90_000 < sum(split.text_bytes for split in manifest.splits.values()) < 110_000
    assert {span.source for span in manifest.spans} == {"tales"}
    assert prepared_folder(replace(config, tales_seed=1)) != folder


def test_dir_is_created_once_and_then_used_as_it_is(small: DataConfig, tmp_path: Path) -> None:
    target = tmp_path / "yeni qovluq" / "shards"
    assert prepare(replace(small, dir=str(target))) == target
    before = contents(target)
    assert prepare(replace(small, dir=str(target), path=None)) == target
    assert prepare(replace(small, dir=str(target), vocab_size=300)) == target
    assert contents(target) == before


def test_a_dir_with_other_content_is_refused(small: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train_00000.bin").write_bytes(b"xx")
    for place in ("full", "text.txt"):
        with pytest.raises(ValueError, match=r"data\.dir=.*: exists, but has no manifest"):
            prepare(replace(small, dir=str(tmp_path / place)))
    assert (tmp_path / "full" / "train_00000.bin").read_bytes() == b"xx"
    (tmp_path / "empty").mkdir()
    assert prepare(replace(small, dir=str(tmp_path / "empty"))) == tmp_path / "empty"


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


POINTS = [
    "building.write_block",
    "building.Tokenizer.train",
    "building.write_arrays",
    "building.ShardWriter.write",
    "building.Manifest.write",
]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_build_goes_on_where_it_stopped(
    small: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, workers: int
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 5000)
    config = replace(small, prepare_workers=workers)
    whole = contents(prepare(replace(config, dir=str(tmp_path / "whole"))))
    target = tmp_path / "out"
    original = operator.attrgetter(point.split(".", 1)[1])(building)
    calls = []
    for failing_call in range(3):  # it is interrupted again and again
        calls.clear()

        def fail(*arguments: Any, limit: int = failing_call) -> Any:
            calls.append(arguments)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(f"azllm_lightning.data.{point}", fail)
            try:
                prepare(replace(config, dir=str(target)))
            except KeyboardInterrupt:
                assert not target.exists()
    cleaned = []
    with monkeypatch.context() as patch:

        def spy(raw: Any, limit: int) -> Any:
            cleaned.append(raw)
            return clean_block(raw, limit)

        patch.setattr("azllm_lightning.data.building.clean_block", spy)
        assert contents(prepare(replace(config, dir=str(target), prepare_workers=1))) == whole
    if point != "building.write_block":
        assert not cleaned  # all of it was kept
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".azllm")] == [
        path.name for path in tmp_path.glob(".azllm*.lock")
    ]


def test_what_an_interrupted_build_of_another_text_left_is_not_used(
    small: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("azllm_lightning.data.building.Manifest.write", read_again)
        with pytest.raises(pytest.fail.Exception):
            prepare(replace(small, dir=target))
    Path(str(small.path)).write_text("\n\n".join(make_texts(150)[50:]), encoding="utf-8")
    found = contents(prepare(replace(small, dir=target)))
    assert found == contents(prepare(small))


def shortened(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def zeroed(data: bytes) -> bytes:
    """As a power cut leaves pages that never reached the disk."""
    start = len(data) // 4
    return data[:start] + bytes(50) + data[start + 50 :]


@pytest.mark.parametrize(
    "damage",
    [
        shortened(0.5),
        *(
            pytest.param(each, marks=pytest.mark.thorough)
            for each in (shortened(0.0), shortened(0.99), zeroed)
        ),
    ],
)
def test_a_damaged_block_is_made_again(
    small: DataConfig,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 5000)
    whole = contents(prepare(replace(small, dir=str(tmp_path / "whole"))))
    with monkeypatch.context() as patch:
        patch.setattr("azllm_lightning.data.building.Manifest.write", read_again)
        with pytest.raises(pytest.fail.Exception):
            prepare(small)
    (work,) = cache.glob(".azllm-*.unfinished/work")
    for name in ("0_000001.npz", "0_000002.tokens.npz", "../tokenizer.json"):
        path = work / name
        path.write_bytes(damage(path.read_bytes()))
    assert contents(prepare(small)) == whole


def test_an_error_while_tokenizing_is_raised(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("in a worker")

    monkeypatch.setattr(Tokenizer, "encode_batch", fail)
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 5000)
    with pytest.raises(RuntimeError, match="in a worker"):
        prepare(replace(small, prepare_workers=2))


def test_a_full_disk_is_left_as_it_was(
    small: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("azllm_lightning.data.building.write_arrays", fail)
    with pytest.raises(OSError, match="full"):
        prepare(small)
    assert leftovers(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_what_a_killed_prepare_left_is_removed_after_days(small: DataConfig, cache: Path) -> None:
    code = (
        "import time\n"
        "from azllm_lightning.config.data import DataConfig\n"
        "from azllm_lightning.data import building, pipeline\n"
        "building.Manifest.write = lambda *_: (print('here', flush=True), time.sleep(600))\n"
        f"pipeline.prepare({small!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (leftover,) = leftovers(cache)
    assert leftover.startswith(".azllm-")
    other = prepare(replace(small, vocab_size=300))
    assert set(leftovers(cache)) == {leftover, other.name}
    os.utime(cache / leftover, (0, 0))
    another = prepare(replace(small, vocab_size=310))
    assert set(leftovers(cache)) == {other.name, another.name}


def test_concurrent_calls_prepare_once(small: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    all_started = threading.Barrier(3)

    def counted(*arguments: Any) -> None:
        builds.append(threading.get_ident())
        build(*arguments)

    def call(config: DataConfig) -> Path:
        all_started.wait()
        return prepare(config)

    monkeypatch.setattr("azllm_lightning.data.pipeline.build", counted)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(call, [small] * 3))
    assert len(folders) == len(builds) == 1


def test_too_little_text_is_refused_with_the_amount_needed(
    small: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"data\.block_size=9000 needs 9,001 tokens, but the val split has [\d,]+\. "
        r".*[Aa]bout [\d,]+ kB of text are enough; there are [\d.]+ kB\.",
    ):
        prepare(replace(small, block_size=9000))
    (tmp_path / "one.txt").write_text("Bakı gözəl şəhərdir. " * 30, encoding="utf-8")
    with pytest.raises(ValueError, match=r"too little text: .* there are 0\.8 kB"):
        prepare(replace(small, path=str(tmp_path / "one.txt")))


def test_fewer_tokens_than_requested_give_a_warning(
    small: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepare(replace(small, vocab_size=60_000))
    assert Manifest.read(folder).vocab_size < 5000
    assert "data.vocab_size=60000: the text is only enough for" in caplog.text


def test_progress_is_silent_unless_slow(
    small: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(small)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("azllm_lightning.data.progress.SECONDS_BETWEEN_LINES", 0.0)
    prepare(replace(small, vocab_size=300))
    lines = capsys.readouterr().err.splitlines()
    for step in (
        "reading text",
        "training the tokenizer",
        "tokenizing",
    ):
        assert any(line.startswith(f"{step}: ") and "B/s, " in line for line in lines)


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """1 GB of text with ever new words is prepared in less than 1.5 GB of memory."""
    pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    syllables = np.array([c + v for c in "bcçdfgğhjklmnprsştvxyz" for v in "aəıioöuü"])
    with (tmp_path / "a.jsonl").open("w", encoding="utf-8") as file:
        while file.tell() < 1e9:
            parts = syllables[np.minimum(rng.zipf(1.15, (2000, 3)) - 1, len(syllables) - 1)]
            words = ["".join(row) for row in parts]
            file.write(json.dumps({"text": " ".join(words)}, ensure_ascii=False) + "\n")
    code = (
        "import resource\n"
        "from azllm_lightning.config.data import DataConfig\n"
        "from azllm_lightning.data.pipeline import prepare\n"
        f"prepare(DataConfig(path={str(tmp_path / 'a.jsonl')!r}, vocab_size=32000))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 1500


@pytest.mark.parametrize("folder", [None, "prepared"])
@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"path": None}, "data.path is not set: name the text"),
        ({"path": "missing.txt"}, "data.path=missing.txt"),
        ({"val_path": "missing.txt"}, "data.val_path=missing.txt"),
        ({"tokenizer": "missing.json"}, "missing.json"),
    ],
)
def test_a_text_that_cannot_be_prepared_is_not_said_to_be(
    missing: dict[str, Any],
    reason: str,
    folder: str | None,
    small: DataConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = None if folder is None else tmp_path / folder / "text"
    config = replace(small, **missing, dir=None if place is None else str(place))
    with (
        caplog.at_level(logging.INFO, "azllm_lightning"),
        pytest.raises((ValueError, OSError), match=re.escape(reason)),
    ):
        prepare(config)
    assert "preparing" not in caplog.text
    assert place is None or not place.parent.exists()


# Text that changes


def lines(path: Path, name: str, count: int) -> None:
    text = "\n\n".join(f"{name} {i} uzaq dağlarda yaşayırdı." for i in range(count))
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def two_files(tmp_path: Path) -> DataConfig:
    folder = tmp_path / "text"
    folder.mkdir()
    lines(folder / "a.txt", "Qurd", 200)
    lines(folder / "b.txt", "Tülkü", 200)
    return DataConfig(path=str(folder), vocab_size=300, block_size=16, prepare_workers=1)


def test_text_that_changes_while_it_is_prepared_is_not_kept(
    two_files: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(two_files.path, str)
    file = Path(two_files.path, "b.txt")
    before = file.read_bytes()

    def builds_and_changes(*args: Any) -> None:
        build(*args)
        lines(file, "Ayı", 300)

    monkeypatch.setattr(pipeline, "build", builds_and_changes)
    with pytest.raises(ValueError, match="changed while it was being prepared"):
        prepare(two_files)
    monkeypatch.setattr(pipeline, "build", build)
    file.write_bytes(before)
    assert any("Tülkü" in text for text in decoded(prepare(two_files), "train"))


def test_text_that_changes_while_another_process_is_waited_for_is_not_kept(
    two_files: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(two_files.path, str)
    file = Path(two_files.path, "b.txt")
    before = file.read_bytes()
    with monkeypatch.context() as waiting:
        waiting.setattr(Lock, "wait", lambda *_: lines(file, "Ayı", 300))
        waiting.setattr(Lock, "release", lambda *_: file.write_bytes(before))
        with pytest.raises(ValueError, match="changed while it was being prepared"):
            prepare(two_files)
    assert any("Tülkü" in text for text in decoded(prepare(two_files), "train"))


def test_the_folder_of_an_earlier_version_is_named_as_such(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    older = prepare(small)
    monkeypatch.setattr(pipeline, "CLEANING_VERSION", pipeline.CLEANING_VERSION + 1)
    assert prepare(small) != older
    assert "this version of azllm-lightning prepares the text in another way" in caplog.text
    assert "has changed" not in caplog.text


@pytest.mark.parametrize("between", [" ", "\n", " \n", "\r\n", "\t"])
def test_a_copy_with_other_spaces_and_line_breaks_is_a_duplicate(
    tmp_path: Path, between: str
) -> None:
    """In validation it would be known from the training text."""
    texts = [f"Bir gün {i} nəfər\nuzaq dağlara\ngetdi." for i in range(400)]
    copies = [between.join(text.split()) for text in texts]
    for name, documents_of_file in (("a.txt", texts), ("b.txt", copies)):
        whole = "\n\n".join(documents_of_file)
        (tmp_path / name).write_bytes(whole.encode("utf-8"))
    config = DataConfig(path=str(tmp_path / "*.txt"), val_fraction=0.3)
    found = list(documents(config))
    assert len(found) == len(texts)
