"""What happened in a run, and at which step: resumes, rollbacks, diagnoses, losses that are not
finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.local_paths import last_part
from azllm_lightning.report.events import RunEvents
from azllm_lightning.runs.checkpoint_files import STEP_NAME

RESUME = "resume"
ROLLBACK = "rollback"
BRANCH = "branch"
"""Tags of the texts that `live.LivePage` logs at the start of a session, and of a branch."""

DIAGNOSIS = "diagnosis/"
"""Prefix of the tags of what `callbacks.diagnosis` reports."""

LEADING = re.compile(r"^\D{0,12}[\d,]+\D{0,10}?: ")
"""The step at the start of a diagnosis, which the page shows by itself."""


@dataclass(frozen=True)
class Mark:
    """One thing that happened at `step`; `kind` is resume, rollback, branch, diagnosis or
    broken.
    """

    kind: str
    step: int
    title: str
    text: str = ""
    name: str = ""
    """Of a diagnosis: overfitting, dead, ..."""


def marks_of(events: RunEvents, summary: Mapping[str, Any]) -> list[Mark]:
    """Everything that happened, by step."""
    found = [*_starts(events, summary), *_branches(events), *_diagnoses(events), *_broken(events)]
    return sorted(found, key=lambda mark: mark.step)


def _starts(events: RunEvents, summary: Mapping[str, Any]) -> list[Mark]:
    resumes = events.texts.get(RESUME, {})
    rollbacks = events.texts.get(ROLLBACK, {})
    steps = set(resumes)
    if not resumes and not rollbacks:  # a run of an earlier version: its summary names the files
        names = [last_part(str(path)) for path in summary.get("resumed_from") or []]
        steps = {int(match[1]) for match in map(STEP_NAME.fullmatch, names) if match}
    found = [Mark("resume", step, tr("resumed")) for step in steps]
    for step, entry in rollbacks.items():
        found.append(Mark("rollback", step, tr("rolled back"), _sentence(entry.text)))
    return found


def _branches(events: RunEvents) -> list[Mark]:
    """Where branches of the training went back to an earlier state."""
    texts = events.texts.get(BRANCH, {})
    return [
        Mark("branch", step, tr("branch"), _sentence(entry.text)) for step, entry in texts.items()
    ]


def _diagnoses(events: RunEvents) -> list[Mark]:
    titles = diagnosis_titles()
    found = []
    for tag in sorted(events.texts.keys() | events.scalars.keys()):
        if not tag.startswith(DIAGNOSIS):
            continue
        name = tag.removeprefix(DIAGNOSIS)
        texts = events.texts.get(tag, {})
        for step in sorted({*texts, *events.curve(tag).steps}):
            title = titles.get(name, name.replace("_", " "))
            text = LEADING.sub("", texts[step].text) if step in texts else ""
            text = re.sub(rf"^{re.escape(title)}( \(\w+\))?[.:] ", "", text)
            found.append(Mark("diagnosis", step, title, _sentence(text), name))
    return found


def _sentence(text: str) -> str:
    """`text` with a capital, unless it begins with the name of a curve."""
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]


def diagnosis_titles() -> dict[str, str]:
    """A short name for each problem of `callbacks.diagnosis`."""
    return {
        "overfitting": tr("overfitting"),
        "undertrained": tr("undertrained"),
        "too_small": tr("underfitting"),
        "lr_too_high": tr("learning rate too high"),
        "dead": tr("not learning"),
        "scale_falls": tr("fp16 scale falls"),
        "data_bound": tr("waiting for data"),
        "memory_spills": tr("GPU memory is full"),
        "slow_steps": tr("steps became slow"),
        "early_stop": tr("stopped early"),
    }


def _broken(events: RunEvents) -> list[Mark]:
    """The first step of each series of losses that are not finite."""
    found = []
    for tag in ("train_loss", "val_loss"):
        curve = events.curve(tag)
        steps = _first_of_each_series(curve.steps, curve.values)
        found += [Mark("broken", step, tr("{tag} is not finite", tag=tag)) for step in steps]
    return found


def _first_of_each_series(steps: Sequence[int], values: Sequence[float]) -> list[int]:
    before = [True, *map(math.isfinite, values)]
    return [
        step
        for step, value, was_finite in zip(steps, values, before, strict=False)
        if was_finite and not math.isfinite(value)
    ]
