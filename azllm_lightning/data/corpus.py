"""From files of text to clean, unique documents, each for training or for validation."""

from __future__ import annotations

import contextlib
import logging
from array import array
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.shell import for_shell
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.blocks import (
    BLOCK_CHARS,
    DIGEST_BYTES,
    CleanBlock,
    Position,
    RawBlock,
    clean_block,
    in_validation,
)
from azllm_lightning.data.digest_set import DigestSet
from azllm_lightning.data.files import (
    MAX_SOURCES,
    Found,
    Meter,
    TextFile,
    check_contents,
    search,
    source_names,
)
from azllm_lightning.data.filters import (
    check_filters,
    measured,
    with_lines,
    without_repeated_lines,
)
from azllm_lightning.data.near_duplicates import SignatureIndex
from azllm_lightning.data.records import read_records
from azllm_lightning.data.removed import MAX_LISTED, FrequentLines, Place, Removal
from azllm_lightning.data.repeated_lines import LineCounter
from azllm_lightning.data.rows import NoTextError

log = logging.getLogger(__name__)

_MAX_TRIED = 20
"""Files that are tried, to find one with text next to one without."""

VALIDATED_SOURCES = 12
"""Sources with a validation loss of their own, the largest; more curves would be unreadable."""


class Document(NamedTuple):
    """A clean text of at most data.max_document_bytes; `split` is "train" or "val".

    `read_bytes` is its share of `bytes_to_read`, as far as that can be told, and `stored_bytes` its
    share of the files, as they are stored.
    """

    text: str
    source: str
    split: str
    read_bytes: float = 0.0
    stored_bytes: float = 0.0


@dataclass(frozen=True)
class Stream:
    """Text that is read up to `max_bytes`, all of it for `split` unless that is None.

    It ends before the first document with which it would be more, but has one at least. Pieces of a
    long text are documents, so that a book can end within.

    `setting` ("data.path") names its `paths`; without paths, it is generated.
    """

    setting: str
    paths: list[str]
    split: str | None
    max_bytes: int | None


def streams(config: DataConfig) -> list[Stream]:
    """The text of `config`, in the order in which it is read: that of data.val_path first.

    Its documents are then duplicates in data.path, and so kept out of training. Raises ValueError
    if data.path is not set.
    """
    if config.name == "tales":
        return [Stream("data", [], None, config.max_bytes)]
    if not config.paths:
        raise ValueError(tr("data.path is not set: name the text, data.path=FILE or FOLDER"))
    if not config.val_paths:
        return [Stream("data.path", config.paths, None, config.max_bytes)]
    val_bytes = config.max_bytes
    if val_bytes is not None:
        val_bytes = max(1, round(val_bytes * config.val_fraction))
    return [
        Stream("data.val_path", config.val_paths, "val", val_bytes),
        Stream("data.path", config.paths, "train", config.max_bytes),
    ]


def documents(
    config: DataConfig, counts: Counter[str] | None = None
) -> Generator[Document, None, None]:
    """The documents of `config` in the order of their files, without exact duplicates.

    The split of a document depends only on its text and data.val_fraction, unless data.val_path
    gives the validation text; documents of that text are kept out of training. `counts` receives
    what was dropped, split or repaired (see `describe_cleaning`), also when the reader ends before
    the text does. Raises ValueError if there is no text or it cannot be read.
    """
    check_filters(config)
    selection = Selection(config)
    try:
        yield from _kept(config, selection)
    finally:
        if counts is not None:
            counts.update(selection.counts)


def _kept(config: DataConfig, selection: Selection) -> Iterator[Document]:
    """The documents that `selection` keeps."""
    dropped = _repeated_lines(config)
    unseen = 0  # bytes read since the last document
    for number, stream in enumerate(streams(config)):
        selection.start(stream)
        for raw in raw_blocks(config, Position(number)):
            block = clean_block(raw, config.max_document_bytes)
            if dropped:
                block = without_repeated_lines(block, dropped)
            block = measured(block, config)
            kept = selection.keep(block)
            validation = is_validation(block, stream, config)
            size = int(block.sizes[kept].sum())
            unseen += raw.read_bytes
            for index in np.flatnonzero(kept):
                source = block.names[block.sources[index]]
                split = "val" if validation[index] else "train"
                text_bytes = float(block.sizes[index])
                stored = unseen / size * text_bytes
                read = stored if config.max_bytes is None else text_bytes
                yield Document(block.document(int(index)), source, split, read, stored)
            unseen = 0 if size else unseen
            if selection.is_full:
                break


def _repeated_lines(config: DataConfig) -> set[int]:
    """The hashes of the lines that data.repeated_lines removes."""
    if config.repeated_lines is None:
        return set()
    census = LineCensus(config)
    for number, stream in enumerate(streams(config)):
        census.start(stream)
        for raw in raw_blocks(config, Position(number)):
            census.add(with_lines(clean_block(raw, config.max_document_bytes)))
            if census.is_full:
                break
    return set(census.frequent.digests.tolist())


class LineCensus:
    """Counts the lines of the text, of which exact duplicates count once.

    It counts as many bytes of each stream as are wanted of it, duplicates not included.
    """

    def __init__(self, config: DataConfig) -> None:
        assert config.repeated_lines is not None
        self._limit = config.repeated_lines
        self._max_bytes: int | None = None
        self._bytes = 0
        self._is_full = False
        self._seen = DigestSet()
        self._lines = LineCounter()

    @property
    def is_full(self) -> bool:
        """Whether enough of the stream is counted."""
        return self._is_full

    @property
    def frequent(self) -> FrequentLines:
        """The lines that occur in more than data.repeated_lines documents."""
        return FrequentLines(*self._lines.above(self._limit))

    def add(self, block: CleanBlock) -> int:
        """Count the lines of a block that has their hashes; returns the bytes that were counted."""
        new = self._seen.are_new(block.digests)
        if self._max_bytes is not None:
            ends = np.cumsum(block.sizes * new)
            room = self._max_bytes - self._bytes
            count = int(np.searchsorted(ends, room, side="right"))
            self._is_full = count < len(ends)
            if not self._bytes and self._is_full:  # one document at least
                count = max(count, int(np.flatnonzero(new)[0]) + 1)
            new[count:] = False
        self._seen.update(block.digests[new])
        self._lines.add(block.lines[np.repeat(new, block.line_counts)])
        counted = int(block.sizes[new].sum())
        self._bytes += counted
        return counted

    def start(self, stream: Stream) -> None:
        """Go on with the text of `stream`."""
        self._max_bytes = stream.max_bytes
        self._bytes = 0
        self._is_full = False


def is_validation(block: CleanBlock, stream: Stream, config: DataConfig) -> npt.NDArray[np.bool_]:
    """Whether each document of a block of `stream` is for validation (N,)."""
    if stream.split is not None:
        return np.full(len(block.ends), stream.split == "val")
    return in_validation(block.digests, config.val_fraction)


class Selection:
    """Chooses among documents, block by block: those that are new and pass the filters of the
    config, until there are enough.

    `removals` are the first documents that did not pass, of each filter.
    """

    def __init__(self, config: DataConfig) -> None:
        self._source_field = config.source_field
        self._index: SignatureIndex | None = None
        if config.near_duplicates is not None:
            self._index = SignatureIndex(config.near_duplicates)
        self._indexed = array("q")  # block and document of each signature, alternately
        self._blocks = 0
        self.removals: list[Removal] = []
        self._names: set[str] = set()
        self._seen = DigestSet()
        self._max_bytes: int | None = None
        self._bytes = 0
        self._is_full = False
        self._counts: Counter[str] = Counter()
        self._read: Counter[str] = Counter()

    @property
    def counts(self) -> Counter[str]:
        """What was dropped, split or repaired so far; see `describe_cleaning`."""
        return self._counts + self._read

    @property
    def is_full(self) -> bool:
        """Whether the stream has given all the text that it should."""
        return self._is_full

    def start(self, stream: Stream) -> None:
        """Go on with the text of `stream`."""
        self._max_bytes = stream.max_bytes
        self._bytes = 0
        self._is_full = False
        self._counts += self._read
        self._read.clear()

    def keep(self, block: CleanBlock) -> npt.NDArray[np.bool_]:
        """Whether to keep each document of `block` (N,)."""
        kept = np.zeros(len(block.ends), np.bool_)
        digests = block.digests.tobytes()
        known = self._seen.contains(block.digests).tolist()
        new: set[bytes] = set()
        sizes = block.sizes.tolist()
        stop = 0
        for number, pieces in enumerate(block.pieces.tolist()):
            if self._is_full:
                break
            start, stop = stop, stop + pieces
            for index in range(start, stop):
                digest = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                is_duplicate = known[index] or digest in new
                # Before it is remembered: another stream may still have room for it.
                if not is_duplicate and not self._has_room(sizes[index]):
                    self._is_full = True
                    break
                reason = self._reason(block, index, is_duplicate)
                if reason in (None, "near_duplicates"):
                    new.add(digest)
                if reason is None:
                    kept[index] = True
                    self._bytes += sizes[index]
                else:
                    self._counts[reason] += 1
            if not self._is_full or kept[start:stop].any():
                self._counts.update(block.counts.get(str(number), {}))
        self._seen.update(np.frombuffer(b"".join(new), np.uint8).reshape(-1, DIGEST_BYTES))
        self._read = Counter(block.end.counts)
        self._names.update(block.names)
        if len(self._names) > MAX_SOURCES:
            raise ValueError(
                tr(
                    "data.source_field={field}: more than {maximum} different values; choose a "
                    "field with fewer, or null",
                    field=self._source_field,
                    maximum=MAX_SOURCES,
                )
            )
        self._blocks += 1
        return kept

    def _has_room(self, size: int) -> bool:
        """Whether a document of `size` bytes may follow those of the stream."""
        is_first = self._bytes == 0
        return is_first or self._max_bytes is None or self._bytes + size <= self._max_bytes

    def _reason(self, block: CleanBlock, index: int, is_duplicate: bool) -> str | None:
        """What counts a document that is removed; None if it is kept."""
        place = Place(self._blocks, index)
        if len(block.other_languages) and block.other_languages[index]:
            language = str(block.other_languages[index])
            return self._remove("other_languages", Removal(place, language=language))
        if is_duplicate:
            return "duplicates"
        if self._index is not None:
            similar = self._index.find(block.signatures[index])
            if similar is not None:
                at = 2 * similar.number
                original = Place(*self._indexed[at : at + 2])
                removal = Removal(place, similar=original, similarity=similar.similarity)
                return self._remove("near_duplicates", removal)
            self._index.add(block.signatures[index])
            self._indexed.extend(place)
        return None

    def _remove(self, reason: str, removal: Removal) -> str:
        if self._counts[reason] < MAX_LISTED:
            self.removals.append(removal)
        return reason


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
        "near_duplicates": trn(
            "{count:,} near-duplicate removed",
            "{count:,} near-duplicates removed",
            counts.get("near_duplicates", 0),
        ),
        "other_languages": trn(
            "{count:,} document in another language removed",
            "{count:,} documents in other languages removed",
            counts.get("other_languages", 0),
        ),
        "repeated_lines": trn(
            "{count:,} repeated line removed",
            "{count:,} repeated lines removed",
            counts.get("repeated_lines", 0),
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
            "broken characters replaced in {count:,} line",
            "broken characters replaced in {count:,} lines",
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
            "{count:,} document with letters garbled by a wrong encoding (ə as É™ or Й™)",
            "{count:,} documents with letters garbled by a wrong encoding (ə as É™ or Й™)",
            counts.get("garbled_documents", 0),
        ),
        "documents_with_lost_letters": trn(
            "{count:,} document with letters lost in saving (ə became ?; save the file again, "
            "as UTF-8)",
            "{count:,} documents with letters lost in saving (ə became ?; save the files again, "
            "as UTF-8)",
            counts.get("documents_with_lost_letters", 0),
        ),
        "cyrillic_documents": trn(
            "{count:,} document in Cyrillic kept",
            "{count:,} documents in Cyrillic kept",
            counts.get("cyrillic_documents", 0),
        ),
    }
    return [phrase for kind, phrase in phrases.items() if counts.get(kind)]


def raw_blocks(config: DataConfig, start: Position, stop: int | None = None) -> Iterator[RawBlock]:
    """The texts of one stream from `start` to file number `stop` (None: all), in blocks.

    The last block may be empty. Raises ValueError if the text cannot be read, or if all files of
    the stream were read and have none.
    """
    texts: list[str] = []
    sources: list[str] = []
    size = 0
    read_bytes = 0
    end = start
    for text, source, end, num_bytes in _texts(config, streams(config)[start.stream], start, stop):
        read_bytes += num_bytes
        if text is None:
            continue
        texts.append(text)
        sources.append(source)
        size += len(text)
        if size >= BLOCK_CHARS:
            yield RawBlock(texts, sources, end, False, read_bytes)
            texts = []
            sources = []
            size = 0
            read_bytes = 0
    yield RawBlock(texts, sources, end, True, read_bytes)


def bytes_to_read(config: DataConfig) -> int | None:
    """The bytes of all files of `config`, as they are stored; None if they are unknown.

    With data.max_bytes, which ends the reading earlier, the bytes of text to be kept.
    """
    if config.max_bytes is not None:
        return sum(stream.max_bytes or 0 for stream in streams(config))
    sizes = [stored_bytes(config, stream) for stream in streams(config)]
    return None if None in sizes else sum(filter(None, sizes))


def stored_bytes(config: DataConfig, stream: Stream) -> int | None:
    """The bytes of all files of `stream`, as they are stored; None if they are unknown."""
    if not stream.paths:
        return config.tales_bytes
    files = stream_files(stream)
    sizes = [file.size() for file in files]
    # A local file may be empty; of others, 0 means that it is not known.
    is_known = all(size or file.is_local for file, size in zip(files, sizes, strict=True))
    return sum(sizes) if is_known else None


def stream_files(stream: Stream) -> list[TextFile]:
    """The files of `stream`, in the order in which they are read."""
    return [file for found in search(stream.paths, stream.setting) for file in found.files]


def no_text(stream: Stream, files: int) -> ValueError:
    """The error that none of the files of `stream` has text."""
    return ValueError(
        trn(
            "{setting}={paths}: no text in {count:,} file",
            "{setting}={paths}: no text in {count:,} files",
            files,
            setting=stream.setting,
            paths=", ".join(stream.paths),
        )
    )


def warn_of_skipped(config: DataConfig) -> None:
    """Count the files that are not read at local paths, as reading their text does at its end."""
    for stream in streams(config) if config.paths else []:
        local = [path for path in stream.paths if "://" not in path]
        with contextlib.suppress(ValueError, OSError):  # the text of a prepared folder may be gone
            _warn_of_skipped_in(search(local, stream.setting))


def _texts(
    config: DataConfig, stream: Stream, start: Position, stop: int | None
) -> Iterator[tuple[str | None, str, Position, int]]:
    """(text, source, position after it, bytes read for it) of each text of `stream` from `start`
    to file `stop`.

    The text is None where a file ends.
    """
    if not stream.paths:
        yield from _tales(config, start)
        return
    places = search(stream.paths, stream.setting)
    files = [(file, found) for found in places for file in found.files]
    if stop is None:
        stop = len(files)
    check_contents([file for file, _ in files[start.file : stop]])
    before = Counter(start.counts)
    has_text = start.file > 0 or start.texts > 0
    file_sources: list[str] = []
    if _are_sources(files, stream, config):
        file_sources = source_names([file for file, _ in files])
    for index in range(start.file, stop):
        file, found = files[index]
        file_source = file_sources[index] if file_sources else config.name
        skipped = start.texts if index == start.file else 0
        counts: Counter[str] = Counter()
        meter = Meter()
        done = start.file_bytes if index == start.file else 0
        for number, text, source in _numbered(file, found, config, counts, meter):
            has_text = True
            if number > skipped:
                end = Position(start.stream, index, number, dict(before), meter.num_bytes)
                yield text, source or file_source, end, meter.num_bytes - done
                done = meter.num_bytes
        before += counts
        rest = (file.size() or meter.num_bytes) - done
        yield None, "", Position(start.stream, index + 1, 0, dict(before)), rest
    if stop < len(files):
        return
    _warn_of_skipped_in(places)
    if not has_text:
        raise no_text(stream, len(files))


def _are_sources(files: Sequence[object], stream: Stream, config: DataConfig) -> bool:
    """Whether each file is a source: those of all streams, `files` and the others, are few."""
    others = (each for each in streams(config) if each != stream)
    return len(files) + sum(len(stream_files(each)) for each in others) <= MAX_SOURCES


def _tales(config: DataConfig, start: Position) -> Iterator[tuple[str, str, Position, int]]:
    from azllm_lightning.azerbaijani.tales import write_tales

    for number, tale in enumerate(write_tales(config.tales_bytes, config.tales_seed), 1):
        if number > start.texts:
            yield tale, config.name, replace(start, texts=number), len(tale.encode("utf-8"))


def _numbered(
    file: TextFile, found: Found, config: DataConfig, counts: Counter[str], meter: Meter
) -> Iterator[tuple[int, str, str | None]]:
    """(number from 1, text, source) of each record of a file of `found`."""
    number = 0
    try:
        with file.explained_errors():
            for number, (text, source) in enumerate(read_records(file, config, counts, meter), 1):
                yield number, text, source
    except NoTextError as error:
        if file.is_given:
            raise
        if file.format != ".json":
            raise _with_readable_path(error, file, found, config) from None
        # a folder of text often has JSON that describes it
        log.warning(tr("{message}; the file is skipped", message=error))
        found.skipped.add(tr("without text"), file.name)
    else:
        if number == 0:
            log.warning(tr("{path} contains no text", path=file.address))


def _with_readable_path(
    error: NoTextError, file: TextFile, found: Found, config: DataConfig
) -> NoTextError:
    """The `error` of a file of a folder; if others there have text, with the path of those alone.

    Another field, which the error names, would only move it to the others.
    """
    others = [each for each in found.files if each != file and each.is_local]
    readable = [each for each in others[:_MAX_TRIED] if _has_text(each, config)]
    if not readable:
        return error
    setting, _, given = found.place.partition("=")
    paths = dict.fromkeys(_path_without(file, each, given, found.files) for each in readable)
    named = [f"'{path}'" if "," in path else path for path in paths]
    value = named[0] if len(named) == 1 else f"[{','.join(named)}]"
    return NoTextError(
        tr(
            "{path}: no text in the field '{field}', but {other} has text. Name the files to read: "
            "{setting}",
            path=file.address,
            field=config.text_field,
            other=readable[0].name,
            setting=for_shell(f"{setting}={value}"),
        )
    )


def _has_text(file: TextFile, config: DataConfig) -> bool:
    try:
        return any(True for _ in read_records(file, config, Counter()))
    except (ValueError, OSError):
        return False


def _path_without(file: TextFile, other: TextFile, given: str, files: Sequence[TextFile]) -> str:
    """A glob in the folder `given` of what ends like `other`, unless `file` does; else `other`."""
    if "://" in given or set("*?[") & set(given):
        return other.address
    lower = other.name.lower()  # which is longer if the name has an İ
    ending = other.name[lower.rindex(other.format) - len(lower) :]
    if file.name.endswith(ending):
        return other.address
    alike = {PurePosixPath(each.path).parent for each in files if each.name.endswith(ending)}
    depth = "*" if alike == {PurePosixPath(Path(given).absolute().as_posix())} else "**/*"
    return f"{given.rstrip('/')}/{depth}{ending}"


def _warn_of_skipped_in(places: Sequence[Found]) -> None:
    for found in places:
        if found.skipped:
            log.warning(
                trn(
                    "{place}: {count:,} file; skipped: {skipped}",
                    "{place}: {count:,} files; skipped: {skipped}",
                    len(found.files),
                    place=found.place,
                    skipped=found.skipped.describe(),
                )
            )
