"""The event files of a run, read once and then continued: a page per validation must be cheap."""

from __future__ import annotations

import contextlib
from array import array
from pathlib import Path
from typing import Any, NamedTuple

from azllm_lightning.runs.curves import EVENTS, records_in

SUFFIX = "/text_summary"
"""What TensorBoard adds to the tag of a text."""


class Text(NamedTuple):
    """A text that was logged, and when (seconds since 1970)."""

    time: float
    text: str


class Curve:
    """The points of one scalar, by step; a step that is logged again replaces what follows it."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")
        self.times = array("d")
        """Seconds since 1970."""

    def add(self, step: int, value: float, time: float) -> None:
        """Append a point."""
        self.cut(step)
        self.steps.append(step)
        self.values.append(value)
        self.times.append(time)

    def cut(self, step: int) -> None:
        """Drop the points from `step` on."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            self.times.pop()

    def __len__(self) -> int:
        return len(self.steps)


class RunEvents:
    """Everything in the event files of a run folder; `update` reads what is new in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scalars: dict[str, Curve] = {}
        self.texts: dict[str, dict[int, Text]] = {}
        """Tag -> step -> text."""
        self.last_time = 0.0
        """The time of the newest event."""
        self._ends: dict[Path, int] = {}
        """Bytes read of each file."""

    def update(self) -> None:
        """Read on; from the start if files were rewritten, as a resume does."""
        files = sorted(self.folder.glob(EVENTS))
        sizes = {path: path.stat().st_size for path in files}
        if any(sizes.get(path, -1) < end for path, end in self._ends.items()):
            self.scalars.clear()
            self.texts.clear()
            self._ends.clear()
        for path in files:
            start = self._ends.get(path, 0)
            if sizes[path] > start:
                with path.open("rb") as file:
                    file.seek(start)
                    self._ends[path] = start + self._read(file.read())

    def curve(self, tag: str) -> Curve:
        """The curve of `tag`; an empty one if nothing was logged under it."""
        return self.scalars.get(tag, Curve())

    def _read(self, content: bytes) -> int:
        """Take in the events of `content`; returns where the last complete one ends."""
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        end = 0
        for raw, place in records_in(content):
            end = place
            with contextlib.suppress(DecodeError):  # the record of another program
                self._take(Event.FromString(raw))
        return end

    def _take(self, event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if event.session_log.status == SessionLog.SessionStatus.START:
            self._drop_from(event.step)
            return
        for value in event.summary.value:
            self.last_time = max(self.last_time, event.wall_time)
            if value.HasField("simple_value"):
                curve = self.scalars.setdefault(value.tag, Curve())
                curve.add(event.step, value.simple_value, event.wall_time)
            elif value.metadata.plugin_data.plugin_name == "text" or value.tag.endswith(SUFFIX):
                text = b"".join(value.tensor.string_val).decode("utf-8", "replace")
                texts = self.texts.setdefault(value.tag.removesuffix(SUFFIX), {})
                texts[event.step] = Text(event.wall_time, text)

    def _drop_from(self, step: int) -> None:
        """Forget what later sessions repeat."""
        for curve in self.scalars.values():
            curve.cut(step)
        for texts in self.texts.values():
            for later in [found for found in texts if found >= step]:
                del texts[later]
