"""What the tests of TensorBoard's texts read from event files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azllm_lightning.runs.curves import EVENTS, _records


def summaries(folder: Path) -> Iterator[tuple[int, Any]]:
    """(step, value) of every summary in the event files of a run, in the order of writing."""
    from tensorboard.compat.proto.event_pb2 import Event

    for raw in _records(sorted(folder.glob(EVENTS))):
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
