"""Everything that the page of a run shows, read from its folder."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from azllm_lightning.callbacks.gap import Point, gap_text
from azllm_lightning.callbacks.history import Validation
from azllm_lightning.callbacks.rules import more_steps_help
from azllm_lightning.cli.messages import tr
from azllm_lightning.planning.forecast import forecast
from azllm_lightning.report.events import RunEvents
from azllm_lightning.report.marks import RESUME, ROLLBACK, Mark, marks_of
from azllm_lightning.report.written import Written, written_by
from azllm_lightning.runs import listing
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import EVENTS, SESSION
from azllm_lightning.runs.folder import with_runs
from azllm_lightning.runs.paths import folder_of, is_version, versions
from azllm_lightning.training.schedule import branching

LONG_PAUSE = 20.0
"""Times the usual interval between two points from which it was a pause between sessions."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Forecast(Protocol):
    """The val_loss that a run should end with, within `error`."""

    @property
    def val_loss(self) -> float:
        """Nats per token."""

    @property
    def error(self) -> float:
        """Nats per token."""


Forecaster = Callable[[Sequence[tuple[int, float]], int, str, float], "Forecast | None"]
"""From the validations (step, val_loss), the steps of the run, schedule.name, and weight decay."""


@dataclass(frozen=True)
class RunRecord:
    """One run: its curves, what happened in it, and where it is."""

    folder: Path
    events: RunEvents
    marks: list[Mark]
    summary: dict[str, Any]
    """summary.json, or {} if it is older than the curve."""
    config: dict[str, Any]
    environment: str
    data: dict[str, Any]
    """training_tokens, block_size, validation_windows, all_validation_windows, validation_text,
    steps_per_pass and steps_per_reading; some or all are missing in older runs."""
    is_training: bool
    alive_at: float
    """When the run last left something in its folder, in seconds since 1970."""
    saved_step: int = 0
    """The step of the newest checkpoint of a run that was killed; 0 for other runs."""
    written: list[Written] = field(default_factory=list)
    forecast: Forecast | None = None
    timeline: tuple[Floats, Floats] = field(default=(np.zeros(1), np.zeros(1)), repr=False)
    """Steps, and the minutes of training until each."""

    @property
    def name(self) -> str:
        """NAME/version_K."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def step(self) -> int:
        """The last step that is known of; the curves have a point only every few steps."""
        curves = [self.events.curve(tag) for tag in ("train_loss", "val_loss")]
        known = [curve.steps[-1] for curve in curves if curve]
        ended: int = self.summary.get("steps", 0)
        return max([*known, self.saved_step, ended])

    @property
    def tokens_seen(self) -> float | None:
        """Tokens read: as the terminal said at its end, else the last that was logged."""
        tokens = self.summary.get("tokens_seen")
        return self.last("tokens_seen") if tokens is None else float(tokens)

    @property
    def max_steps(self) -> int | None:
        """The steps of the complete run."""
        steps = self.setting("trainer.max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def forecast_step(self) -> int | None:
        """The step whose val_loss a forecast is of: the last, or the last of the first branch."""
        count, total = self.setting("schedule.branches"), self.max_steps
        if not isinstance(count, int) or total is None:  # a run before there were branches
            return total
        plan = branching(count, total)
        return total if plan is None else plan.first_end

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest val_loss; step 0 counts only if nothing else is there."""
        curve = self.events.curve("val_loss")
        rows = [
            (value, step)
            for step, value in zip(curve.steps, curve.values, strict=True)
            if math.isfinite(value)
        ]
        trained = [row for row in rows if row[1] > 0] or rows
        return min(trained)[::-1] if trained else None

    @property
    def overfits(self) -> bool:
        """Whether the run was reported to overfit."""
        return any(mark.name == "overfitting" for mark in self.marks)

    @property
    def status(self) -> str:
        """done, stopped, training, or unfinished: killed, or silent for a long time."""
        if self.is_training:
            return "training"
        return str(self.summary.get("status", "unfinished"))

    @property
    def can_be_extended(self) -> bool:
        """Whether the run is done and more steps would help, as the terminal said at its end."""
        best = self.best
        if self.status != "done" or best is None or self.summary["steps"] != self.max_steps:
            return False
        curve = self.events.curve("val_loss")
        history = [
            Validation(step, None, loss, math.nan, math.nan)
            for step, loss in zip(curve.steps, curve.values, strict=True)
        ]
        # A problem is over once the loss has fallen below what it was until then.
        present = {mark.name for mark in self.marks if mark.step >= best[0]}
        return more_steps_help(history, present)

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the pace of the last steps; None if it is not known."""
        steps, minutes = self.timeline
        last = self.max_steps
        if last is None or len(steps) < 3 or self.step >= last:
            return None
        start = int(len(steps) * 0.6) if len(steps) > 5 else 1
        start = min(start, len(steps) - 2)
        covered = steps[-1] - steps[start]
        if covered <= 0:
            return None
        return float((minutes[-1] - minutes[start]) / covered * (last - self.step) * 60)

    @property
    def validation_interval(self) -> float | None:
        """Seconds from one validation to the next; None if it is not known.

        Of the last two, the shorter: the other may have a pause between sessions in it.
        """
        validations, logged = map(self.events.curve, ("val_loss", "train_loss"))
        curve = validations if len(validations) > 1 else logged
        every = self.setting("trainer.val_every_steps")
        if not isinstance(every, int):
            return None
        last = list(zip(curve.steps, curve.times, strict=True))[-3:]
        per_step = [
            (end - start) / (step - before)
            for (before, start), (step, end) in pairwise(last)
            if step > before
        ]
        return every * min(per_step) if per_step else None

    @property
    def seconds(self) -> float:
        """How long the run took: as the terminal said at its end, else by its curves."""
        wall = self.summary.get("wall_seconds")
        return 60 * float(self.timeline[1][-1]) if wall is None else float(wall)

    @property
    def tokens_per_sec(self) -> float | None:
        """Of the median step: as the terminal said at its end, else by its curve."""
        rate = self.summary.get("tokens_per_sec")
        return self.usual("tokens_per_sec") if rate is None else float(rate)

    @property
    def gap(self) -> str:
        """What the gap between the losses means, in a sentence; "" where it is small or unknown."""
        is_mixed = bool(self.setting("data.mix"))
        steps = self.data.get("steps_per_reading")
        if steps is None and not is_mixed:  # an older run
            steps = self.data.get("steps_per_pass")
        if not isinstance(steps, (int, float)) or steps <= 0:
            return ""
        curve = self.events.curve("generalization_gap")
        gaps = dict(zip(curve.steps, curve.values, strict=True))
        losses = self.events.curve("val_loss")
        points = [
            Point(step, loss, gaps.get(step, math.nan))
            for step, loss in zip(losses.steps, losses.values, strict=True)
        ]
        return gap_text(points, float(steps), bool(self.setting("teachers")), is_mixed)

    def setting(self, key: str) -> Any:
        """The value of a setting of the run, such as trainer.max_steps; None if it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def value_at(self, tag: str, step: int) -> float | None:
        """The value of a scalar at `step`."""
        curve = self.events.curve(tag)
        values = dict(zip(curve.steps, curve.values, strict=True))
        return values.get(step)

    def last(self, tag: str) -> float | None:
        """The last value of a scalar that is finite."""
        values = self.events.curve(tag).values
        return next((value for value in reversed(values) if math.isfinite(value)), None)

    def usual(self, tag: str) -> float | None:
        """The median of a scalar."""
        values = [value for value in self.events.curve(tag).values if math.isfinite(value)]
        return statistics.median(values) if values else None

    def along(self, axis: str, steps: Sequence[int] | Floats) -> Floats:
        """Where `steps` are on an axis of steps, tokens or minutes."""
        places = np.asarray(steps, dtype=float)
        if axis == "tokens":
            seen = self.events.curve("tokens_seen")
            known = np.asarray(seen.steps, dtype=float), np.asarray(seen.values)
            if len(seen):
                start = np.zeros(1)
                where = np.concatenate((start, known[0])), np.concatenate((start, known[1]))
                return np.asarray(np.interp(places, *where), dtype=float)
        if axis == "minutes":
            return np.asarray(np.interp(places, *self.timeline), dtype=float)
        return places


def read_record(
    folder: Path,
    events: RunEvents | None = None,
    is_training: bool | None = None,
    forecaster: Forecaster = forecast,
) -> RunRecord:
    """The run in `folder`; `events` continues what was read before.

    Without `is_training`, a run trains if its folder is locked.
    """
    events = events or RunEvents(folder)
    events.update()
    summary = listing.read_summary(folder)
    config = _read_config(folder)
    curve = events.curve("val_loss")
    saved = max((step for step, _ in step_files(folder / "checkpoints")), default=0)
    steps = [saved, *curve.steps, *events.curve("train_loss").steps[-1:]]
    if summary and summary["steps"] < max(steps, default=0):
        summary = {}
    alive_at = events.last_time
    if is_training is None:
        is_training = listing.is_training(folder, -math.inf if summary else alive_at)
    record = RunRecord(
        folder=folder,
        events=events,
        marks=marks_of(events, summary),
        summary={} if is_training else summary,
        config=config,
        environment=_session_text(events, "environment"),
        data=_session_values(events, "data"),
        is_training=is_training,
        alive_at=alive_at,
        saved_step=0 if is_training or summary else saved,
        timeline=_timeline(events),
    )
    best = record.best
    validations = list(zip(curve.steps, curve.values, strict=True))
    expected = None
    # What is known is how runs end whose learning rate has come down just then.
    falls_until = record.setting("schedule.total_steps")
    end = record.forecast_step
    if is_training and end and record.step <= end and falls_until in (None, record.max_steps):
        name = str(record.setting("schedule.name"))
        decay = float(record.setting("optimizer.weight_decay") or 0.0)
        expected = forecaster(validations, end, name, decay)
    written = written_by(events, best[0] if best else None)
    return replace(record, written=written, forecast=expected)


def find_run(name: str | None, logs: Path) -> RunEvents:
    """The events of run `name` (NAME, NAME/version_K or a path), or of the newest with a curve.

    Raises ValueError if there is none.
    """
    if name is None:
        folders = [folder for parent in logs.glob("*") for folder in versions(parent)]
        folders.sort(key=_written_at, reverse=True)
    else:
        places = [folder_of(name, logs), Path(name)] if name.strip("/. ") else []
        folders = [
            folder
            for place in places
            for folder in ([place] if is_version(place) else versions(place))
        ]
    for folder in folders:
        events = RunEvents(folder)
        events.update()
        if events.scalars.keys() & {"train_loss", "val_loss"}:
            return events
    message = tr("no run with curves in {folder}; train one first", folder=logs.absolute())
    if name is not None:
        message = tr(
            "run_name={name}: no run with curves in {folder}", name=name, folder=logs.absolute()
        )
    raise ValueError(with_runs(message, logs))


def _written_at(folder: Path) -> float:
    """When the newest event file of a run folder was written."""
    return max((path.stat().st_mtime for path in folder.glob(EVENTS)), default=0.0)


def _read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run; {} if they are missing or damaged."""
    try:
        text = (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _session_text(events: RunEvents, name: str) -> str:
    """What the newest session wrote under `name`; "" if none did."""
    texts = events.texts.get(f"{SESSION}{name}", {})
    newest = max(texts.values(), default=None)
    if newest is None:
        return ""
    return "\n".join(line.removeprefix("    ") for line in newest.text.splitlines())


def _session_values(events: RunEvents, name: str) -> dict[str, Any]:
    """The same of YAML; {} if it is missing or damaged."""
    try:
        values = yaml.safe_load(_session_text(events, name))
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _timeline(events: RunEvents) -> tuple[Floats, Floats]:
    """Steps, and the minutes of training until each, without the pauses between sessions."""
    points: dict[int, float] = {}
    for tag in ("val_loss", "train_loss"):
        curve = events.curve(tag)
        points |= dict(zip(curve.steps, curve.times, strict=True))
    if len(points) < 2:
        return np.zeros(1), np.zeros(1)
    ordered = sorted(points.items())
    steps = np.array([step for step, _ in ordered], dtype=float)
    times = np.array([time for _, time in ordered])
    passed = np.maximum(0.0, np.diff(times))
    usual = float(np.median(passed / np.diff(steps))) * np.diff(steps)
    passed = np.where(passed > np.maximum(600.0, LONG_PAUSE * usual), usual, passed)
    starts = [
        entry.time for tag in (RESUME, ROLLBACK) for entry in events.texts.get(tag, {}).values()
    ]
    for start in sorted(starts):  # of several between two points, the last one led to the second
        around = (times[:-1] < start) & (start <= times[1:])
        passed[around] = (times[1:] - start)[around]
    return steps, np.concatenate(([0.0], np.cumsum(passed))) / 60
