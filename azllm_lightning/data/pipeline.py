"""Prepare text: a folder with tokenizer.json, shards and a manifest, complete or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.building import build
from azllm_lightning.data.cache import cache_folder
from azllm_lightning.data.corpus import streams
from azllm_lightning.data.enough import check_enough
from azllm_lightning.data.files import stamps
from azllm_lightning.data.filters import versions
from azllm_lightning.data.shards import (
    MANIFEST,
    VERSION,
    Manifest,
)
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.workers import check_guarded
from azllm_lightning.disk.lock import Lock, State
from azllm_lightning.disk.sync import sync_folder

log = logging.getLogger(__name__)

CLEANING_VERSION = 8
"""Increased when the same text would give different documents or tokens, to ignore old caches."""

_TEXT = "text"
"""Where `made_from` has the digest of the text, next to the settings."""

# An unfinished folder has the final name between these two.
_UNFINISHED_PREFIX = ".azllm-"
_UNFINISHED_SUFFIX = ".unfinished"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_KEEP_SECONDS = 3 * 24 * 3600.0
# What the tales are generated from; the rest of that folder does not change them.
_TALES = (
    "grammar.py",
    "lexicon.py",
    "lexicon.tsv",
    "morphology.py",
    "suffixes.py",
    "tales.py",
    "tales.tsv",
    "topic.py",
)
# These settings do not change the prepared data.
_NOT_CONTENT = (
    "dir",
    "block_size",
    "val_windows",
    "num_workers",
    "prepare_workers",
    "verify",
    "mix",
    "token_replacement",
)


def prepare(config: DataConfig) -> Path:
    """The folder with the tokenizer.json, shards and manifest of `config`, created if necessary.

    Several processes may call this at once. `remarks` says what is worth knowing of the text there.
    Raises ValueError if the text cannot be read, if data.dir has other content, or if a split is
    too short for one window of data.block_size.
    """
    folder = prepared_folder(config)
    if not is_prepared(folder):
        _create(config, folder)
    check_enough(config, Manifest.read(folder))
    return folder


def is_prepared(folder: Path) -> bool:
    """Whether `folder` has prepared data; raises ValueError if it has anything else."""
    if (folder / MANIFEST).exists():
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            tr(
                "data.dir={folder}: exists, but has no {manifest}; choose a folder created by "
                "`prepare`, or one that does not exist yet",
                folder=folder,
                manifest=MANIFEST,
            )
        )
    return False


def prepared_folder(config: DataConfig) -> Path:
    """Where the prepared data of `config` is, or would be.

    This is data.dir, or a folder under $AZLLM_DATA_DIR (else the user's cache) named by a hash of
    everything that decides its content. Raises ValueError if the text cannot be found.
    """
    if config.dir is not None:
        return Path(config.dir)
    return cache_folder() / content_key(config)


def with_prepared(
    config: DataConfig, fingerprint: str, validation: str | None = None
) -> DataConfig:
    """`config` with the folder of the data with that fingerprint, if the cache has it.

    A run then continues although its text was moved or changed. Data of other settings, or with
    another `validation` text, if that is known, does not count.
    """
    if config.dir is not None:
        return config
    settings = content_settings(config)
    for path in sorted(cache_folder().glob(f"{config.name}-*/{MANIFEST}")):
        with contextlib.suppress(ValueError, OSError):
            manifest = Manifest.read(path.parent)
            same = settings_made_from(manifest, settings) == settings
            same = same and validation in (None, manifest.validation)
            if same and manifest.fingerprint == fingerprint:
                return replace(config, dir=str(path.parent))
    return config


def content_settings(config: DataConfig) -> dict[str, Any]:
    """The settings that decide what the prepared data contains."""
    return {key: value for key, value in asdict(config).items() if key not in _NOT_CONTENT}


def made_from(config: DataConfig) -> dict[str, Any]:
    """What a manifest says of where its data is from: the settings, and a digest of the text."""
    return {**content_settings(config), _TEXT: _text_digest(config)}


def _text_digest(config: DataConfig) -> str:
    """A digest of the names, sizes and times or contents of the files of `config`."""
    found = stamps(config.paths, "data.path") + stamps(config.val_paths, "data.val_path")
    data = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16).hexdigest()


def has_changed(config: DataConfig, source: Mapping[str, Any]) -> bool:
    """Whether local files of `config` are no longer what `made_from` gave as `source`.

    Downloads are not repeated for this, and files that are gone have not changed.
    """
    paths = [*config.paths, *config.val_paths]
    if _TEXT not in source or not paths or any("://" in path for path in paths):
        return False
    try:
        return bool(_text_digest(config) != source[_TEXT])
    except (ValueError, OSError):
        return False


def settings_made_from(manifest: Manifest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `manifest` was made from, with what it does not know of `settings` at its default."""
    defaults = content_settings(DataConfig())
    return {key: manifest.made_from.get(key, defaults[key]) for key in settings}


def content_key(config: DataConfig) -> str:
    """A folder name that changes whenever the content of the prepared data would."""
    return _key_of(config, _text_digest(config))


def _key_of(config: DataConfig, text_digest: str) -> str:
    ingredients: list[Any] = [VERSION, CLEANING_VERSION, content_settings(config)]
    if config.tokenizer is not None:
        ingredients.append(Tokenizer.from_file(config.tokenizer).fingerprint)
    ingredients += versions(config)
    if config.name == "tales":
        ingredients.append(_tales_digests())
    ingredients.append(text_digest)
    text = json.dumps(ingredients, ensure_ascii=False, sort_keys=True)
    data = text.encode("utf-8", "surrogatepass")  # a path may have bytes that are not UTF-8
    return f"{config.name}-{blake2b(data, digest_size=10).hexdigest()}"


def _tales_digests() -> list[str]:
    """Digests of the grammar and the words that the tales are generated from."""
    from azllm_lightning import azerbaijani

    folder = Path(azerbaijani.__path__[0])
    return [blake2b((folder / name).read_bytes()).hexdigest() for name in _TALES]


def _create(config: DataConfig, folder: Path) -> None:
    """Build under a temporary name and a lock, then rename, so that `folder` is always complete;
    nothing if another process has built it meanwhile.

    What an interrupted build has finished is kept under the temporary name, for the next one.
    """
    unfinished = folder.with_name(f"{_UNFINISHED_PREFIX}{folder.name}{_UNFINISHED_SUFFIX}")
    check_guarded()
    # What is missing is reported before the text is said to be prepared.
    streams(config)
    # A folder of the cache is named by it; the text may have changed since, but not its name.
    key = folder.name if config.dir is None else content_key(config)
    with _explained_errors(config, folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent, unfinished)
        lock = Lock(unfinished.with_suffix(".lock"))
        lock.wait(
            tr("another process is preparing the same text in {folder}: waiting", folder=folder)
        )
        try:
            if (folder / MANIFEST).exists():
                return
            log.info(tr("preparing the text, once; it is kept in {folder}", folder=folder))
            _build(config, unfinished, key)
            publish(unfinished, folder)
        finally:
            lock.release()
    if config.dir is None:
        _report_superseded(folder)


def publish(unfinished: Path, folder: Path) -> None:
    """Give a complete folder its final name; `folder` is missing or empty."""
    if folder.exists():
        folder.rmdir()  # Windows does not rename onto an existing folder
    unfinished.rename(folder)
    sync_folder(folder.parent)


def _build(config: DataConfig, unfinished: Path, key: str) -> None:
    """Fill the folder `unfinished`, from what a build with the same `key` left there if one did."""
    key_file = unfinished / "key"
    if not key_file.is_file() or key_file.read_text(encoding="utf-8") != key:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        key_file.write_text(key, encoding="utf-8")
    source = made_from(config)
    try:
        if _key_of(config, source[_TEXT]) != key:  # while another process was waited for
            raise _changed()
        build(config, unfinished, source)
    except OSError as error:
        if error.errno in _NO_ROOM:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if has_changed(config, source):
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _changed()
    key_file.unlink()


def _changed() -> ValueError:
    return ValueError(
        tr("the text in data.path changed while it was being prepared; prepare it again")
    )


def _remove_leftovers(parent: Path, current: Path) -> None:
    """Remove old unfinished folders, other than `current`, that no process works on."""
    for leftover in parent.glob(f"{_UNFINISHED_PREFIX}*{_UNFINISHED_SUFFIX}"):
        if leftover == current or time.time() - leftover.stat().st_mtime < _KEEP_SECONDS:
            continue
        lock = Lock(leftover.with_suffix(".lock"))
        if lock.try_acquire() is State.HELD:
            shutil.rmtree(leftover, ignore_errors=True)
            lock.release()


@contextlib.contextmanager
def _explained_errors(config: DataConfig, parent: Path) -> Iterator[None]:
    """Name the folder and the setting where the prepared data cannot be written."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in _NO_ROOM
        name = error.filename
        is_ours = isinstance(name, str | os.PathLike) and Path(name).is_relative_to(parent)
        is_above = isinstance(name, str | os.PathLike) and parent.is_relative_to(name)
        if not (is_full or is_ours or is_above):  # of reading the text, for example
            raise
        setting = "data.dir" if config.dir is not None else tr("data.dir (or $AZLLM_DATA_DIR)")
        message = tr(
            "the prepared text cannot be written in {folder} ({reason}): free some disk space, or "
            "choose another folder with {setting}",
            folder=parent,
            reason=system_reason(error),
            setting=setting,
        )
        raise OSError(message) from error


def _report_superseded(folder: Path) -> None:
    """Name the older prepared folders of the same files and settings in the cache."""
    manifest = Manifest.read(folder)
    older = []
    is_same_text = True
    for other in sorted(folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*")):
        with contextlib.suppress(ValueError, OSError):
            theirs = Manifest.read(other)
            if other != folder and _settings_of(theirs) == _settings_of(manifest):
                older.append(other)
                is_same_text &= theirs.made_from.get(_TEXT) == manifest.made_from[_TEXT]
    if older:
        reason = tr("the text has changed since it was last prepared")
        if is_same_text:
            reason = tr("this version of azllm-lightning prepares the text in another way")
        size = sum(file.stat().st_size for other in older for file in other.iterdir())
        log.warning(
            trn(
                "{reason}; delete the folder of the earlier version if no run needs it "
                "({size:,.1f} MB): {folders}",
                "{reason}; delete the folders of the earlier versions if no run needs them "
                "({size:,.1f} MB): {folders}",
                len(older),
                reason=reason,
                size=size / 1e6,
                folders=", ".join(map(str, older)),
            )
        )


def _settings_of(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.made_from.items() if key != _TEXT}
