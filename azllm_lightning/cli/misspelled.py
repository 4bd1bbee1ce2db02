"""What was meant by a name that does not exist: the nearest one that does."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePath

from azllm_lightning.cli.messages import tr

CUTOFF = 0.6
"""The least similarity, 0 to 1, of a name that may have been meant."""

MAX_ENTRIES = 10_000
"""So many names of a folder are compared."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` most like `name`, whatever their case, diacritics and file endings."""
    best, best_score = None, CUTOFF
    for each in sorted(names):
        score = max(_similarity(name, each), _similarity(PurePath(name).stem, PurePath(each).stem))
        if score > best_score:
            best, best_score = each, score
    return best


def _similarity(one: str, other: str) -> float:
    one, other = without_diacritics(one.casefold()), without_diacritics(other.casefold())
    return difflib.SequenceMatcher(None, one, other).ratio()


def without_diacritics(text: str) -> str:
    """`text` as it is typed without the letters of Azerbaijani: menbe for mənbə."""
    decomposed = unicodedata.normalize("NFD", text)
    letters = "".join(char for char in decomposed if not unicodedata.combining(char))
    return letters.translate(str.maketrans("əƏı", "eEi"))


def searched_folder(path: str) -> Path:
    """The deepest existing folder above `path`, in which the next part of it is missing."""
    return next(folder for folder in Path(path).absolute().parents if folder.is_dir())


def with_near_path(message: str, path: str | Path) -> str:
    """`message`, that `path` does not exist, with the path that may have been meant."""
    folder = searched_folder(str(path))
    missing, *rest = Path(path).absolute().relative_to(folder).parts
    try:
        names = [entry.name for entry in islice(folder.iterdir(), MAX_ENTRIES)]
    except OSError:
        return message
    names = [name for name in names if name.startswith(".") == missing.startswith(".")]
    near = nearest(missing, [name for name in names if (folder / name / Path(*rest)).exists()])
    near = near or nearest(missing, names)
    if near is None or near == missing:  # a file stands in the place of a folder
        return message
    whole = folder / near / Path(*rest)
    found = whole if whole.exists() else folder / near
    if not Path(path).is_absolute() and found.is_relative_to(Path.cwd()):
        found = found.relative_to(Path.cwd())
    return tr("{message}; did you mean {near}?", message=message, near=found)
