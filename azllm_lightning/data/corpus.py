"""From files of text to clean, unique documents, each for training or for validation."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cleaning import clean, cut
from azllm_lightning.data.files import find_files
from azllm_lightning.data.records import read_records

log = logging.getLogger(__name__)

MAX_SOURCES = 256

_DIGEST_BYTES = 16
_BUCKET_BYTES = 2


class Document(NamedTuple):
    """A clean text of at most data.max_document_bytes; `split` is "train" or "val"."""

    text: str
    source: str
    split: str


def documents(config: DataConfig, counts: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of `config` in the order of their files, without exact duplicates.

    The split of a document depends only on its text and data.val_fraction, unless data.val_path
    gives the validation text; documents of that text are kept out of training. `counts` receives
    what was dropped, split or repaired (see `describe_cleaning`). Raises ValueError if there is no
    text or it cannot be read.
    """
    counts = Counter() if counts is None else counts
    seen = DigestSet()
    if config.name == "tales":
        from azllm_lightning.azerbaijani.tales import write_tales

        tales = ((tale, config.name) for tale in write_tales(config.tales_bytes, config.tales_seed))
        yield from _unique(tales, config, None, config.max_bytes, seen, counts)
        return
    if not config.paths:
        raise ValueError(
            tr("data.path is not set; data={name} needs a file or a folder", name=config.name)
        )
    if config.val_paths:
        max_bytes = config.max_bytes
        if max_bytes is not None:
            max_bytes = max(1, round(max_bytes * config.val_fraction))
        texts = _file_texts(config.val_paths, "data.val_path", config, counts)
        yield from _unique(texts, config, "val", max_bytes, seen, counts)
    texts = _file_texts(config.paths, "data.path", config, counts)
    split = "train" if config.val_paths else None
    yield from _unique(texts, config, split, config.max_bytes, seen, counts)


def describe_cleaning(counts: Mapping[str, int]) -> list[str]:
    """What `documents` counted, a phrase for each kind of change that occurred."""
    phrases = {
        "empty_documents": trn(
            "{count:,} empty document removed",
            "{count:,} empty documents removed",
            counts.get("empty_documents", 0),
        ),
        "duplicates": trn(
            "{count:,} duplicate removed",
            "{count:,} duplicates removed",
            counts.get("duplicates", 0),
        ),
        "cut_documents": trn(
            "{count:,} long document split",
            "{count:,} long documents split",
            counts.get("cut_documents", 0),
        ),
        "bad_utf8_lines": trn(
            "broken UTF-8 replaced in {count:,} line",
            "broken UTF-8 replaced in {count:,} lines",
            counts.get("bad_utf8_lines", 0),
        ),
    }
    return [phrase for kind, phrase in phrases.items() if counts.get(kind)]


def _file_texts(
    paths: list[str], setting: str, config: DataConfig, counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """(text, source) of each record in the files that `paths` name."""
    files = find_files(paths, setting)
    sources: set[str] = set()
    has_text = False
    for file in files:
        file_source = file.name if len(files) <= MAX_SOURCES else config.name
        is_empty = True
        with file.explained_errors():
            for text, source in read_records(file, config, counts):
                is_empty = False
                sources.add(source or file_source)
                if len(sources) > MAX_SOURCES:
                    raise ValueError(
                        tr(
                            "data.source_field={field}: more than {maximum} different values "
                            "(in {path}); choose a field with fewer, or null",
                            field=config.source_field,
                            maximum=MAX_SOURCES,
                            path=file.path,
                        )
                    )
                yield text, source or file_source
        if is_empty:
            log.warning(tr("{path} contains no text", path=file.path))
        has_text |= not is_empty
    if not has_text:
        raise ValueError(
            trn(
                "{setting}={paths}: no text in {count:,} file",
                "{setting}={paths}: no text in {count:,} files",
                len(files),
                setting=setting,
                paths=", ".join(paths),
            )
        )


def _unique(
    texts: Iterable[tuple[str, str]],
    config: DataConfig,
    split: str | None,
    max_bytes: int | None,
    seen: DigestSet,
    counts: Counter[str],
) -> Iterator[Document]:
    """The unseen documents among `texts`, cleaned and cut, up to `max_bytes` of UTF-8.

    Without `split`, the hash of a document decides its split.
    """
    total = 0
    for text, source in texts:
        pieces = cut(clean(text), config.max_document_bytes)
        counts["empty_documents"] += not pieces
        counts["cut_documents"] += len(pieces) > 1
        for piece in pieces:
            data = piece.encode("utf-8")
            digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
            if not seen.add(digest):
                counts["duplicates"] += 1
                continue
            total += len(data)
            yield Document(piece, source, split or _split(digest, config.val_fraction))
        if max_bytes is not None and total >= max_bytes:
            return


def _split(digest: bytes, val_fraction: float) -> str:
    return "val" if int.from_bytes(digest[-8:], "big") < val_fraction * 2**64 else "train"


class DigestSet:
    """A set of 16-byte digests that takes 14 bytes for each; a Python set would take about 100."""

    def __init__(self) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def add(self, digest: bytes) -> bool:
        """Add `digest`; returns whether it is new."""
        bucket = self._buckets[digest[:_BUCKET_BYTES]]
        tail = digest[_BUCKET_BYTES:]
        at = bucket.find(tail)
        while at >= 0 and at % len(tail):  # a match that spans two neighbors
            at = bucket.find(tail, at + 1)
        if at >= 0:
            return False
        bucket += tail
        return True
