"""The models that people name by a path: ckpt_path, init_from, teachers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import did_you_mean, near_path
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import HF_CONFIG
from azllm_lightning.formats.load import load, tokenizer_of
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.checkpoint_files import BEST, is_complete, step_files, valid_steps
from azllm_lightning.runs.paths import LOGS, is_version, versions


def find_model(key: str, typed: str, logs: Path = LOGS, resume: bool = False) -> Path:
    """The file of `typed`, the value of the setting `key`: a file as it is, of a run folder its
    best weights, else its newest complete full state; an exported folder unchanged.

    With `resume`, only a full state will do. Raises ValueError if there is none, with the one that
    may have been meant: the folder of all versions of a run stands for none.
    """
    path = Path(typed)
    if path.is_file():
        return path
    if not resume and (path / "checkpoints" / BEST).is_file():
        return path / "checkpoints" / BEST
    if not resume and (path / HF_CONFIG).is_file():
        return path
    for _, newest in valid_steps(path / "checkpoints"):
        return newest
    if path.is_dir():
        message = tr("{key}={path}: no complete checkpoint in this folder", key=key, path=typed)
    elif key == "ckpt_path":
        message = tr(
            "ckpt_path={path}: no such file; give a .ckpt file, a run folder, best or last",
            path=typed,
        )
    else:
        message = tr(
            "{key}={path}: no such file or folder; give the name of a run, a .ckpt file, a run "
            "folder or an exported folder",
            key=key,
            path=typed,
        )
    raise ValueError(did_you_mean(message, _meant(path, logs, resume)))


def read_model(key: str, typed: str, logs: Path = LOGS) -> tuple[GPT, Tokenizer]:
    """`load` of what `find_model` finds; its errors name the setting `key`."""
    path = find_model(key, typed, logs)
    with _named(key):
        return load(path)


def read_tokenizer(key: str, typed: str, logs: Path = LOGS) -> Tokenizer:
    """The same without the weights."""
    path = find_model(key, typed, logs)
    with _named(key):
        return tokenizer_of(path)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _meant(path: Path, logs: Path, resume: bool) -> Path | None:
    """The file or folder with a model that `path`, which has none, probably stands for."""
    for place in (path, logs / path):
        if (found := _model_at(place, resume)) is not None:
            return found
        near = near_path(place, lambda other: _model_at(other, resume) is not None)
        if near is not None and (found := _model_at(near, resume)) is not None:
            return found
    return None


def _model_at(place: Path, resume: bool) -> Path | None:
    """`place`, or the newest version of the run there, or of the same run, that has a model."""
    others = versions(place.parent) if is_version(place) else []
    found = (each for each in [place, *versions(place), *others] if _has_model(each, resume))
    return next(found, None)


def _has_model(place: Path, resume: bool) -> bool:
    """Whether `find_model` would be content with `place`."""
    if place.is_file():
        return place.suffix == ".ckpt"
    if not resume and (place / HF_CONFIG).is_file():
        return True
    states = [state for _, state in step_files(place / "checkpoints")]
    best = place / "checkpoints" / BEST
    return any(map(is_complete, [best] if best.is_file() and not resume else states))
