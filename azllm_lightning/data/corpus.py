"""From files of text to clean, unique documents, each for training or for validation."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cleaning import (
    EOT,
    clean,
    cut,
    is_garbled,
    is_mostly_cyrillic,
    split_at_markers,
)
from azllm_lightning.data.files import Found, TextFile, check_contents, search
from azllm_lightning.data.records import read_records
from azllm_lightning.data.rows import NoTextError

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
        "end_markers": trn(
            "split at {count:,} <|endoftext|>",
            "split at {count:,} <|endoftext|>",
            counts.get("end_markers", 0),
        ),
        "kept_markers": trn(
            "{count:,} <|endoftext|> within a sentence kept as text",
            "{count:,} <|endoftext|> within sentences kept as text",
            counts.get("kept_markers", 0),
        ),
        "rows_without_text": trn(
            "{count:,} row without text skipped",
            "{count:,} rows without text skipped",
            counts.get("rows_without_text", 0),
        ),
        "rows_not_text": trn(
            "{count:,} row skipped: its field is not text",
            "{count:,} rows skipped: their field is not text",
            counts.get("rows_not_text", 0),
        ),
        "bad_utf8_lines": trn(
            "broken UTF-8 replaced in {count:,} line",
            "broken UTF-8 replaced in {count:,} lines",
            counts.get("bad_utf8_lines", 0),
        ),
        "converted_files": trn(
            "{count:,} file converted to UTF-8",
            "{count:,} files converted to UTF-8",
            counts.get("converted_files", 0),
        ),
        "mended_words": trn(
            "look-alike letters replaced in {count:,} word",
            "look-alike letters replaced in {count:,} words",
            counts.get("mended_words", 0),
        ),
        "garbled_documents": trn(
            "{count:,} document with letters garbled by a wrong encoding (ə as É™)",
            "{count:,} documents with letters garbled by a wrong encoding (ə as É™)",
            counts.get("garbled_documents", 0),
        ),
        "cyrillic_documents": trn(
            "{count:,} document in Cyrillic kept",
            "{count:,} documents in Cyrillic kept",
            counts.get("cyrillic_documents", 0),
        ),
    }
    return [phrase for kind, phrase in phrases.items() if counts.get(kind)]


def _file_texts(
    paths: list[str], setting: str, config: DataConfig, counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """(text, source) of each record in the files that `paths` name."""
    places = search(paths, setting)
    files = [file for found in places for file in found.files]
    check_contents(files)
    sources: set[str] = set()
    has_text = False
    for found in places:
        for file in found.files:
            file_source = file.name if len(files) <= MAX_SOURCES else config.name
            is_empty = True
            try:
                with file.explained_errors():
                    for text, source in read_records(file, config, counts):
                        is_empty = False
                        sources.add(source or file_source)
                        _check_sources(sources, file, config)
                        yield text, source or file_source
            except NoTextError as error:
                if file.is_given or file.format != ".json":
                    raise
                # a folder of text often has JSON that describes it
                log.warning(tr("{message}; the file is skipped", message=error))
                found.skipped.add(tr("without text"), file.name)
            else:
                if is_empty:
                    log.warning(tr("{path} contains no text", path=file.address))
            has_text |= not is_empty
        if found.skipped:
            log.warning(_summary(found))
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


def _check_sources(sources: set[str], file: TextFile, config: DataConfig) -> None:
    if len(sources) > MAX_SOURCES:
        raise ValueError(
            tr(
                "data.source_field={field}: more than {maximum} different values "
                "(in {path}); choose a field with fewer, or null",
                field=config.source_field,
                maximum=MAX_SOURCES,
                path=file.address,
            )
        )


def _summary(found: Found) -> str:
    return trn(
        "{place}: {count:,} file; skipped: {skipped}",
        "{place}: {count:,} files; skipped: {skipped}",
        len(found.files),
        place=found.place,
        skipped=found.skipped.describe(),
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
        for piece in _pieces(text, config, counts):
            data = piece.encode("utf-8")
            digest = blake2b(data, digest_size=_DIGEST_BYTES).digest()
            if not seen.add(digest):
                counts["duplicates"] += 1
                continue
            total += len(data)
            yield Document(piece, source, split or _split(digest, config.val_fraction))
        if max_bytes is not None and total >= max_bytes:
            return


def _pieces(text: str, config: DataConfig, counts: Counter[str]) -> list[str]:
    """The clean documents that `text` is made of."""
    found = []
    if is_garbled(text):
        counts["garbled_documents"] += 1
    documents = split_at_markers(clean(text, counts))
    if len(documents) > 1:
        counts["end_markers"] += len(documents) - 1
    for document in documents:
        if EOT in document:
            counts["kept_markers"] += document.count(EOT)
        pieces = cut(document, config.max_document_bytes)
        if len(pieces) > 1:
            counts["cut_documents"] += 1
        if not pieces and len(documents) == 1:
            counts["empty_documents"] += 1
        if is_mostly_cyrillic(document):
            counts["cyrillic_documents"] += 1
        found += pieces
    return found


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
