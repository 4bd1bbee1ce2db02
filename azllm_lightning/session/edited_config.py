"""Edits of the config.yaml in a run folder, which a resume does not read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.folder import relative_to_current

log = logging.getLogger(__name__)

OF_A_SESSION = ("ckpt_path", "init_from", "teachers", "logs_dir", "run_name", "lang", "overrides")
"""Keys that differ between the sessions of a run."""


def warn_of_edits(
    checkpoint: Path,
    stored: Mapping[str, Any],
    in_effect: Mapping[str, Any],
    typed: Collection[str],
) -> None:
    """Warn of settings in the run's config.yaml that differ from those in its newest checkpoint,
    and from those `in_effect` now, unless they are among those `typed` now.

    Somebody edited the file, or a session changed them and ended before its first save.
    """
    path = checkpoint.resolve()
    if [path] != [found for _, found in step_files(path.parent)[:1]]:
        return
    file = path.parent.parent / ".hydra" / "config.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        message = tr(
            "{file} cannot be read; the settings are taken from the checkpoint",
            file=relative_to_current(file),
        )
        log.warning(paragraph(message))
        return
    kept = dict(_leaves(stored))
    now = dict(_leaves(in_effect))
    differing = [
        tr("{key}={value} (in the checkpoint: {stored})", key=key, value=value, stored=kept[key])
        for key, value in _leaves(values)
        if key in kept
        and key not in typed
        and str(value) not in (str(kept[key]), str(now.get(key)))
    ]
    if differing:
        message = tr(
            "{file} differs from the newest checkpoint of this run, and a resume reads only the "
            "checkpoint: {settings} without effect. Type what should change, such as "
            "trainer.max_steps=2000",
            file=relative_to_current(file),
            settings=", ".join(differing),
        )
        log.warning(paragraph(message))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not prefix and key in OF_A_SESSION:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
