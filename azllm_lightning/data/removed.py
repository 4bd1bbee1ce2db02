"""removed.jsonl: what the filters removed from prepared text."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.local_paths import escape_surrogates
from azllm_lightning.data.blocks import read_block
from azllm_lightning.data.repeated_lines import line_digest

REMOVED = "removed.jsonl"

MAX_LISTED = 1000
"""The most documents or lines that are listed per reason."""

_EXCERPT = 300
_SHOWN = 2
_SHOWN_CHARS = 60


class Place(NamedTuple):
    """A document: its number in the block with that number."""

    block: int
    document: int


class Removal(NamedTuple):
    """A document that was removed: as one in another `language`, or as too `similar` to one that
    was kept.
    """

    place: Place
    language: str = ""
    similar: Place | None = None
    similarity: float = 0.0


class FrequentLines(NamedTuple):
    """The hashes of lines, and in how many documents each of them is."""

    digests: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]


def write_removed(path: Path, removals: Sequence[Removal], blocks: Sequence[Path]) -> None:
    """Write the beginnings of the documents to `path`, one JSON object per line."""
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for removal in removals:
        for place in filter(None, (removal.place, removal.similar)):
            wanted[place.block].add(place.document)
    texts: dict[Place, tuple[str, str]] = {}
    for number, indices in sorted(wanted.items()):
        block = read_block(blocks[number])
        assert block is not None
        for index in indices:
            source = block.names[block.sources[index]]
            texts[Place(number, index)] = (block.document(index)[:_EXCERPT], source)
    with path.open("w", encoding="utf-8") as file:
        for removal in removals:
            text, source = texts[removal.place]
            row: dict[str, Any] = {"reason": "language", "language": removal.language}
            if removal.similar is not None:
                row = {
                    "reason": "near_duplicate",
                    "similarity": round(removal.similarity, 3),
                    "similar_to": texts[removal.similar][0],
                }
            file.write(_json_line({**row, "source": source, "text": text}))


def add_lines(path: Path, frequent: FrequentLines, blocks: Sequence[Path]) -> None:
    """Add the most frequent lines to `path`; `blocks` still have them."""
    order = np.argsort(-frequent.counts, kind="stable")[:MAX_LISTED]
    documents = {int(frequent.digests[index]): int(frequent.counts[index]) for index in order}
    found: dict[int, str] = {}
    for block_path in blocks:
        missing = np.array([key for key in documents if key not in found], np.uint64)
        if not len(missing):
            break
        found.update(_lines(block_path, missing))
    with path.open("a", encoding="utf-8") as file:
        for digest, count in documents.items():
            if digest in found:
                row = {"reason": "repeated_line", "documents": count, "text": found[digest]}
                file.write(_json_line(row))


def _json_line(row: dict[str, Any]) -> str:
    return escape_surrogates(json.dumps(row, ensure_ascii=False)) + "\n"


def _lines(path: Path, wanted: npt.NDArray[np.uint64]) -> Iterator[tuple[int, str]]:
    """(hash, line) of the lines with the hashes `wanted` that a block has."""
    block = read_block(path)
    assert block is not None
    matches = np.isin(block.lines, wanted)
    documents = np.repeat(np.arange(len(block.line_counts)), block.line_counts)[matches]
    hashes = set(wanted.tolist())
    for document in dict.fromkeys(documents.tolist()):
        for line in block.document(document).split("\n"):
            digest = line_digest(line)
            if digest in hashes:
                hashes.remove(digest)
                yield digest, line.strip()[:_EXCERPT]


def read_removed(folder: Path) -> list[dict[str, Any]]:
    """The rows of removed.jsonl in a prepared folder; none if it has no such file."""
    path = folder / REMOVED
    if not path.is_file():
        return []
    # not splitlines(), which knows more line breaks than JSON escapes
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def examples(folder: Path) -> list[str]:
    """The first rows of each reason in the removed.jsonl of a prepared folder, as short lines."""
    lines = []
    shown: Counter[str] = Counter()
    for row in read_removed(folder):
        reason = row["reason"]
        shown[reason] += 1
        if shown[reason] > _SHOWN:
            continue
        text = " ".join(row["text"].split())[:_SHOWN_CHARS]
        if reason == "near_duplicate":
            label = tr("near-duplicate ({similarity:.2f})", similarity=row["similarity"])
        elif reason == "language":
            label = tr("language: {code}", code=row["language"])
        else:
            label = tr("line of {count:,} documents", count=row["documents"])
        lines.append(f"{label}: {text}")
    return lines
