"""The curves of a run: reading them, and rewriting them at a resume so that no step is doubled."""

from __future__ import annotations

import contextlib
import json
import logging
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.runs.atomic import replacing
from azllm_lightning.runs.paths import LOGS, versions

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

LENGTH = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")
CHECKSUM_BYTES = CHECKSUM.size
HEADER_BYTES = LENGTH.size + CHECKSUM_BYTES

EVENTS = "events.out.tfevents.*"

DESCRIPTION = "events.out.tfevents.0.description"
"""The event file of a run that describes it as a whole. Readers, which sort by name, read it first;
a resume replaces it, and never lacks it.
"""

SESSION = "session/"
"""Prefix of the tags of texts that describe the run as a whole, not its state at some step."""

DESCRIBING = ("custom_scalars", "hparams")
"""TensorBoard plugins whose summaries describe the run as a whole too."""


def carry_curve(source: Path, target: Path, last_step: int) -> None:
    """Rewrite the event files of folder `source` as one file in `target`, up to `last_step`.

    With source == target, the old files are replaced. A killed run has logged steps after its last
    checkpoint, and the resumed one logs them again; TensorBoard can purge them, but other readers
    would see both. The new file takes the name of the first one: readers sort by name, and it must
    come before what is logged next.

    Settings, environment and layout are in a file of their own, DESCRIPTION, which is not touched.

    Where the files cannot be replaced (on Windows, TensorBoard holds them open), a warning says
    what that means, and a mark makes readers drop the later steps.
    """
    from tensorboard.summary.writer.record_writer import RecordWriter

    old_files = sorted(path for path in source.glob(EVENTS) if path.name != DESCRIPTION)
    if not old_files:
        return
    try:
        records = _up_to(old_files, last_step)
        with replacing(target / old_files[0].name) as file:
            writer = RecordWriter(file)
            for raw in records:
                writer.write(raw)
            writer.flush()
        if source == target:
            for path in old_files[1:]:
                path.unlink(missing_ok=True)
    except OSError as error:
        if source == target:
            message = tr(
                "the curve of {folder} cannot be rewritten ({reason}): if TensorBoard shows steps "
                "twice, close it and resume once more",
                folder=source,
                reason=error,
            )
            _purge(old_files[-1], last_step)
        else:
            message = tr(
                "the curve of {source} cannot be copied to {target} ({reason}): the new curve "
                "starts at step {step:,}",
                source=source,
                target=target,
                reason=error,
                step=last_step,
            )
        log.warning(message)


def write_description(folder: Path, values: Iterable[Any]) -> None:
    """Replace the DESCRIPTION of the run in `folder` by `values`, a Summary each.

    On Windows, where TensorBoard holds the file open, the old one stays.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    with contextlib.suppress(OSError), replacing(folder / DESCRIPTION) as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for value in values:
            writer.write(Event(wall_time=now, step=0, summary=value).SerializeToString())
        writer.flush()


def _up_to(files: list[Path], last_step: int) -> list[bytes]:
    """The records of the curve up to `last_step`, each point once: the newest one, in the place of
    the first.

    Two resumes from one checkpoint each log their start at its step; only the last one's lasted.
    """
    found: dict[object, tuple[float, bytes]] = {}
    for number, (raw, event) in enumerate(_read_events(files)):
        if event.step > last_step or any(map(_describes_run, event.summary.value)):
            continue
        points = frozenset((value.tag, event.step) for value in event.summary.value)
        point = points or number  # without any, it is the start of a file
        # By its time: the names of files of one second do not sort as they were written.
        if point not in found or event.wall_time >= found[point][0]:
            found[point] = (event.wall_time, raw)
    return [raw for _, raw in found.values()]


def _purge(newest: Path, last_step: int) -> None:
    """Write an event file, after `newest`, that makes readers drop the steps after `last_step`.

    TensorBoard does so when it finds the start of a session.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter

    start = SessionLog(status=SessionLog.SessionStatus.START)
    event = Event(wall_time=time.time(), step=last_step + 1, session_log=start)
    # Names sort by time: this one comes after those of earlier sessions, and before the next one.
    name = f"{newest.name}.{int(time.time())}"
    with contextlib.suppress(OSError), replacing(newest.with_name(name)) as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        writer.write(event.SerializeToString())
        writer.flush()


def _read_events(files: list[Path]) -> list[tuple[bytes, Any]]:
    """(record, event) of event files, without the steps that a later session repeated."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    events: list[tuple[bytes, Any]] = []
    for raw in read_records(files):
        event = Event.FromString(raw)
        if event.session_log.status == SessionLog.SessionStatus.START:
            events = [
                found
                for found in events
                if found[1].step < event.step or found[1].HasField("file_version")
            ]
        else:
            events.append((raw, event))
    return events


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar of a run folder: tag -> step -> value."""
    from tensorboard.util.tensor_util import make_ndarray

    scalars: dict[str, dict[int, float]] = {}
    for _, event in _read_events(sorted(folder.glob(EVENTS))):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars":
                scalars.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))
    return scalars


def read_run(path: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The curves of a run as a pandas DataFrame: rows are steps, columns are TensorBoard's scalars.

    `path` is a run folder (lightning_logs/NAME/version_K), or lightning_logs/NAME for its newest
    version; NAME and NAME/version_K are looked up in ./lightning_logs. A run that is still training
    is read up to its latest step, a resumed or forked one as one curve. `.attrs["folder"]` is its
    folder, and `.attrs["summary"]` the content of its summary.json ({} while there is none).

    For a list of such paths, the columns are (tag, run) with runs called NAME/version_K:
    `read_run([...])["val_loss"]` has a column per run. Both attrs are then dicts by run.

    Raises ValueError if pandas (the extra `notebooks`) is missing or there is no such run.
    """
    try:
        import pandas as pd
    except ImportError as error:
        message = tr(
            "read_run needs pandas ({reason}): pip install pandas, or this project with its extra "
            '".[notebooks]"',
            reason=error,
        )
        raise ValueError(message) from None

    if not isinstance(path, (str, Path)):
        return _side_by_side([read_run(run) for run in path])
    folder, scalars = _find_curves(Path(path))
    frame = pd.DataFrame(scalars).sort_index().rename_axis("step")
    summary = folder / "summary.json"
    frame.attrs["folder"] = str(folder)
    frame.attrs["summary"] = (
        json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    )
    return frame


def _side_by_side(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    if not frames:
        raise ValueError(tr("read_run([]): name at least one run"))
    runs: dict[str, pd.DataFrame] = {}
    for frame in frames:
        folder = Path(frame.attrs["folder"])
        name = "/".join(folder.parts[-2:])
        runs[str(folder) if name in runs else name] = frame
    together = pd.concat(runs, axis=1, names=["run", "tag"]).swaplevel(axis=1)
    together.attrs = {
        key: {run: frame.attrs[key] for run, frame in runs.items()} for key in ("folder", "summary")
    }
    return together


def _find_curves(path: Path) -> tuple[Path, dict[str, dict[int, float]]]:
    """The run folder that `path` means, and its scalars."""
    for place in (path, LOGS / path):
        for folder in [place, *versions(place)[:1]]:
            if scalars := read_scalars(folder):
                return folder, scalars
    files = sorted(
        LOGS.glob(f"*/version_*/{EVENTS}"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    runs = list(dict.fromkeys("/".join(file.parts[-3:-1]) for file in files))
    message = tr(
        "{path}: no run with curves. Give a run folder, such as {example}, or the name of a run in "
        "{folder} (newest there: {runs})",
        path=path,
        example=LOGS / "NAME" / "version_0",
        folder=LOGS.absolute(),
        runs=", ".join(runs[:5]) or tr("none"),
    )
    raise ValueError(message)


def _describes_run(value: Any) -> bool:
    return value.metadata.plugin_data.plugin_name in DESCRIBING or value.tag.startswith(SESSION)


def read_records(files: list[Path]) -> Iterator[bytes]:
    """The serialized events of event files, in order.

    A damaged record is skipped, and what follows it is read. TensorBoard's own reader ends there.
    """
    for path in files:
        for raw, _ in records_in(path.read_bytes()):
            yield raw


def records_in(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The serialized events in the bytes of an event file, each with the place of its end."""
    place = 0
    while (found := _next_record(content, place)) is not None:
        start, place = found
        yield content[start + HEADER_BYTES : place - CHECKSUM_BYTES], place


def _next_record(content: bytes, place: int) -> tuple[int, int] | None:
    """Start and end of the first complete record at or after `place`; None if there is none.

    A record is the length of its data (8 bytes), a checksum of these, the data, and its checksum.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    for start in range(place, len(content) - HEADER_BYTES - CHECKSUM_BYTES + 1):
        (length,) = LENGTH.unpack_from(content, start)
        end = start + HEADER_BYTES + length + CHECKSUM_BYTES
        if length == 0 or end > len(content):
            continue
        (expected,) = CHECKSUM.unpack_from(content, start + LENGTH.size)
        if masked_crc32c(content[start : start + LENGTH.size]) != expected:
            continue
        (expected,) = CHECKSUM.unpack_from(content, end - CHECKSUM_BYTES)
        if masked_crc32c(content[start + HEADER_BYTES : end - CHECKSUM_BYTES]) == expected:
            return start, end
    return None
