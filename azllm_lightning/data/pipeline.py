"""Prepare text: a folder with tokenizer.json, shards and a manifest, complete or absent."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cache import cache_folder
from azllm_lightning.data.corpus import describe_cleaning, documents
from azllm_lightning.data.encoding import encode_documents, num_cores
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

CLEANING_VERSION = 2
"""Increased when the same text would give different documents or tokens, to ignore old caches."""

# An unfinished folder has the final name between these two.
_UNFINISHED_PREFIX = ".azllm-"
_UNFINISHED_SUFFIX = ".unfinished"
# These settings do not change the prepared data.
_NOT_CONTENT = ("dir", "block_size", "val_windows", "num_workers", "prepare_workers")


def prepare(config: DataConfig) -> Path:
    """The folder with the tokenizer.json, shards and manifest of `config`, created if necessary.

    Several processes may call this at once. Raises ValueError if the text cannot be read, if
    data.dir has other content, or if a split is too short for one window of data.block_size.
    """
    folder = prepared_folder(config)
    if not (folder / MANIFEST).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                tr(
                    "data.dir={folder}: exists, but has no {manifest}; choose a folder created by "
                    "`prepare`, or one that does not exist yet",
                    folder=folder,
                    manifest=MANIFEST,
                )
            )
        _create(config, folder)
    elif config.dir is not None:
        _warn_about_differences(config, folder)
    _check_enough(config, Manifest.read(folder))
    return folder


def prepared_folder(config: DataConfig) -> Path:
    """Where the prepared data of `config` is, or would be.

    This is data.dir, or a folder under $AZLLM_DATA_DIR (else the user's cache) named by a hash of
    everything that decides its content. Raises ValueError if the text cannot be found.
    """
    if config.dir is not None:
        return Path(config.dir).expanduser()
    return cache_folder() / _key(config)


def _content_settings(config: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in _NOT_CONTENT}


def _key(config: DataConfig) -> str:
    """A folder name that changes whenever the content would."""
    ingredients: list[Any] = [VERSION, CLEANING_VERSION, _content_settings(config)]
    if config.tokenizer is not None:
        ingredients.append(Tokenizer.from_file(config.tokenizer).fingerprint)
    if config.name == "tales":
        ingredients.append(_tales_digests())
    ingredients.append(
        stamps(config.paths, "data.path") + stamps(config.val_paths, "data.val_path")
    )
    text = json.dumps(ingredients, ensure_ascii=False, sort_keys=True)
    return f"{config.name}-{blake2b(text.encode('utf-8'), digest_size=10).hexdigest()}"


def _tales_digests() -> list[str]:
    """Digests of the grammar and the words that the tales are generated from."""
    from azllm_lightning import azerbaijani

    sources = sorted(
        path
        for path in Path(azerbaijani.__path__[0]).iterdir()
        if path.suffix in (".py", ".tsv") and not path.stem.startswith("pairs")
    )
    return [blake2b(path.read_bytes()).hexdigest() for path in sources]


def _create(config: DataConfig, folder: Path) -> None:
    """Build under a temporary name and a lock, then rename, so that `folder` is always complete."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    unfinished = folder.with_name(f"{_UNFINISHED_PREFIX}{folder.name}{_UNFINISHED_SUFFIX}")
    with FileLock(unfinished.with_suffix(".lock")):
        if (folder / MANIFEST).exists():  # another process has created it meanwhile
            return
        unfinished.mkdir()
        try:
            _build(config, unfinished)
            if folder.exists():
                folder.rmdir()  # it is empty; Windows does not rename onto an existing folder
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the unfinished folders of killed processes from `parent`: those whose lock is free."""
    from filelock import FileLock, Timeout

    for leftover in parent.glob(f"{_UNFINISHED_PREFIX}*{_UNFINISHED_SUFFIX}"):
        try:
            with FileLock(leftover.with_suffix(".lock"), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue


def _build(config: DataConfig, folder: Path) -> None:
    """Fill the empty `folder`."""
    counts: Counter[str] = Counter()
    splits: dict[str, Split] = {}
    spans: list[Span] = []
    num_threads = config.prepare_workers or num_cores()
    with Spool(folder / "spool") as spool, ThreadPoolExecutor(num_threads) as pool:
        _read(config, spool, counts)
        if config.tokenizer:
            tokenizer = Tokenizer.from_file(config.tokenizer)
        else:
            tokenizer = _train_tokenizer(config, spool)
        tokenizer.save(folder / "tokenizer.json")
        labels = {"train": tr("tokenizing training text"), "val": tr("tokenizing validation text")}
        for split in SPLITS:
            texts = spool.texts(split)
            with (
                ShardWriter(folder, split) as writer,
                Progress(labels[split], spool.text_bytes[split]) as progress,
            ):
                # not a variable: an error then closes the generator, which cancels what is pending
                for batch in encode_documents(tokenizer, texts, pool, 2 * num_threads):
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
        made_from=_content_settings(config),
    ).write(folder)


def _read(config: DataConfig, spool: Spool, counts: Counter[str]) -> None:
    """Read all documents into `spool`."""
    num_documents = 0
    with Progress(tr("reading text")) as progress:
        for document in documents(config, counts):
            progress.add(spool.add(document))
            num_documents += 1
    summary = [trn("{count:,} document", "{count:,} documents", num_documents)]
    log.info(tr("text read: {summary}", summary=", ".join(summary + describe_cleaning(counts))))


def _train_tokenizer(config: DataConfig, spool: Spool) -> Tokenizer:
    """A tokenizer of the training text, or of an evenly spaced sample if the text is large."""
    total = spool.text_bytes["train"]
    share = min(1.0, config.tokenizer_sample_bytes / max(1, total))
    with Progress(tr("training the tokenizer"), round(total * share)) as progress:

        def sample() -> Iterator[str]:
            for index, (_, text) in enumerate(spool.texts("train")):
                if int((index + 1) * share) > int(index * share):
                    progress.add(len(text.encode("utf-8")))
                    yield text

        tokenizer = Tokenizer.train(sample(), config.vocab_size)
    if tokenizer.vocab_size < config.vocab_size:
        log.warning(
            tr(
                "data.vocab_size={asked}: the text is only enough for {found} tokens",
                asked=config.vocab_size,
                found=tokenizer.vocab_size,
            )
        )
    return tokenizer


def _warn_about_differences(config: DataConfig, folder: Path) -> None:
    """Warn if settings that decide the content differ from those data.dir was prepared with."""
    stored = Manifest.read(folder).made_from
    ignored = [
        tr(
            "data.{key}={value} (prepared with {stored})",
            key=key,
            value=value,
            stored=stored[key],
        )
        for key, value in _content_settings(config).items()
        if value is not None and key in stored and stored[key] != value
    ]
    if ignored:
        log.warning(
            tr(
                "data.dir={folder} is already prepared; these settings have no effect: {settings}",
                folder=folder,
                settings=", ".join(ignored),
            )
        )


def _check_enough(config: DataConfig, manifest: Manifest) -> None:
    """Raise ValueError, with the amount of text needed, unless each split fills a window."""
    needed = config.block_size + 1
    for name, split in manifest.splits.items():
        if split.tokens < needed:
            text_bytes = sum(split.text_bytes for split in manifest.splits.values())
            raise ValueError(
                tr(
                    "too little text: a window of data.block_size={block_size} needs {needed} "
                    "tokens, but the {split} split has {tokens}. Need at least about {wanted:,} kB "
                    "of text, got {given:,.1f} kB. {remedy}",
                    block_size=config.block_size,
                    needed=needed,
                    split=name,
                    tokens=split.tokens,
                    wanted=math.ceil(_bytes_needed(config, manifest, name) / 1000),
                    given=text_bytes / 1000,
                    remedy=_remedy(config, name),
                )
            )


def _bytes_needed(config: DataConfig, manifest: Manifest, split: str) -> float:
    """Bytes of text, of both splits unless data.val_path is set, that give `split` a window."""
    tokens = sum(each.tokens for each in manifest.splits.values())
    text_bytes = max(1, sum(each.text_bytes for each in manifest.splits.values()))
    num_documents = max(1, sum(each.documents for each in manifest.splits.values()))
    window = (config.block_size + 1) / max(1, tokens)
    if config.val_paths:
        return window * text_bytes
    share = config.val_fraction if split == "val" else 1 - config.val_fraction
    # with 3 / share documents, the split gets none in one of twenty cases
    return max(window, 3 / num_documents) * text_bytes / share


def _remedy(config: DataConfig, split: str) -> str:
    if config.val_paths:
        setting = "val_path" if split == "val" else "path"
        return tr("Add text to data.{setting}, or lower data.block_size", setting=setting)
    if split == "train":
        return tr("Add text, or lower data.block_size")
    return tr(
        "Add text, lower data.block_size, raise data.val_fraction, or lower "
        "data.max_document_bytes (more, shorter documents)"
    )
