"""How a process of a run ended, and how the run can continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.overrides import command
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.folder import Run
from azllm_lightning.runs.paths import resume_address_of

Kind = Literal["done", "stopped", "error", "crash", "memory", "killed", "lost"]


@dataclass(frozen=True)
class Outcome:
    """The end of one process.

    `text` is the run folder when done, a message for the user after an error, the traceback after a
    crash, and the cause where the process was killed.
    """

    kind: Kind
    text: str = ""


class PeerLost(Resumable):
    """Another process of the run ended, so that this one cannot continue."""


class SmallerBatch(Resumable):
    """This process ran out of memory; `command` continues with a smaller micro-batch."""


def resume_command(run: Run, typed: Sequence[str] = (), start: int | None = None) -> str | None:
    """The command that resumes `run` from its newest checkpoint; None if it has none.

    A session that resumed step `start` and saved nothing newer has changed nothing, so that the
    settings `typed` for it are in no checkpoint: they are typed again.
    """
    saved = step_files(run.checkpoints)[:1]
    if start is not None and (not saved or saved[0][0] <= start):
        return command("train", typed)
    return command("train", resume_address_of(run.folder)) if saved else None
