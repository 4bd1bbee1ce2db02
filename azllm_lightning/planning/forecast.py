"""A forecast of the final val_loss of a run, from its curve so far and its schedule."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from azllm_lightning.training.schedule import POWER

FORECASTS = Path(__file__).with_name("forecasts.json")

EARLIER = 0.05
"""Share of the steps by which a forecast may come before the first of the recorded ones."""

LEAST_POINTS = 2
"""Validations after step 0 that a forecast needs."""

UNUSUAL = 1.5
"""Growth of the error for a schedule other than "linear", that of the curves that this is learned
from, and "power".
"""

STRONG_DECAY = 0.5
"""Weight decay from which on a run counts as strongly decayed: its loss stays high while the
learning rate is high, and falls at the end.
"""


class Row(NamedTuple):
    """What is known at some share of a run: the fall of the logarithm of val_loss still to come is
    `usual` + `follows` times its fall over the last halving of steps, and `error` is how exact.
    """

    progress: float
    usual: float
    follows: float
    error: float


@dataclass(frozen=True)
class Forecast:
    """The val_loss that a run should end with; two runs of three are within `error` of it, in
    nats per token.
    """

    val_loss: float
    error: float

    @property
    def low(self) -> float:
        """The lower end of what is likely."""
        return self.val_loss - self.error

    @property
    def high(self) -> float:
        """The upper end of what is likely."""
        return self.val_loss + self.error


def forecast(
    curve: Sequence[tuple[int, float]],
    total_steps: int,
    schedule: str = "linear",
    decay: float = 0.0,
) -> Forecast | None:
    """The final val_loss of a run of `total_steps` with the validations `curve`: (step, val_loss),
    in order.

    `schedule` is schedule.name of its config, and `decay` optimizer.weight_decay. The fall over the
    last halving of steps, from half the current step to now, is compared with that of recorded runs
    (benchmarks/law.py), whose learning rate fell to about zero in a line. With "power" the rate is
    still higher, and as many times more is expected. None before the share of the steps at which
    these begin, and for a run without finite losses. The rise of a run that overfits is not
    foreseen before it begins.
    """
    points = [(step, loss) for step, loss in curve if step > 0 and math.isfinite(loss)]
    if len(points) < LEAST_POINTS or not total_steps:
        return None
    step, now = points[-1]
    progress = min(1.0, step / total_steps)
    if progress == 1.0:
        return Forecast(now, 0.0)
    rows = recorded(decay >= STRONG_DECAY)
    if progress < rows[0].progress - EARLIER:
        return None
    row = row_at(progress, rows)
    fall = recent_fall(points)
    still_to_come = row.usual + row.follows * fall
    if schedule == "power":
        still_to_come *= (1 - progress) ** (POWER - 1)
    error = row.error * (1.0 if schedule in ("linear", "power") else UNUSUAL)
    expected = now * math.exp(-still_to_come)
    return Forecast(expected, expected * error)


def recent_fall(points: Sequence[tuple[int, float]]) -> float:
    """Fall of the logarithm of the loss over the last halving of steps.

    Between validations the loss is linear in the logarithm of the step.
    """
    step, now = points[-1]
    half = step / 2
    if half <= points[0][0]:
        (first_step, first), (second_step, second) = points[0], points[-1]
    else:
        after = bisect_right([at for at, _ in points], half)
        (first_step, first), (second_step, second) = points[after - 1], points[after]
    slope = (second - first) / math.log(second_step / first_step)
    before = first + slope * math.log(half / first_step)
    return math.log(before / now)


def row_at(progress: float, rows: Sequence[Row]) -> Row:
    """The row for a share of the steps, between two of `rows`."""
    if progress <= rows[0].progress:
        return rows[0]
    end = Row(1.0, 0.0, 0.0, 0.0)
    for low, high in zip(rows, [*rows[1:], end], strict=True):
        if progress < high.progress:
            share = (progress - low.progress) / (high.progress - low.progress)
            return Row(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
    return end


@cache
def recorded(is_strong: bool = False) -> tuple[Row, ...]:
    """The rows of the package for runs with a strong weight decay, or a weak one."""
    content: dict[str, Any] = json.loads(FORECASTS.read_text(encoding="utf-8"))
    return tuple(Row(*row) for row in content["strong" if is_strong else "weak"])
