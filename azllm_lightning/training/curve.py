"""A run's curves: read for notebooks, and carried over a resume so that each step stands in them once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

EVENTS = "events.out.tfevents.*"


def carry_curve(source: Path, target: Path, last_step: int) -> None:
    """Rewrite the TensorBoard events of folder `source` into one file in `target`, without what came after `last_step`.

    With source == target the old files are replaced. A killed run has logged steps beyond its last checkpoint, and the
    resumed one logs them again; TensorBoard could be told to purge them, but other readers would see both. The new file
    takes the first one's name: readers go by names, and it must come before what is logged next.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    old_files = sorted(source.glob(EVENTS))
    if not old_files:
        return
    temporary = target / f".{old_files[0].name}.tmp"
    seen: set[tuple[str, int]] = set()
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        for raw in _records(old_files):
            event = Event.FromString(raw)
            if event.step > last_step:
                continue
            tags = {(value.tag, event.step) for value in event.summary.value}
            if tags and tags <= seen:
                continue
            seen |= tags
            writer.write(raw)
        writer.flush()
        os.fsync(file.fileno())
    temporary.replace(target / old_files[0].name)
    if source == target:
        for path in old_files[1:]:
            path.unlink(missing_ok=True)


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar of a run folder: tag -> step -> value."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray

    scalars: dict[str, dict[int, float]] = {}
    for raw in _records(sorted(folder.glob(EVENTS))):
        event = Event.FromString(raw)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars":
                scalars.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))
    return scalars


def read_run(path: str | Path) -> pd.DataFrame:
    """The curves of a run as a pandas DataFrame: one row a step, one column a TensorBoard tag (val_loss, lr, ...).

    `path` is a run folder (lightning_logs/NAME/version_K), or lightning_logs/NAME for its newest version. The run's
    summary.json, if it has one yet, is in `.attrs["summary"]`. Needs pandas (pip install azllm-lightning[notebooks]).
    Raises ValueError where there is no run.
    """
    import pandas as pd

    from azllm_lightning.training.run import versions

    folder = Path(path)
    if not any(folder.glob(EVENTS)) and (newest := versions(folder)):
        folder = newest[0]
    scalars = read_scalars(folder)
    if not scalars:
        raise ValueError(f"{path}: no run with curves here; a run folder looks like lightning_logs/NAME/version_0")
    frame = pd.DataFrame(scalars).sort_index().rename_axis("step")
    frame = frame.drop(columns=[column for column in ("epoch", "hp_metric") if column in frame])
    summary = folder / "summary.json"
    attrs: dict[str, Any] = {"folder": str(folder), "summary": {}}
    if summary.is_file():
        attrs["summary"] = json.loads(summary.read_text(encoding="utf-8"))
    frame.attrs.update(attrs)
    return frame


def _records(files: list[Path]) -> Iterator[bytes]:
    """The serialized events of `files`; a record that a kill cut off ends its file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    for path in files:
        yield from RawEventFileLoader(str(path)).Load()
