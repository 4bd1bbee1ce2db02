"""What the tests read of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azllm_lightning.runs.curves import EVENTS, read_records


@dataclass(frozen=True)
class Finished:
    """A run of 8 steps with validations at 0, 4 and 8, and what it wrote to the terminal."""

    folder: Path
    out: str
    err: str


def summaries(folder: Path) -> Iterator[tuple[int, Any]]:
    """(step, value) of every summary in the event files of a run, in the order of writing."""
    from tensorboard.compat.proto.event_pb2 import Event

    for raw in read_records(sorted(folder.glob(EVENTS))):
        event = Event.FromString(raw)
        yield from ((event.step, value) for value in event.summary.value)


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    """(step, text) of every text of a run with `tag`, in the order of writing."""
    name = f"{tag}/text_summary"
    return [
        (step, value.tensor.string_val[0].decode())
        for step, value in summaries(folder)
        if value.tag == name
    ]
