"""An event file of TensorBoard that outlives a full disk: it loses nothing and raises nothing."""

from __future__ import annotations

import io
import itertools
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

log = logging.getLogger(__name__)

FLUSH_SECONDS = 120.0
"""Events wait in memory for at most so long, if others follow."""

_numbers = itertools.count()


class CurveWriter(SummaryWriter):
    """A SummaryWriter that writes to an `EventFile`.

    The thread of TensorBoard's own writer (2.21) ends at the first error, which every later call
    raises again, also when there is space again.
    """

    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _Events(Path(self.log_dir))
            self.all_writers = {self.log_dir: self.file_writer}
        events: FileWriter = self.file_writer
        return events


class _Events(FileWriter):
    """A FileWriter of PyTorch, which completes the events, on top of an `EventFile`."""

    def __init__(self, folder: Path) -> None:
        self.event_writer = EventFile(folder)


class EventFile:
    """A new event file in `folder`, created by the first `flush`.

    Events that could not be written are kept, and written by a later flush, behind the last event
    that is complete. One warning says so, until a flush succeeds.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        host, process = socket.gethostname(), os.getpid()
        # Readers sort by name: by time, then by number within this process.
        name = f"events.out.tfevents.{int(time.time()):010d}.{next(_numbers):06d}.{host}.{process}"
        self.path = folder / name
        self._records = io.BytesIO()
        self._writer = RecordWriter(self._records)
        self._complete = 0
        """Bytes of the file that are known to be written."""
        self._flushed_at = time.monotonic()
        self._has_failed = False
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        """Add an event, to be written by the next flush."""
        self._writer.write(event.SerializeToString())
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added; a warning if that is impossible now."""
        self._flushed_at = time.monotonic()
        waiting = self._records.getvalue()
        if not waiting:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self._complete else "wb") as file:
                file.seek(self._complete)  # an event that a full disk has cut off is written again
                file.write(waiting)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                message = tr(
                    "the curves cannot be written now: {reason}. Training continues, and they are "
                    "written as soon as that is possible",
                    reason=system_reason(error),
                )
                log.warning(message)
            return
        self._has_failed = False
        self._complete += len(waiting)
        self._records.seek(0)
        self._records.truncate()

    def close(self) -> None:
        """Write what was added."""
        self.flush()

    def reopen(self) -> None:
        """Nothing: the file is open only while it is written."""
