"""Text becomes a folder of tokenizer.json, shards and a manifest: wholly, or not at all."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents
from azllm_lightning.data.files import stamps
from azllm_lightning.data.progress import Progress
from azllm_lightning.data.shards import (
    MANIFEST,
    SPLITS,
    VERSION,
    Manifest,
    ShardWriter,
    Span,
    Split,
)
from azllm_lightning.data.spool import Spool
from azllm_lightning.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CLEANING_VERSION = 1
"""Raised whenever the same text would give other documents or tokens: cached shards of old are then not taken."""

_UNFINISHED = (".azllm-", ".unfinished")  # before and after the final name
_BATCH_BYTES = 1 << 19
# These decide nothing of the content: what follows windows and batches, and what only says where and how fast.
_NOT_CONTENT = ("dir", "block_size", "val_windows", "num_workers", "prepare_workers")

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(config: DataConfig) -> Path:
    """The folder with the tokenizer.json, shards and manifest of `config`, made now unless it is there.

    Safe to call from several processes at once. Raises ValueError where the text cannot be read, where data.dir holds
    something else, and where a split is too short for one window of data.block_size.
    """
    folder = prepared_folder(config)
    if not (folder / MANIFEST).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"data.dir={folder} is there, but has no {MANIFEST}: name a folder that `prepare` wrote, "
                "or one that is still to be made"
            )
        _make(config, folder)
    elif config.dir is not None:
        _tell_differences(config, folder)
    _check_enough(config, Manifest.read(folder))
    return folder


def prepared_folder(config: DataConfig) -> Path:
    """Where the prepared data of `config` lie, or would: data.dir, or a folder under $AZLLM_DATA_DIR (else the user's
    cache) named after all that they are made from. Raises ValueError where the text cannot be found.
    """
    return (
        Path(config.dir).expanduser() if config.dir is not None else _cache_folder() / _key(config)
    )


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    chosen = os.environ.get("AZLLM_DATA_DIR")
    return (
        Path(chosen).expanduser() if chosen else user_cache_path("azllm-lightning", appauthor=False)
    )


def _made_from(config: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in _NOT_CONTENT}


def _key(config: DataConfig) -> str:
    """A folder name that changes whenever the content would."""
    ingredients: list[Any] = [VERSION, CLEANING_VERSION, _made_from(config)]
    if config.tokenizer is not None:
        ingredients.append(Tokenizer.from_file(config.tokenizer).fingerprint)
    if config.name == "tales":
        from azllm_lightning import azerbaijani

        files = (
            path
            for path in Path(azerbaijani.__path__[0]).iterdir()
            if path.suffix in (".py", ".tsv")
        )
        grammar = sorted(
            path for path in files if not path.stem.startswith("pairs")
        )  # the tales know none of them
        ingredients.append([blake2b(path.read_bytes()).hexdigest() for path in grammar])
    ingredients.append(
        stamps(config.paths, "data.path") + stamps(config.val_paths, "data.val_path")
    )
    text = json.dumps(ingredients, ensure_ascii=False, sort_keys=True)
    return f"{config.name}-{blake2b(text.encode('utf-8'), digest_size=10).hexdigest()}"


def _make(config: DataConfig, folder: Path) -> None:
    """Build beside `folder` under a lock, and rename: what bears the final name is whole."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    unfinished = folder.with_name(f"{_UNFINISHED[0]}{folder.name}{_UNFINISHED[1]}")
    with FileLock(unfinished.with_suffix(".lock")):
        if (folder / MANIFEST).exists():  # another process was faster
            return
        unfinished.mkdir()
        try:
            _build(config, unfinished)
            if folder.exists():
                folder.rmdir()  # empty, as `prepare` saw; Windows renames onto nothing
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent`: the unfinished folders whose lock is free."""
    from filelock import FileLock, Timeout

    for leftover in parent.glob("*".join(_UNFINISHED)):
        try:
            with FileLock(leftover.with_suffix(".lock"), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue


def _build(config: DataConfig, folder: Path) -> None:
    """Fill `folder`."""
    counts: Counter[str] = Counter()
    spans: list[Span] = []
    splits: dict[str, Split] = {}
    num_threads = config.prepare_workers or _num_cores()
    with Spool(folder / "spool") as spool, ThreadPoolExecutor(num_threads) as pool:
        with Progress("reading text") as progress:
            for document in documents(config, counts):
                progress.add(spool.add(document))
        log.info(
            "text read: %s",
            ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()),
        )
        tokenizer = (
            Tokenizer.from_file(config.tokenizer)
            if config.tokenizer
            else _train_tokenizer(config, spool)
        )
        tokenizer.save(folder / "tokenizer.json")
        for split in SPLITS:
            with (
                ShardWriter(folder, split) as writer,
                Progress(f"tokenizing {split}", spool.text_bytes[split]) as progress,
            ):
                batches = _batches(spool.texts(split))
                for batch in _in_order(pool, partial(_encode, tokenizer), batches, 2 * num_threads):
                    start = writer.tokens
                    writer.write(batch.tokens, batch.documents, batch.text_bytes)
                    if spans and (spans[-1].source, spans[-1].split) == (batch.source, split):
                        start = spans.pop().start
                    spans.append(Span(batch.source, split, start, writer.tokens))
                    progress.add(batch.text_bytes)
                splits[split] = writer.close()
    Manifest(
        version=VERSION,
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        spans=tuple(spans),
        cleaning=dict(counts),
        made_from=_made_from(config),
    ).write(folder)


def _train_tokenizer(config: DataConfig, spool: Spool) -> Tokenizer:
    """A tokenizer of the training text, or of documents spread evenly over it where it is above the sample's size."""
    total = spool.text_bytes["train"]
    share = min(1.0, config.tokenizer_sample_bytes / max(1, total))
    with Progress("training the tokenizer", round(total * share)) as progress:

        def sample() -> Iterator[str]:
            for index, (_, text) in enumerate(spool.texts("train")):
                if int((index + 1) * share) > int(index * share):
                    progress.add(len(text.encode("utf-8")))
                    yield text

        tokenizer = Tokenizer.train(sample(), config.vocab_size)
    if tokenizer.vocab_size < config.vocab_size:
        log.warning(
            "data.vocab_size=%d: the text gives only %d tokens that occur twice",
            config.vocab_size,
            tokenizer.vocab_size,
        )
    return tokenizer


class _Encoded(NamedTuple):
    """Documents of one source as tokens, each with its end-of-text token."""

    source: str
    tokens: np.ndarray
    documents: int
    text_bytes: int


def _encode(tokenizer: Tokenizer, batch: tuple[str, list[str]]) -> _Encoded:
    source, texts = batch
    tokens: list[int] = []
    for ids in tokenizer.encode_batch(texts):
        tokens += ids
        tokens.append(tokenizer.eot_id)
    return _Encoded(
        source,
        np.array(tokens, np.uint16),
        len(texts),
        sum(len(text.encode("utf-8")) for text in texts),
    )


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(source, texts) of about _BATCH_BYTES characters, each of one source."""
    batch: list[str] = []
    size, batch_source = 0, ""
    for source, text in texts:
        if batch and (source != batch_source or size >= _BATCH_BYTES):
            yield batch_source, batch
            batch, size = [], 0
        batch_source = source
        batch.append(text)
        size += len(text)
    if batch:
        yield batch_source, batch


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    max_waiting: int,
) -> Iterator[Result]:
    """`pool.map` with at most `max_waiting` items under way, so that memory does not grow with the text."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= max_waiting:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container may own fewer cores than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell_differences(config: DataConfig, folder: Path) -> None:
    """Warn where settings that decide the content differ from those that prepared data.dir was made with."""
    there = Manifest.read(folder).made_from
    idle = [
        f"data.{key}={value} (there: {there[key]})"
        for key, value in _made_from(config).items()
        if value is not None and key in there and there[key] != value
    ]
    if idle:
        log.warning(
            "data.dir=%s is used as it was prepared; without effect: %s", folder, ", ".join(idle)
        )


def _check_enough(config: DataConfig, manifest: Manifest) -> None:
    """Raise ValueError, saying how much text is needed, unless each split fills a window."""
    splits = manifest.splits.values()
    tokens, text_bytes, num_documents = (
        max(1, sum(getattr(split, what) for split in splits))
        for what in ("tokens", "text_bytes", "documents")
    )
    needed = config.block_size + 1
    shares = {"train": 1 - config.val_fraction, "val": config.val_fraction}
    for name, split in manifest.splits.items():
        if split.tokens >= needed:
            continue
        if config.val_paths:
            wanted = needed * text_bytes / tokens
            way_out = f"give more text in data.{'val_path' if name == 'val' else 'path'}, or lower data.block_size"
        else:
            # with 3 / share documents, a split gets none in one case of twenty
            wanted = max(needed / tokens, 3 / num_documents) * text_bytes / shares[name]
            way_out = "give more text, or lower data.block_size"
            if name == "val":
                way_out += (
                    ", or raise data.val_fraction, or lower data.max_document_bytes (more parts)"
                )
        raise ValueError(
            f"too little text: one window of data.block_size={config.block_size} needs {needed} tokens, and the {name} "
            f"split has {split.tokens}; about {math.ceil(wanted / 1000):,} kB of text would do "
            f"({text_bytes / 1000:,.1f} kB were given): {way_out}"
        )
