"""Stage 2: create or reopen the run folder, with its config, its tokenizer and its log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.atomic import write_text
from azllm_lightning.runs.folder import Run, claim, open_for_resume
from azllm_lightning.session.resolve import RUN_FOLDER, Resolved, joined_run

log = logging.getLogger("azllm_lightning")


@contextlib.contextmanager
def opened(resolved: Resolved) -> Iterator[tuple[Run, RunConfig]]:
    """The run's folder, locked, and the config with the name that the run has there.

    The other processes of a distributed run use the first one's folder.
    """
    run = joined_run()
    config = resolved.config
    if run is None:
        run = _claim_or_reopen(resolved)
        config = replace(config, run_name=run.name)
        os.environ[RUN_FOLDER] = str(run.folder.absolute())
    failed = True
    try:
        if run.lock is not None:
            describe(run, config, resolved.data)
        with _log_file(run):
            yield run, config
        failed = False
    finally:
        run.release(failed)


def describe(run: Run, config: RunConfig, data: TokenDataModule) -> None:
    """Write the settled config and the tokenizer into the run folder."""
    run.config_file.parent.mkdir(exist_ok=True)
    write_text(run.config_file, config.to_yaml())
    write_text(run.folder / "tokenizer.json", data.tokenizer.to_json())


def _claim_or_reopen(resolved: Resolved) -> Run:
    config = resolved.config
    source = resolved.source
    logs = Path(config.logs_dir)
    if source is None:
        return claim(config.run_name, logs)
    return open_for_resume(source.path, source.step, config.run_name, logs)


@contextlib.contextmanager
def _log_file(run: Run) -> Iterator[None]:
    """Write all log lines of the terminal to train.log too, with the time."""
    handler = logging.FileHandler(run.folder / "train.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
