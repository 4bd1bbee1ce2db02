"""A run's curves: read for notebooks, and carried over a resume so that each step stands in them once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

EVENTS = "events.out.tfevents.*"

SESSION = "session/"
"""How tags begin of texts that tell what the run is now, not where it stood at some step."""

ANEW = ("custom_scalars", "hparams")
"""TensorBoard plugins whose summaries tell the same."""


def carry_curve(source: Path, target: Path, last_step: int) -> None:
    """Rewrite the TensorBoard events of folder `source` into one file in `target`, without what came after `last_step`.

    With source == target the old files are replaced. A killed run has logged steps beyond its last checkpoint, and the
    resumed one logs them again; TensorBoard could be told to purge them, but other readers would see both. The new file
    takes the first one's name: readers go by names, and it must come before what is logged next.

    Settings, environment and layout are left out: the next session writes them anew, and TensorBoard shows the first
    it finds.
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
            if event.step > last_step or any(map(_of_session, event.summary.value)):
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


def read_run(path: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The curves of a run as a pandas DataFrame: one row a step, one column a TensorBoard scalar (val_loss, lr, ...).

    `path` is a run folder (lightning_logs/NAME/version_K), or lightning_logs/NAME for its newest version; for what lies
    under lightning_logs here, NAME and NAME/version_K will do. A run still in training reads as far as it got, a
    resumed or forked one as one curve. Its folder is in `.attrs["folder"]`, and what its summary.json says in
    `.attrs["summary"]` ({} while it has none).

    Of a list of such paths, the columns are (tag, run) with runs called NAME/version_K: `read_run([...])["val_loss"]`
    has a column for each run. Both attrs are then dicts by run.

    Needs pandas (the extra `notebooks`). Raises ValueError where that is missing and where there is no run with curves.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ValueError(
            f'read_run needs pandas ({error}): pip install pandas, or this project with its extra ".[notebooks]"'
        ) from None

    if not isinstance(path, (str, Path)):
        return _side_by_side([read_run(one) for one in path])
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
        raise ValueError("read_run([]): name at least one run")
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
    from azllm_lightning.runs.folder import LOGS, versions

    for place in (path, LOGS / path):
        for folder in [place, *versions(place)[:1]]:
            if scalars := read_scalars(folder):
                return folder, scalars
    files = sorted(
        LOGS.glob(f"*/version_*/{EVENTS}"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    runs = list(dict.fromkeys("/".join(file.parts[-3:-1]) for file in files))
    raise ValueError(
        f"{path}: no run with curves here. Give a run folder, such as {LOGS / 'NAME' / 'version_0'}, "
        f"or the name of a run in {LOGS.absolute()} (newest there: {', '.join(runs[:5]) or 'none'})"
    )


def _of_session(value: Any) -> bool:
    return value.metadata.plugin_data.plugin_name in ANEW or value.tag.startswith(SESSION)


def _records(files: list[Path]) -> Iterator[bytes]:
    """The serialized events of `files`; a record that a kill cut off ends its file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    for path in files:
        yield from RawEventFileLoader(str(path)).Load()
