"""Tokenize documents on several threads, in order, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from azllm_lightning.data.tokenizer import Tokenizer

BATCH_CHARS = 1 << 19
"""Approximate number of characters that a thread encodes at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class EncodedBatch(NamedTuple):
    """Documents of one source as tokens (uint16), each with its end-of-text token."""

    source: str
    tokens: np.ndarray
    documents: int
    text_bytes: int


def encode_documents(
    tokenizer: Tokenizer,
    texts: Iterable[tuple[str, str]],
    pool: ThreadPoolExecutor,
    max_batches: int,
) -> Iterator[EncodedBatch]:
    """Encode (source, text) pairs in order, with at most `max_batches` batches in memory."""
    return _map_in_order(pool, partial(_encode, tokenizer), _batches(texts), max_batches)


def num_cores() -> int:
    """The CPU cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _encode(tokenizer: Tokenizer, batch: tuple[str, list[str]]) -> EncodedBatch:
    source, texts = batch
    tokens: list[int] = []
    for ids in tokenizer.encode_batch(texts):
        tokens += ids
        tokens.append(tokenizer.eot_id)
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return EncodedBatch(source, np.array(tokens, np.uint16), len(texts), text_bytes)


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(source, texts) with about BATCH_CHARS characters of one source each."""
    batch: list[str] = []
    batch_source = ""
    size = 0
    for source, text in texts:
        if batch and (source != batch_source or size >= BATCH_CHARS):
            yield batch_source, batch
            batch = []
            size = 0
        batch_source = source
        batch.append(text)
        size += len(text)
    if batch:
        yield batch_source, batch


def _map_in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    max_pending: int,
) -> Iterator[Result]:
    """`pool.map` with at most `max_pending` items submitted, so that memory stays bounded."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
