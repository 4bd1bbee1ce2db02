"""Build prepared data: read, train a tokenizer, tokenize, write shards.

All cores work on blocks of documents. Whatever is finished is kept in the folder, so that an
interrupted build goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.blocks import (
    CleanBlock,
    Position,
    RawBlock,
    clean_block,
    read_arrays,
    read_block,
    write_arrays,
    write_block,
)
from azllm_lightning.data.corpus import (
    LineCensus,
    Selection,
    bytes_to_read,
    describe_cleaning,
    is_validation,
    raw_blocks,
    streams,
)
from azllm_lightning.data.encoding import Encoder
from azllm_lightning.data.filters import measured, with_lines, without_repeated_lines
from azllm_lightning.data.progress import Progress
from azllm_lightning.data.removed import REMOVED, FrequentLines, Removal, add_lines, write_removed
from azllm_lightning.data.shards import SPLITS, VERSION, Manifest, ShardWriter, Span, Split
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.workers import Workers, num_cores
from azllm_lightning.disk.sync import sync

log = logging.getLogger(__name__)

_WORK = "work"
_FILTERED = ".filtered.npz"


class Part(NamedTuple):
    """A cleaned block on disk, and which of its documents each split gets (indices)."""

    path: Path
    documents: dict[str, np.ndarray]

    @property
    def tokens_path(self) -> Path:
        """The file for its tokens."""
        return self.path.with_suffix(".tokens.npz")


class Selected(NamedTuple):
    """The parts of the text, their bytes per split, and what was dropped or repaired."""

    parts: list[Part]
    text_bytes: Counter[str]
    counts: Counter[str]
    removals: Sequence[Removal] = ()


class Segment(NamedTuple):
    """Consecutive tokens in the file of a part: the array `name`."""

    split: str
    source: str
    name: str
    documents: int
    text_bytes: int


def build(config: DataConfig, folder: Path, made_from: dict[str, Any]) -> None:
    """Fill `folder`, which is empty or has what an interrupted build of the same data left.

    Raises ValueError if the text cannot be read.
    """
    work = folder / _WORK
    work.mkdir(exist_ok=True)
    with Workers(config.prepare_workers or num_cores()) as workers:
        lines = _count_lines(config, work, workers)
        selected = select(
            config, lambda stream: _filtered_blocks(config, stream, work, workers, lines)
        )
        tokenizer = make_tokenizer(config, folder, selected)
        segments = tokenize(folder, tokenizer, selected, workers)
    if config.has_filters:
        list_removed(folder, selected, lines)
    write_shards(folder, tokenizer, selected, segments, made_from)
    shutil.rmtree(work)


# Reading


def select(
    config: DataConfig, blocks_of: Callable[[int], Iterator[tuple[Path, CleanBlock]]]
) -> Selected:
    """Choose what is kept of the blocks, and their files, that `blocks_of` returns for a stream.

    The result does not depend on where blocks begin and end.
    """
    selection = Selection(config)
    parts: list[Part] = []
    text_bytes: Counter[str] = Counter()
    with Progress(tr("reading text"), bytes_to_read(config)) as progress:
        for number, stream in enumerate(streams(config)):
            selection.start(stream)
            for path, block in blocks_of(number):
                kept = selection.keep(block)
                validation = is_validation(block, stream, config)
                chosen = {"train": kept & ~validation, "val": kept & validation}
                parts.append(Part(path, {split: np.flatnonzero(chosen[split]) for split in SPLITS}))
                for split in SPLITS:
                    text_bytes[split] += int(block.sizes[chosen[split]].sum())
                done = block.read_bytes
                if config.max_bytes is not None:
                    done = int(block.sizes[kept].sum())
                progress.add(done, int(kept.sum()))
                if selection.is_full:
                    break
    count = sum(len(indices) for part in parts for indices in part.documents.values())
    summary = [trn("{count:,} document", "{count:,} documents", count)]
    summary += describe_cleaning(selection.counts)
    log.info(tr("text read: {summary}", summary=", ".join(summary)))
    return Selected(parts, text_bytes, selection.counts, selection.removals)


def _count_lines(config: DataConfig, work: Path, workers: Workers) -> Path | None:
    """The file of the lines that data.repeated_lines removes; None if it is off."""
    if config.repeated_lines is None:
        return None
    path = work / "lines.npz"
    if read_arrays(path, FrequentLines._fields) is not None:
        return path
    census = LineCensus(config)
    with Progress(tr("counting lines"), bytes_to_read(config)) as progress:
        for number, stream in enumerate(streams(config)):
            census.start(stream)
            for _, block in clean_blocks(config, Position(number), None, work, workers):
                counted = census.add(block)
                done = block.read_bytes if config.max_bytes is None else counted
                progress.add(done, len(block.ends))
                if census.is_full:
                    break
    write_arrays(path, {}, census.frequent._asdict())
    return path


def _frequent_lines(path: Path) -> FrequentLines:
    content = read_arrays(path, FrequentLines._fields)
    assert content is not None
    return FrequentLines(**content[1])


def _filtered_blocks(
    config: DataConfig, stream: int, work: Path, workers: Workers, lines: Path | None
) -> Iterator[tuple[Path, CleanBlock]]:
    """The blocks of a stream as `clean_blocks`, without the lines of the file `lines`."""
    blocks = clean_blocks(config, Position(stream), None, work, workers)
    if lines is None:
        yield from blocks
        return
    paths = (path for path, _ in blocks)
    yield from workers.map(partial(_remove_lines, config, str(lines)), paths)


def _remove_lines(config: DataConfig, lines: str, path: Path) -> tuple[Path, CleanBlock]:
    """Write a block without its repeated lines to another file, unless that exists."""
    filtered = path.with_suffix(_FILTERED)
    block = read_block(filtered, with_text=False)
    if block is None:
        complete = read_block(path)
        assert complete is not None
        block = measured(without_repeated_lines(complete, _dropped(lines)), config)
        block = replace(block, lines=block.lines[:0], line_counts=block.line_counts[:0])
        write_block(block, filtered)
    return filtered, replace(block, text=block.text[:0])


@lru_cache(maxsize=1)
def _dropped(lines: str) -> frozenset[int]:
    return frozenset(_frequent_lines(Path(lines)).digests.tolist())


def _with_all_lines(filtered: Path) -> Path:
    """The file that `_remove_lines` made `filtered` from."""
    return filtered.with_name(filtered.name.removesuffix(_FILTERED) + ".npz")


def list_removed(folder: Path, selected: Selected, lines: Path | None) -> None:
    """Write removed.jsonl; `lines` is the file of the lines that were removed."""
    paths = [part.path for part in selected.parts]
    write_removed(folder / REMOVED, selected.removals, paths)
    if lines is not None:
        unfiltered = [_with_all_lines(path) for path in paths]
        add_lines(folder / REMOVED, _frequent_lines(lines), unfiltered)


def clean_blocks(
    config: DataConfig, start: Position, stop: int | None, work: Path, workers: Workers
) -> Iterator[tuple[Path, CleanBlock]]:
    """The blocks of `raw_blocks`, clean and without their text, and their files in `work`.

    Those that exist come first; the others are made.
    """
    stream = start.stream
    position = start
    first = 0
    while block := read_block(path := _block_path(work, stream, first), with_text=False):
        yield path, block
        if block.is_last:
            return
        position = block.end
        first += 1
    raw = raw_blocks(config, position, stop)
    tasks = ((_block_path(work, stream, number), block) for number, block in enumerate(raw, first))
    yield from workers.map(partial(_clean, config), tasks)


def _block_path(work: Path, stream: int, number: int) -> Path:
    return work / f"{stream}_{number:06d}.npz"


def _clean(config: DataConfig, task: tuple[Path, RawBlock]) -> tuple[Path, CleanBlock]:
    """Clean a block and write it to its file; returns it without its text."""
    path, raw = task
    block = clean_block(raw, config.max_document_bytes)
    # Documents are judged without the lines that will be removed.
    block = measured(block, config) if config.repeated_lines is None else with_lines(block)
    write_block(block, path)
    return path, replace(block, text=block.text[:0])


# Tokenizing


def make_tokenizer(config: DataConfig, folder: Path, selected: Selected) -> Tokenizer:
    """The tokenizer of the data, also saved in `folder`."""
    path = folder / "tokenizer.json"
    with contextlib.suppress(ValueError):  # it is missing, or damaged
        return Tokenizer.from_file(path)
    if config.tokenizer:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    else:
        tokenizer = _train_tokenizer(config, selected)
    temporary = path.with_suffix(".tmp")
    tokenizer.save(temporary)
    with temporary.open("rb+") as file:
        sync(file)  # the folder may be published with it before a power cut
    temporary.replace(path)
    return tokenizer


def _train_tokenizer(config: DataConfig, selected: Selected) -> Tokenizer:
    """A tokenizer of the training text, or of an evenly spaced sample if the text is large."""
    train_bytes = selected.text_bytes["train"]
    share = min(1.0, config.tokenizer_sample_bytes / max(1, train_bytes))
    with Progress(tr("training the tokenizer"), round(train_bytes * share)) as progress:

        def sample() -> Iterator[str]:
            number = 0
            for part in selected.parts:
                block = read_block(part.path)
                assert block is not None
                for index in part.documents["train"]:
                    if int((number + 1) * share) > int(number * share):
                        progress.add(int(block.sizes[index]))
                        yield block.document(index)
                    number += 1

        tokenizer = Tokenizer.train(sample(), config.vocab_size)
    if tokenizer.vocab_size < config.vocab_size:
        log.warning(
            tr(
                "data.vocab_size={asked}: the text is only enough for {found:,} tokens",
                asked=config.vocab_size,
                found=tokenizer.vocab_size,
            )
        )
    return tokenizer


def tokenize(
    folder: Path, tokenizer: Tokenizer, selected: Selected, workers: Workers
) -> list[list[Segment]]:
    """Write the tokens of each part to its file, unless that exists; returns what they contain."""
    encode = partial(_encode, str(folder / "tokenizer.json"), tokenizer.fingerprint)
    segments: list[list[Segment]] = []
    with Progress(tr("tokenizing"), selected.text_bytes.total()) as progress:
        for of_part in workers.map(encode, selected.parts):
            segments.append(of_part)
            progress.add(sum(segment.text_bytes for segment in of_part))
    return segments


def _encode(tokenizer_path: str, fingerprint: str, part: Part) -> list[Segment]:
    """Write the tokens of a part to its file, unless that exists."""
    written = read_arrays(part.tokens_path, (), check_all=True)
    if written is not None and written[0]["tokenizer"] == fingerprint:
        return [Segment(*values) for values in written[0]["segments"]]
    block = read_block(part.path)
    assert block is not None
    encoder = _encoder(tokenizer_path, fingerprint)
    segments: list[Segment] = []
    arrays: dict[str, np.ndarray] = {}
    for split, documents in part.documents.items():
        sources = block.sources[documents]
        for source in dict.fromkeys(sources.tolist()):  # in an order that blocks do not change
            chosen = documents[sources == source]
            name = f"{split}_{source}"
            arrays[name] = encoder.encode_documents(map(block.document, chosen))
            text_bytes = int(block.sizes[chosen].sum())
            segments.append(Segment(split, block.names[source], name, len(chosen), text_bytes))
    write_arrays(part.tokens_path, {"tokenizer": fingerprint, "segments": segments}, arrays)
    return segments


@lru_cache(maxsize=1)
def _encoder(tokenizer_path: str, fingerprint: str) -> Encoder:
    tokenizer = Tokenizer.from_file(tokenizer_path)
    assert tokenizer.fingerprint == fingerprint
    return Encoder(tokenizer)


# Writing


def write_shards(
    folder: Path,
    tokenizer: Tokenizer,
    selected: Selected,
    segments: list[list[Segment]],
    made_from: dict[str, Any],
) -> None:
    """Write the tokens as shards, in which the tokens of each source are together, and describe
    them in the manifest.
    """
    splits: dict[str, Split] = {}
    spans: list[Span] = []
    for split in SPLITS:
        by_source: defaultdict[str, list[tuple[Path, Segment]]] = defaultdict(list)
        for part, of_part in zip(selected.parts, segments, strict=True):
            for segment in of_part:
                if segment.split == split:
                    by_source[segment.source].append((part.tokens_path, segment))
        with ShardWriter(folder, split) as writer:
            for source, found in by_source.items():
                start = writer.tokens
                for path, segment in found:
                    content = read_arrays(path, [segment.name])
                    assert content is not None
                    tokens = content[1][segment.name]
                    writer.write(tokens, segment.documents, segment.text_bytes)
                spans.append(Span(source, split, start, writer.tokens))
            splits[split] = writer.close()
    Manifest(
        version=VERSION,
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        spans=tuple(spans),
        cleaning=dict(sorted(selected.counts.items())),
        made_from=made_from,
    ).write(folder)
