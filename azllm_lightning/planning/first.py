"""A first run on a prepared text, by rules alone: for machines that were not measured."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.workers import num_cores
from azllm_lightning.planning.choice import Task, choose
from azllm_lightning.planning.models import named_models
from azllm_lightning.planning.speed import Speed
from azllm_lightning.planning.survey import prepared
from azllm_lightning.training import hardware

HOURS = 1.0
"""How long it should take."""

PREPARED = ("data.vocab_size=", "data.block_size=", "data.val_windows=")
"""Settings that are left as they are."""


def first_run(config: DataConfig, folder: Path) -> list[str]:
    """The overrides of a run of about HOURS on the text in `folder`, besides those that name it.

    An empty list for tales, which the defaults are for.
    """
    if config.name == "tales":
        return []
    speed = Speed.assumed(hardware.resolve_accelerator("auto"), num_cores())
    text = prepared(config, folder)
    assert text.vocab_size is not None
    task = Task(text, speed, named_models(), config.block_size, text.vocab_size)
    chosen = choose(task, 3600 * HOURS).overrides()
    return [override for override in chosen if not override.startswith(PREPARED)]
