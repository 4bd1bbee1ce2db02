"""Search a folder for text, and keep account of what is skipped."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from azllm_lightning.cli.messages import tr

FORMATS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")

METADATA = frozenset(
    "added_tokens.json config.json dataset_dict.json dataset_info.json dataset_infos.json "
    "evaluation.json generation_config.json manifest.json model.safetensors.index.json "
    "package.json preprocessor_config.json special_tokens_map.json state.json summary.json "
    "tokenizer.json tokenizer_config.json vocab.json".split()
)
"""Names of files that describe data or models; in a folder they are not text."""

_MAX_REASONS = 8


def format_of(name: str) -> str | None:
    """The one of FORMATS that the name of a file has, before the ending of a compression."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        path = PurePosixPath(path.stem)
    return path.suffix if path.suffix in FORMATS else None


class Skipped:
    """Files that are not read, by reason, with an example of each."""

    def __init__(self) -> None:
        self._examples: dict[str, str] = {}
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, reason: str, path: str) -> None:
        """Count a file, or all that is in a folder, as skipped."""
        self._counts[reason] += 1
        self._examples.setdefault(reason, path)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def describe(self) -> str:
        """Such as ".pdf 3 (a.pdf, ...), hidden 1 (.git)"."""
        reasons = sorted(self._counts, key=lambda reason: -self._counts[reason])
        phrases = []
        for reason in reasons[:_MAX_REASONS]:
            more = ", ..." if self._counts[reason] > 1 else ""
            phrases.append(f"{reason} {self._counts[reason]:,} ({self._examples[reason]}{more})")
        if len(reasons) > _MAX_REASONS:
            rest = sum(self._counts[reason] for reason in reasons[_MAX_REASONS:])
            phrases.append(tr("others {count:,}", count=rest))
        return ", ".join(phrases)


def supported_files(folder: str, skipped: Skipped) -> Iterator[str]:
    """The paths of the files of text in `folder` and its subfolders, in no order.

    Linked folders are searched as well, each folder once.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            found = Path(current).stat()
            with os.scandir(current) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped.add(_unreadable(error), _shown(current, folder))
            continue
        if (found.st_dev, found.st_ino) in seen and found.st_ino:
            skipped.add(tr("link to a folder that is read anyway"), _shown(current, folder))
            continue
        seen.add((found.st_dev, found.st_ino))
        content = "" if current == folder else _what_else({entry.name for entry in inside})
        if content:
            skipped.add(content, _shown(current, folder))
            continue
        folders = []
        for entry in inside:
            reason = why_skipped(entry.path, entry.name)
            if reason == "":
                yield entry.path
            elif reason is None:
                folders.append(entry.path)
            else:
                skipped.add(reason, _shown(entry.path, folder))
        # `pending` is used from its end: links last, so that a folder is found at its own place
        pending = [path for path in folders if Path(path).is_symlink()] + pending
        pending += [path for path in folders if not Path(path).is_symlink()]


def _what_else(names: set[str]) -> str:
    """What a folder with files of these `names` has that is not searched; "" for any other."""
    if ".hydra" in names:
        return tr("folder of a run")
    return tr("prepared text") if {"manifest.json", "tokenizer.json"} <= names else ""


def why_skipped(path: str, name: str) -> str | None:
    """Why a file in a folder is not read; "" if it is, None for a folder to be searched."""
    if name.startswith("."):
        return tr("hidden")
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        return _unreadable(error, is_link=Path(path).is_symlink())
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return special_kind(mode)
    if format_of(name) is None:
        return PurePosixPath(name.lower()).suffix or tr("without an ending")
    if name in METADATA:
        return tr("metadata")
    return "" if os.access(path, os.R_OK) else tr("without permission")


def special_kind(mode: int) -> str:
    """What a file is called that is neither regular nor a folder."""
    kinds = {
        stat.S_IFIFO: tr("pipe"),
        stat.S_IFSOCK: tr("socket"),
        stat.S_IFCHR: tr("device file"),
        stat.S_IFBLK: tr("device file"),
    }
    return kinds.get(stat.S_IFMT(mode), tr("special file"))


def _unreadable(error: OSError, is_link: bool = False) -> str:
    if is_link and isinstance(error, FileNotFoundError):
        return tr("broken link")
    if is_link and not isinstance(error, PermissionError):
        return tr("link that leads in a circle")
    if isinstance(error, PermissionError):
        return tr("without permission")
    return error.strerror or type(error).__name__


def _shown(path: str, folder: str) -> str:
    return Path(path).relative_to(folder).as_posix() if path != folder else path
