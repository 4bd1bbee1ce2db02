"""What was meant by a name that does not exist: the nearest one that does."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePath

from azllm_lightning.cli.messages import tr

CUTOFF = 0.6
"""The least similarity, 0 to 1, of a name that may have been meant."""

MAX_ENTRIES = 10_000
"""So many names of a folder are compared."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` most like `name`, whatever their case, diacritics and file endings."""
    return next(by_likeness(name, names), None)


def by_likeness(name: str, names: Iterable[str]) -> Iterator[str]:
    """Those of `names` that are like `name`, the most similar first."""
    scores = {each: _likeness(name, each) for each in sorted(names)}
    alike = [each for each in scores if scores[each] > CUTOFF]
    yield from sorted(alike, key=lambda each: -scores[each])


def _likeness(one: str, other: str) -> float:
    return max(_similarity(one, other), _similarity(PurePath(one).stem, PurePath(other).stem))


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


def with_near_path(
    message: str, path: str | Path, suits: Callable[[Path], bool] = Path.exists
) -> str:
    """`message`, that `path` does not exist, with the path that may have been meant."""
    return did_you_mean(message, near_path(path, suits))


def did_you_mean(message: str, near: Path | None) -> str:
    """`message`, and the question whether `near` was meant, if it is not None."""
    if near is None:
        return message
    return tr("{message}; did you mean {near}?", message=message, near=near)


def near_path(path: str | Path, suits: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The path most like `path` that exists and `suits`, as one of the right kind does; else the
    folder most like one that `path` names and that does not exist. None if nothing is alike.
    """
    folder = searched_folder(str(path))
    missing, *rest = Path(path).absolute().relative_to(folder).parts
    try:
        names = [entry.name for entry in islice(folder.iterdir(), MAX_ENTRIES)]
    except OSError:
        return None
    names = [name for name in names if name.startswith(".") == missing.startswith(".")]
    alike = [folder / name for name in by_likeness(missing, names)]
    whole = [near / Path(*rest) for near in alike]
    folders = [near for near in alike if rest and near.is_dir()]
    found = next((near for near in whole if suits(near)), None) or next(iter(folders), None)
    if found is not None and not Path(path).is_absolute() and found.is_relative_to(Path.cwd()):
        found = found.relative_to(Path.cwd())
    return found
