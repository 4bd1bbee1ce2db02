"""How a process of a run ended, and how the run can continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.resume import own_entries
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.folder import Run
from azllm_lightning.runs.paths import resume_address_of

Kind = Literal["done", "stopped", "error", "crash", "memory", "killed", "lost"]


@dataclass(frozen=True)
class Outcome:
    """The end of one process.

    `text` is the run folder when done, a message for the user after an error, the traceback after a
    crash, the cause where the process was killed, and the reason where it lost the others, unless
    one of them has it.
    """

    kind: Kind
    text: str = ""


class PeerLost(Resumable):
    """This process lost the others of its run for `reason`: one ended, or the connection failed.

    That may come again at each resume, so the exit code is that of a failure; a process that ended
    in another way has its own.
    """

    exit_code = 1

    def __init__(self, reason: str, end: Resumable) -> None:
        super().__init__(end.command, f"{reason}\n{end.message}")
        self.reason = reason


class SmallerBatch(Resumable):
    """This process ran out of memory; `command` continues with a smaller micro-batch."""


def resume_command(run: Run, typed: Sequence[str] = (), start: int | None = None) -> str | None:
    """The command of `resume_settings`; None if there are none."""
    settings = resume_settings(run, typed, start)
    return None if settings is None else command("train", settings)


def resume_settings(
    run: Run, typed: Sequence[str] = (), start: int | None = None
) -> Sequence[str] | None:
    """What to type to resume `run` from its newest checkpoint; None if it has none.

    A session whose `typed` settings name the checkpoint of step `start`, and which saved nothing
    newer, has changed nothing: what else was typed is in no checkpoint, so it is typed again. Nor
    are the user's own objects in any.
    """
    newest = max((step for step, _ in step_files(run.checkpoints)), default=None)
    is_newer = newest is not None and (start is None or newest > start)
    if start is not None and not is_newer and "ckpt_path" in typed_keys(typed):
        return typed
    return None if newest is None else [*resume_address_of(run.folder), *own_entries(typed)]
