"""Whether prepared text fills its windows; if not, how much would, and which settings help."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents
from azllm_lightning.data.shards import SPLITS, Manifest

log = logging.getLogger(__name__)

FEW_WINDOWS = 10
"""Below this many windows of validation text, a warning says that val_loss is inexact."""

VAL_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The values of data.val_fraction that are tried."""

SMALLEST_PIECE = 256
SMALLEST_BLOCK = 16
"""Lower values of data.max_document_bytes and data.block_size are not proposed."""

MEAN_PIECE = 0.75
"""Size of the pieces of a long text, as a share of data.max_document_bytes (`cleaning.cut`)."""

TRIED_BYTES = 1_000_000
"""So much of the text is split to try a setting; the rest can only add to either split."""

MARGIN = 1.2
"""Tokens may be longer than they are now by this factor."""

BYTES_PER_TOKEN = 5.0
"""Of Azerbaijani, about; tokens that were learned from little text are shorter."""

SEVERAL_DOCUMENTS = 10
"""So many show how long the others are."""


def check_enough(config: DataConfig, manifest: Manifest) -> None:
    """Raise ValueError, with the amount of text needed, unless each split fills a window."""
    for name, split in manifest.splits.items():
        if split.tokens <= config.block_size:
            raise too_little(config, manifest, name)


def warn_of_few_windows(config: DataConfig, manifest: Manifest) -> None:
    """Warn if the validation split has so few windows that its loss is inexact."""
    windows = manifest.splits["val"].tokens // (config.block_size + 1)
    if windows < FEW_WINDOWS:
        remedies = _remedies(config, manifest, FEW_WINDOWS) or [_more_text(config, manifest, "val")]
        log.warning(
            trn(
                "the validation text is {count} window of {block_size} tokens: val_loss will be "
                "inexact. {remedy}",
                "the validation text is only {count} windows of {block_size} tokens: val_loss "
                "will be inexact. {remedy}",
                windows,
                block_size=config.block_size,
                remedy=" ".join([*remedies, *_of_prepared(config)]),
            )
        )


def too_little(config: DataConfig, manifest: Manifest, split: str) -> ValueError:
    """The error that `split` does not fill a window, with the amount of text needed."""
    message = tr(
        "too little text: a window of data.block_size={block_size} needs {needed:,} "
        "tokens, but the {split} split has {tokens:,}.",
        block_size=config.block_size,
        needed=config.block_size + 1,
        split=split,
        tokens=manifest.splits[split].tokens,
    )
    advice = [*_amounts(config, manifest, split), *_of_prepared(config)]
    return ValueError(" ".join([message, *_remedies(config, manifest, 1), *advice]))


def _of_prepared(config: DataConfig) -> list[str]:
    """A sentence on the folder that keeps the text as it is now, if data.dir names one."""
    if config.dir is None:
        return []
    return [
        tr(
            "data.dir={folder} keeps the text as it was prepared: to prepare it anew, delete that "
            "folder or name another.",
            folder=config.dir,
        )
    ]


# Settings


def _remedies(config: DataConfig, manifest: Manifest, windows: int) -> list[str]:
    """A sentence with the settings that give each split so many windows of this very text."""
    settings: list[str] = []
    if not config.val_paths:
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # what reading warns of has been said
        try:
            found = _working(config, _bytes_per_token(config, manifest), windows)
            settings += [setting for setting in found if setting]
        except (ValueError, OSError):  # the text of a prepared folder may be gone
            pass
        finally:
            logging.disable(level)
    tokens = min(split.tokens for split in manifest.splits.values()) // windows
    block_size = 1 << max(0, (tokens - 1).bit_length() - 1)
    if SMALLEST_BLOCK <= block_size < config.block_size:
        settings.append(f"data.block_size={block_size}")
    if not settings:
        return []
    *others, last = settings
    if not others:
        return [tr("Set {setting}.", setting=last)]
    return [tr("Set {settings} or {last}.", settings=", ".join(others), last=last)]


def _working(config: DataConfig, bytes_per_token: float, windows: int) -> Iterator[str]:
    """The nearest data.val_fraction and data.max_document_bytes that work, if any does."""
    if any("://" in path for path in config.paths):  # not to be downloaded for this
        return
    wanted = MARGIN * windows * (config.block_size + 1) * bytes_per_token
    now = config.val_fraction
    fractions = sorted((each for each in VAL_FRACTIONS if each != now), key=lambda f: abs(f - now))
    for fraction in fractions:
        if _fills(replace(config, val_fraction=fraction), wanted):
            yield f"data.val_fraction={fraction}"
            break
    size = 1 << (config.max_document_bytes - 1).bit_length() - 1  # a power of two below it
    while size >= SMALLEST_PIECE:
        if _fills(replace(config, max_document_bytes=size), wanted):
            yield f"data.max_document_bytes={size}"
            break
        size //= 2


def _fills(config: DataConfig, wanted: float) -> bool:
    """Whether each split of `config` has the `wanted` bytes of text."""
    limit = min(TRIED_BYTES, config.max_bytes or TRIED_BYTES)
    missing = dict.fromkeys(SPLITS, wanted)
    for document in documents(replace(config, max_bytes=limit)):
        missing[document.split] -= len(document.text.encode("utf-8"))
        if all(rest <= 0 for rest in missing.values()):
            return True
    return False


# Amounts


def _amounts(config: DataConfig, manifest: Manifest, split: str) -> list[str]:
    """Sentences on how much text there is, and how much would be enough."""
    given = sum(each.text_bytes for each in manifest.splits.values())
    duplicates = manifest.cleaning.get("duplicates", 0)
    if duplicates and config.val_paths and split == "train":
        return [
            trn(
                "{count:,} document was left out as a duplicate: what is in data.val_path too is "
                "not trained on.",
                "{count:,} documents were left out as duplicates: what is in data.val_path too is "
                "not trained on.",
                duplicates,
            )
        ]
    sentences = []
    if duplicates:
        sentences = [
            trn(
                "{given:,.1f} kB are left after {count:,} duplicate was removed (of documents, and "
                "of the pieces of at most {piece:,} bytes that long ones are split into).",
                "{given:,.1f} kB are left after {count:,} duplicates were removed (of documents, "
                "and of the pieces of at most {piece:,} bytes that long ones are split into).",
                duplicates,
                given=given / 1000,
                piece=config.max_document_bytes,
            )
        ]
    return [*sentences, _more_text(config, manifest, split)]


def _more_text(config: DataConfig, manifest: Manifest, split: str) -> str:
    """The sentence on how much text fills a window, or FEW_WINDOWS of them if one is filled."""
    is_filled = manifest.splits[split].tokens > config.block_size
    windows = FEW_WINDOWS if is_filled else 1
    window = windows * (config.block_size + 1) * _bytes_per_token(config, manifest)
    if config.val_paths:
        return tr(
            "Need about {wanted:,} kB of text in data.{setting}, got {given:,.1f} kB.",
            wanted=math.ceil(MARGIN * window / 1000),
            setting="val_path" if split == "val" else "path",
            given=manifest.splits[split].text_bytes / 1000,
        )
    given = sum(each.text_bytes for each in manifest.splits.values())
    piece, limit = _piece(config, manifest, window)
    count = math.ceil(window / piece)
    wanted = _likely(count) * piece / min(config.val_fraction, 1 - config.val_fraction)
    if wanted <= given:  # bad luck so far, and chance has no memory
        wanted += given
    settings = [f"data.max_document_bytes={limit}"] if limit else []
    if config.name == "tales":
        settings.append(f"data.tales_bytes={math.ceil(wanted)}")
    elif config.max_bytes is not None and wanted > config.max_bytes:
        settings.append(f"data.max_bytes={math.ceil(wanted)}")
    elif limit:
        return tr(
            "With {setting}, about {wanted:,} kB of text are enough; there are {given:,.1f} kB.",
            setting=settings[0],
            wanted=math.ceil(wanted / 1000),
            given=given / 1000,
        )
    else:
        return tr(
            "About {wanted:,} kB of text are enough; there are {given:,.1f} kB.",
            wanted=math.ceil(wanted / 1000),
            given=given / 1000,
        )
    return tr("Set {setting}.", setting=" ".join(settings))


def _piece(config: DataConfig, manifest: Manifest, window: float) -> tuple[float, int | None]:
    """The bytes of a document, and what data.max_document_bytes must be lowered to for that.

    A whole document is in one split or the other: if they are much longer than a window, it takes
    a lot of text until one of them is for validation. Of few documents, nobody knows how long
    those to come will be.
    """
    longest = max(SMALLEST_PIECE, 1 << int(window).bit_length() - 1)
    number = sum(each.documents for each in manifest.splits.values())
    mean = sum(each.text_bytes for each in manifest.splits.values()) / max(1, number)
    if number >= SEVERAL_DOCUMENTS and mean <= longest:
        return mean, None
    if config.max_document_bytes <= longest:
        return MEAN_PIECE * config.max_document_bytes, None
    return MEAN_PIECE * longest, longest


def _likely(count: int) -> float:
    """How many documents to expect in a split so that nine times in ten it has `count`.

    The quantile of a gamma distribution, by Wilson and Hilferty.
    """
    return float(count * (1 - 1 / (9 * count) + 1.2816 / (3 * math.sqrt(count))) ** 3)


def _bytes_per_token(config: DataConfig, manifest: Manifest) -> float:
    """How much text a token is, once there is enough of it."""
    tokens = sum(each.tokens for each in manifest.splits.values())
    if not tokens:
        return BYTES_PER_TOKEN
    found = sum(each.text_bytes for each in manifest.splits.values()) / tokens
    is_learning = config.tokenizer is None and manifest.vocab_size < config.vocab_size
    return max(found, BYTES_PER_TOKEN) if is_learning else found
