"""What a long step reports: bytes of how many, documents, and the time that is left."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet
from sample_texts import make_texts

from azllm_lightning.cli.sizes import size_text
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import corpus, progress
from azllm_lightning.data.blocks import Position
from azllm_lightning.data.corpus import bytes_to_read, raw_blocks
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.progress import Progress

TEXTS = make_texts(300)
PLAIN = "\n\n".join(TEXTS).encode("utf-8")


def rows(path: Path) -> None:
    table = pa.table({"text": TEXTS, "other": [text[::-1] for text in TEXTS]})
    parquet.write_table(table, path, row_group_size=50)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.txt": lambda path: path.write_bytes(PLAIN),
    "a.txt.gz": lambda path: path.write_bytes(gzip.compress(PLAIN)),
    "a.txt.bz2": lambda path: path.write_bytes(bz2.compress(PLAIN)),
    "a.txt.xz": lambda path: path.write_bytes(lzma.compress(PLAIN)),
    "a.parquet": rows,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BLOCK_CHARS", 5_000)


@pytest.mark.parametrize("name", WRITERS)
def test_bytes_read_add_up_to_the_size_of_the_files(name: str, tmp_path: Path) -> None:
    """As they are stored, whatever is compressed or not read of them, and wherever one goes on."""
    WRITERS[name](tmp_path / name)
    (tmp_path / "b.txt").write_text("\n\n".join(TEXTS[::2]), encoding="utf-8")
    config = DataConfig(path=str(tmp_path))
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert bytes_to_read(config) == total
    blocks = list(raw_blocks(config, Position()))
    assert len(blocks) > 5
    assert sum(block.read_bytes for block in blocks) == total
    rest = list(raw_blocks(config, blocks[2].end))
    assert sum(block.read_bytes for block in (*blocks[:3], *rest)) == total


def test_a_total_that_is_unknown_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN)
    config = DataConfig(path=str(tmp_path / "a.txt"))
    local = corpus.stream_files
    monkeypatch.setattr(corpus.TextFile, "size", lambda self: 0)
    monkeypatch.setattr(
        corpus, "stream_files", lambda stream: [replace(f, is_local=False) for f in local(stream)]
    )
    assert bytes_to_read(config) is None
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress("reading", bytes_to_read(config)) as reporter:
        reporter.add(2_000_000, 3)
    assert re.fullmatch(
        r"reading: 2\.0 MB, total unknown, 3 documents, [\d.,]+ [MG]B/s\n", capsys.readouterr().err
    )


def test_data_max_bytes_is_the_total(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN)
    path = str(tmp_path / "a.txt")
    config = DataConfig(path=path, val_path=path, max_bytes=5000, val_fraction=0.1)
    assert bytes_to_read(config) == 5500
    assert bytes_to_read(DataConfig(name="tales", tales_bytes=7)) == 7


def test_the_time_left_leaves_out_what_an_earlier_session_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress("downloading", 100_000_000) as reporter:
        reporter.skip(50_000_000)
        now[0] += 10
        reporter.add(10_000_000)
    line = "downloading: 60 MB of 100 MB, 1.0 MB/s, 40 s left\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (90_000, 400_000, 30, "reading: 90 kB of 400 kB, 3.0 kB/s, 1 min 43 s left\n"),
        (1_250_000, 3_000_000_000, 10, "reading: 1.2 MB of 3.0 GB, 125 kB/s, 6 h 39 min left\n"),
        (5_000, None, 10, "reading: 5.0 kB, total unknown, 0.5 kB/s\n"),
    ],
)
def test_each_size_is_in_a_unit_that_fits_it(
    done: int,
    total: int | None,
    seconds: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress("reading", total) as reporter:
        now[0] += seconds
        reporter.add(done)
    assert capsys.readouterr().err == line


def test_reading_reports_documents_and_ends_at_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(PLAIN))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    config = DataConfig(
        path=str(tmp_path / "a.txt.gz"), dir=str(tmp_path / "data"), vocab_size=300, block_size=16
    )
    prepare(replace(config, prepare_workers=1))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reading")]
    stored = size_text((tmp_path / "a.txt.gz").stat().st_size)
    assert len(lines) > 5
    assert lines[-1].startswith(f"reading text: {stored} of {stored}, 300 documents, ")
    assert lines[-1].endswith(" 0 s left")
