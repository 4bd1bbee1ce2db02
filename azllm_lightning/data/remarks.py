"""What is said of prepared text when a run begins with it, or goes on with it."""

from __future__ import annotations

import logging
from pathlib import Path

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import warn_of_skipped
from azllm_lightning.data.enough import warn_of_few_windows
from azllm_lightning.data.pipeline import (
    content_settings,
    has_changed,
    is_prepared,
    prepare,
    prepared_folder,
    settings_made_from,
)
from azllm_lightning.data.shards import Manifest

log = logging.getLogger(__name__)


def prepare_and_warn(config: DataConfig) -> Path:
    """`pipeline.prepare`, and what `warn_of_text` says of the text."""
    was_prepared = is_prepared(prepared_folder(config))
    folder = prepare(config)
    warn_of_text(config, folder, was_prepared)
    return folder


def warn_of_text(config: DataConfig, folder: Path, was_prepared: bool) -> None:
    """Warn a new run, or who prepares one, where the text in `folder` is less than `config` seems
    to ask for.

    Files that are skipped are counted if it `was_prepared` before; else its reader has done that.
    """
    manifest = Manifest.read(folder)
    if was_prepared:
        warn_of_skipped(config)
    if config.dir is not None:
        _warn_of_settings(config, manifest)
        if has_changed(config, manifest.made_from):
            log.warning(
                tr(
                    "the text in data.path has changed since data.dir={folder} was prepared, and "
                    "the text there is the old one: to prepare it anew, delete that folder or name "
                    "another",
                    folder=folder,
                )
            )
    warn_of_few_windows(config, manifest)


def warn_of_text_of_run(config: DataConfig, folder: Path, checkpoint: Path) -> None:
    """Warn a run that goes on from `checkpoint` of what was typed, or has changed, in vain.

    It has no choice: only the text in `folder` is the one that it was trained on.
    """
    manifest = Manifest.read(folder)
    _warn_of_settings(config, manifest)
    if has_changed(config, manifest.made_from):
        log.warning(
            tr(
                "the text in data.path has changed since this run began. The run goes on with the "
                "old text, which is kept in {folder}: keep that folder. To train on the new text, "
                "start a new run, from the weights of this one with init_from={checkpoint}",
                folder=folder,
                checkpoint=checkpoint,
            )
        )


def _warn_of_settings(config: DataConfig, manifest: Manifest) -> None:
    """Warn of settings that are not those that data.dir was prepared with.

    A setting is only known to be omitted where the text is given.
    """
    settings = content_settings(config)
    stored = settings_made_from(manifest, settings)
    ignored = [
        tr(
            "data.{key}={value} (prepared with {stored})",
            key=key,
            value="null" if value is None else value,
            stored=stored[key],
        )
        for key, value in settings.items()
        if stored[key] != value and (value is not None or config.paths)
    ]
    if ignored:
        log.warning(
            tr(
                "data.dir={folder} is already prepared; these settings have no effect: {settings}",
                folder=config.dir,
                settings=", ".join(ignored),
            )
        )
