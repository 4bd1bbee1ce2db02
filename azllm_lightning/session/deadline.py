"""trainer.deadline at the start of a session: that of an earlier session may have passed."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import parse_deadline
from azllm_lightning.training.processes import attempt_number
from azllm_lightning.training.stopping import StopRequest

log = logging.getLogger(__name__)


def set_deadline(stop: StopRequest, deadline: str | None) -> None:
    """Set the deadline of `stop`; ValueError if it has passed, unless that is why a launcher starts
    the session again.
    """
    stop.until(deadline)
    if stop.deadline is not None and stop.deadline <= stop.started and not attempt_number():
        raise ValueError(
            tr(
                "trainer.deadline={deadline} has passed: give a later one, or null for none",
                deadline=deadline,
            )
        )


def without_old_deadline(resumed: RunConfig, typed: RunConfig) -> RunConfig:
    """`resumed` without a deadline of an earlier session that has passed."""
    deadline = resumed.trainer.deadline
    now = time.time()
    is_typed = "trainer.deadline" in typed_keys(typed.overrides)
    if deadline is None or is_typed or attempt_number() or parse_deadline(deadline, now) > now:
        return resumed
    message = tr(
        "the deadline of this run, trainer.deadline={deadline}, has passed: this session has none",
        deadline=deadline,
    )
    log.warning(message)
    return replace(resumed, trainer=replace(resumed.trainer, deadline=None))
