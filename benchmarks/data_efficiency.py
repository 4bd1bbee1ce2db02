"""Parts of one text by size, and how much text a curve of losses stands for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

VAL_SHARE = 0.05
"""Of the text, for validation."""


def write_parts(text: Path, folder: Path, sizes: Sequence[float]) -> list[float]:
    """Write val.jsonl and, for each of `sizes` in MB, train_<size>.jsonl; returns the sizes.

    `text` has one JSON object with the field `text` per line. Documents are in the order of their
    hashes, so that each part has random ones and a larger part has those of the smaller. The last
    size is that of all the text if `sizes` go beyond it.
    """
    documents = []
    for line in text.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)["text"].encode()
        documents.append((hashlib.blake2b(content).digest(), len(content), line))
    documents.sort()
    total = sum(size for _, size, _ in documents)
    val, rest = cut(documents, VAL_SHARE * total)
    write(folder / "val.jsonl", val)
    most = sum(size for _, size, _ in rest) / 1e6
    smaller = sorted(mb for mb in sizes if mb < most)
    actual = smaller if len(smaller) == len(sizes) else [*smaller, round(most, 2)]
    for mb in actual:
        part = rest if mb == round(most, 2) else cut(rest, mb * 1e6)[0]
        write(folder / f"train_{mb:g}.jsonl", part)
    return actual


Document = tuple[bytes, int, str]
"""The hash of a document's text, its bytes, and its line."""


def cut(documents: list[Document], num_bytes: float) -> tuple[list[Document], list[Document]]:
    """The first documents that have `num_bytes` together, and the others."""
    seen = 0
    for count, (_, size, _) in enumerate(documents):
        if seen >= num_bytes:
            return documents[:count], documents[count:]
        seen += size
    return documents, []


def write(path: Path, documents: list[Document]) -> None:
    """Write the lines of `documents`, unless the file has them."""
    lines = "".join(f"{line}\n" for _, _, line in documents)
    if not path.exists() or path.read_text(encoding="utf-8") != lines:
        path.write_text(lines, encoding="utf-8", newline="\n")


def text_for_loss(curve: Mapping[float, float], loss: float) -> float | None:
    """The MB of text with which a model whose losses by MB are `curve` reaches `loss`.

    Between two sizes, the loss is taken as linear in the logarithm of the size. The smallest size
    if its loss is low enough; None if no size reaches it.
    """
    before: tuple[float, float] | None = None
    for mb, found in sorted(curve.items()):
        if before is not None and found > before[1]:
            continue  # more text does not harm: this is noise
        if found <= loss:
            if before is None:
                return mb
            share = (before[1] - loss) / (before[1] - found)
            return math.exp(math.log(before[0]) + share * math.log(mb / before[0]))
        before = (mb, found)
    return None
