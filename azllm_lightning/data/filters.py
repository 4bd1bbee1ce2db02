"""The filters of data.languages, data.near_duplicates and data.repeated_lines, on a block."""

from __future__ import annotations

import importlib
from collections.abc import Container, Iterator
from dataclasses import replace
from importlib import metadata

import numpy as np

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.blocks import CleanBlock, with_documents
from azllm_lightning.data.languages import check_languages, other_languages
from azllm_lightning.data.near_duplicates import signatures
from azllm_lightning.data.repeated_lines import DIGEST_TYPE, line_digests, without_lines


def packages(config: DataConfig) -> dict[str, str]:
    """The package that each filter of `config` needs, by the name of the setting."""
    needed = {}
    if config.languages is not None:
        needed["languages"] = "py3langid"
    if config.near_duplicates is not None:
        needed["near_duplicates"] = "rensa"
    return needed


def check_filters(config: DataConfig) -> None:
    """Raise ValueError if a package is missing or a language is not known."""
    for setting, package in packages(config).items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                tr(
                    "data.{setting} needs the package {package} ({error}): "
                    'pip install "azllm-lightning[quality]"',
                    setting=setting,
                    package=package,
                    error=error,
                )
            ) from None
    if config.languages is not None:
        check_languages(config.language_codes)


def versions(config: DataConfig) -> list[str]:
    """The versions of what decides which documents are kept; empty without filters."""
    check_filters(config)
    return [f"{name} {metadata.version(name)}" for name in packages(config).values()]


def measured(block: CleanBlock, config: DataConfig) -> CleanBlock:
    """`block` with the languages and signatures that the filters of `config` need."""
    if config.languages is not None:
        codes = other_languages(_documents(block), config.language_codes)
        block = replace(block, other_languages=np.array(codes, "U3"))
    if config.near_duplicates is not None:
        block = replace(block, signatures=signatures(_documents(block)))
    return block


def with_lines(block: CleanBlock) -> CleanBlock:
    """`block` with the hashes of the lines of its documents."""
    digests = [sorted(line_digests(text)) for text in _documents(block)]
    return replace(
        block,
        lines=np.array([digest for of_text in digests for digest in of_text], DIGEST_TYPE),
        line_counts=np.array([len(of_text) for of_text in digests], np.int64),
    )


def without_repeated_lines(block: CleanBlock, dropped: Container[int]) -> CleanBlock:
    """`block` without the lines whose hashes are in `dropped`, and what is then empty."""
    texts: list[str] = []
    is_left = np.zeros(len(block.ends), np.bool_)
    counts = {number: dict(of_text) for number, of_text in block.counts.items()}
    pieces = block.pieces.copy()
    raw_numbers = np.repeat(np.arange(len(pieces)), pieces)
    for index, text in enumerate(_documents(block)):
        rest, removed = without_lines(text, dropped)
        number = int(raw_numbers[index])
        if removed:
            of_text = counts.setdefault(str(number), {})
            of_text["repeated_lines"] = of_text.get("repeated_lines", 0) + removed
            if not rest:
                of_text["empty_documents"] = of_text.get("empty_documents", 0) + 1
                pieces[number] -= 1
                continue
        texts.append(rest)
        is_left[index] = True
    return replace(
        with_documents(block, texts), sources=block.sources[is_left], pieces=pieces, counts=counts
    )


def _documents(block: CleanBlock) -> Iterator[str]:
    return map(block.document, range(len(block.ends)))
