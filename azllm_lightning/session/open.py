"""Stage 2: create or reopen the run folder, with its config, its tokenizer and its log."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.streams import NAMES
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.atomic import write_text
from azllm_lightning.runs.curves import carry_curve
from azllm_lightning.runs.folder import Run, claim, open_for_resume, reopen
from azllm_lightning.session.resolve import Resolved
from azllm_lightning.training.processes import (
    Notes,
    Processes,
    attempt_number,
    first,
    has_lost_peer,
)

log = logging.getLogger("azllm_lightning")

LIGHTNING = ("lightning.pytorch", "lightning.fabric")
"""The loggers of Lightning, which write their warnings to the terminal themselves."""


@contextlib.contextmanager
def opened(resolved: Resolved) -> Iterator[tuple[Run, RunConfig]]:
    """The run's folder, locked, and the config with the name that the run has there.

    The first process of a run locks the folder for all.
    """
    mine: Run | None = None

    def open_for_all() -> Path:
        nonlocal mine
        mine = _claim_or_reopen(resolved)
        describe(mine, replace(resolved.config, run_name=mine.name), resolved.data)
        Notes().write("run", str(mine.folder))
        return mine.folder

    failed = True
    try:
        folder = first(open_for_all)
        run = mine or Run(folder)
        with _log_file(run, resolved.place):
            yield run, replace(resolved.config, run_name=run.name)
        failed = False
    finally:
        if mine is not None:
            mine.release(failed)


def describe(run: Run, config: RunConfig, data: TokenDataModule) -> None:
    """Write the settled config and the tokenizer into the run folder."""
    run.config_file.parent.mkdir(exist_ok=True)
    write_text(run.config_file, config.to_yaml())
    write_text(run.folder / "tokenizer.json", data.tokenizer.to_json())


def _claim_or_reopen(resolved: Resolved) -> Run:
    config = resolved.config
    source = resolved.source
    logs = Path(config.logs_dir)
    if source is not None:
        return open_for_resume(source.path, source.step, config.run_name, logs)
    earlier = Notes().read("run") if attempt_number() else None
    if earlier is None or not Path(earlier).is_dir():
        return claim(config.run_name, logs)
    run = reopen(Path(earlier))  # its processes ended before they saved anything
    with run.released_on_error():
        carry_curve(run.folder, run.folder, -1)
    return run


class EarlyLines(logging.Handler):
    """Keeps what is logged before there is a run folder, for its train.log."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self._records.append(record)

    def hand_over(self, target: logging.Handler) -> None:
        """Give all records to `target`, and keep no others."""
        log.removeHandler(self)
        for record in self._records:
            target.handle(record)
        self._records.clear()


class LogFile(logging.FileHandler):
    """A log that ends nothing where it cannot be written: the disk is full, or gone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, if that is possible; opening the file is part of it."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing for an error of the system: the terminal has the line, and needs no traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Write what is left, if that is possible."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _log_file(run: Run, place: Processes) -> Iterator[None]:
    """Write all that the terminal shows except bars, and the error that ends the run, to train.log
    with the time.

    The other processes of a run write their warnings and errors to rank_<n>.log.
    """
    name = "train.log" if place.is_first else f"rank_{place.rank}.log"
    handler: logging.Handler = logging.NullHandler()
    if run.folder.is_dir():  # not so on the disk of another machine
        handler = LogFile(run.folder / name, encoding="utf-8", errors=NAMES, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for early in [found for found in log.handlers if isinstance(found, EarlyLines)]:
        early.hand_over(handler)
    sources = [log, *map(logging.getLogger, LIGHTNING)]
    for source in sources:
        source.addHandler(handler)
    try:
        with _warnings_to(handler):
            yield
    except (ValueError, OSError) as error:
        handler.handle(_record(str(error)))
        raise
    except Resumable as stop:
        handler.handle(_record(stop.message))
        raise
    except Exception as error:
        handler.handle(_record(str(error) if has_lost_peer(error) else traceback.format_exc()))
        raise
    finally:
        for source in sources:
            source.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _warnings_to(handler: logging.Handler) -> Iterator[None]:
    """Give `handler` the warnings of libraries too, which Python shows on the terminal."""
    show = warnings.showwarning

    def show_and_keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        handler.handle(_record(f"{category.__name__}: {message}"))

    warnings.showwarning = show_and_keep
    try:
        yield
    finally:
        warnings.showwarning = show


def _record(text: str) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (text,), None)
