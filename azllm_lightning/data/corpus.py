"""Files of text become clean, unique documents, each of them for training or for validation."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cleaning import clean, cut
from azllm_lightning.data.files import find_files
from azllm_lightning.data.records import read_records

log = logging.getLogger(__name__)

MAX_SOURCES = 256

_DIGEST_BYTES = 16
_BUCKET_BYTES = 2


class Document(NamedTuple):
    """One text, clean and at most data.max_document_bytes long; `split` is "train" or "val"."""

    text: str
    source: str
    split: str


def documents(config: DataConfig, counts: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of `config` in the order of their files, exact duplicates left out.

    The split of a document depends on its text and data.val_fraction alone, unless data.val_path gives the validation
    text; what stands there is kept out of training. `counts` takes in what was dropped, cut or repaired. Raises
    ValueError where there is no text, or where it cannot be read.
    """
    counts = Counter() if counts is None else counts
    seen = _Digests()
    if config.name == "tales":
        from azllm_lightning.azerbaijani.tales import write_tales

        tales = ((tale, config.name) for tale in write_tales(config.tales_bytes, config.tales_seed))
        yield from _unique(tales, config, None, config.max_bytes, seen, counts)
        return
    if not config.paths:
        raise ValueError(
            f"data.path is not set, and data={config.name} reads its text from there: give a file or folder"
        )
    if config.val_paths:
        cap = (
            None
            if config.max_bytes is None
            else max(1, round(config.max_bytes * config.val_fraction))
        )
        found = _file_texts(config.val_paths, "data.val_path", config, counts)
        yield from _unique(found, config, "val", cap, seen, counts)
    found = _file_texts(config.paths, "data.path", config, counts)
    yield from _unique(
        found, config, "train" if config.val_paths else None, config.max_bytes, seen, counts
    )


def _file_texts(
    paths: list[str], setting: str, config: DataConfig, counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """(text, source) of each record in the files behind `paths`."""
    files = find_files(paths, setting)
    sources: set[str] = set()
    found_any = False
    for file in files:
        file_source = file.name if len(files) <= MAX_SOURCES else config.name
        is_empty = True
        with file.telling():
            for text, source in read_records(file, config, counts):
                is_empty = False
                sources.add(source or file_source)
                if len(sources) > MAX_SOURCES:
                    raise ValueError(
                        f"data.source_field={config.source_field} has more than {MAX_SOURCES} different values "
                        f"(in {file.path}); name a field with few, or null"
                    )
                yield text, source or file_source
        if is_empty:
            log.warning("%s holds no text", file.path)
        found_any |= not is_empty
    if not found_any:
        raise ValueError(f"{setting}={', '.join(paths)} holds no text (files read: {len(files)})")


def _unique(
    texts: Iterable[tuple[str, str]],
    config: DataConfig,
    split: str | None,
    max_bytes: int | None,
    seen: _Digests,
    counts: Counter[str],
) -> Iterator[Document]:
    """The new ones among the cleaned and cut `texts`, until `max_bytes` of UTF-8; without `split`, the hash decides."""
    total = 0
    for text, source in texts:
        pieces = cut(clean(text), config.max_document_bytes)
        counts["empty_documents"] += not pieces
        counts["cut_documents"] += len(pieces) > 1
        for piece in pieces:
            data = piece.encode("utf-8")
            digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
            is_known = not seen.add(digest)
            counts["duplicates"] += is_known
            if is_known:
                continue
            total += len(data)
            yield Document(piece, source, split or _split(digest, config.val_fraction))
        if max_bytes is not None and total >= max_bytes:
            return


def _split(digest: bytes, val_fraction: float) -> str:
    return "val" if int.from_bytes(digest[-8:], "big") < val_fraction * 2**64 else "train"


class _Digests:
    """A set of digests in 14 bytes each, where Python's own set takes about 100: millions of short texts stay cheap."""

    def __init__(self) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def add(self, digest: bytes) -> bool:
        """Whether `digest` is new."""
        bucket, tail = self._buckets[digest[:_BUCKET_BYTES]], digest[_BUCKET_BYTES:]
        at = bucket.find(tail)
        while at % len(tail) and at >= 0:  # found across two neighbours
            at = bucket.find(tail, at + 1)
        if at >= 0:
            return False
        bucket += tail
        return True
