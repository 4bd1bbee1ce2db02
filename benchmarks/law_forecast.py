"""Fit the forecast of a run's final loss to the curves of azllm_lightning/planning/runs.tsv.

Called by `python benchmarks/law.py fit`. Writes forecasts.json next to the table, and prints how
far off the forecast is for runs that it has not seen, by how far they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from law_fit import Array, Run, read_runs, root_mean_square

from azllm_lightning.planning.forecast import (
    FORECASTS,
    LEAST_POINTS,
    STRONG_DECAY,
    recent_fall,
)

PROGRESS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NEAR = 0.07
"""How far a validation may be from a share of a run."""

RIDGE = 0.2
"""Error of a run relative to the prior standard deviation of forecast.Row.follows.

Were the logarithm of the loss a line over that of the step, the fall to come would be
log2(1 / progress) times the recent one; half of that is expected.
"""

RECORDED = (
    "200:5.805 400:5.101 600:4.710 800:4.416 1000:4.178 1200:4.039 1400:3.904 1600:3.790 "
    "1800:3.686 2000:3.606 2200:3.565 2400:3.526",
    "100:2.812 200:1.347 300:0.971 400:0.788 500:0.695 600:0.640",
)
"""Two more curves, of fresh Azerbaijani and of tales (tests/callbacks/recorded.py)."""


@dataclass(frozen=True)
class Curve:
    """The validations of a run, to its end."""

    points: list[tuple[int, float]]
    is_strong: bool
    """Whether its weight decay is strong."""

    @property
    def steps(self) -> int:
        """All of the run."""
        return self.points[-1][0]


def main() -> None:
    """Fit both kinds, print the errors, and write the file."""
    found = {}
    for name in ("weak", "strong"):
        print(f"decay {name}:")
        found[name] = forecasts(curves(read_runs(), name == "strong"))
    FORECASTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def curves(runs: Sequence[Run], is_strong: bool) -> list[Curve]:
    """Those of runs by the rule and of the peer with a strong weight decay, or a weak one."""
    chosen = [
        Curve(run.curve, run.weight_decay >= STRONG_DECAY)
        for run in runs
        if len(run.curve) > 3 and (run.is_by_rule or not run.is_ours)
    ]
    for text in RECORDED:
        points = [point.partition(":") for point in text.split()]
        chosen.append(Curve([(int(step), float(loss)) for step, _, loss in points], False))
    return [curve for curve in chosen if curve.is_strong == is_strong]


def forecasts(curves: Sequence[Curve]) -> list[list[float]]:
    """For each share of the steps: the two numbers of `forecast.Row`, and the error of runs that
    were left out.
    """
    rows: list[list[float]] = []
    for progress in reversed(PROGRESS):
        points = [point for curve in curves if (point := at(curve, progress)) is not None]
        values = np.array(points)
        usual, follows = line(values, progress)
        errors = []
        for index, (fall, future) in enumerate(points):
            constant, slope = line(np.delete(values, index, axis=0), progress)
            errors.append(math.expm1(future - constant - slope * fall))
        error = root_mean_square(errors)
        # With so few runs, an earlier forecast may seem to be the better one.
        known = max(round(error, 4), rows[0][3] if rows else 0.0)
        rows.insert(0, [progress, round(usual, 4), round(follows, 4), known])
        print(f"  at {progress:.0%}: error {100 * error:.1f} % of val_loss, {len(values)} runs")
    return rows


def at(curve: Curve, progress: float) -> tuple[float, float] | None:
    """(recent fall, fall still to come) at the validation nearest to a share of a run; None if
    there is none within NEAR.
    """
    step = min((step for step, _ in curve.points), key=lambda at: abs(at / curve.steps - progress))
    points = [point for point in curve.points if point[0] <= step]
    if abs(step / curve.steps - progress) > NEAR or len(points) < LEAST_POINTS:
        return None
    return recent_fall(points), math.log(points[-1][1] / curve.points[-1][1])


def line(values: Array, progress: float) -> tuple[float, float]:
    """(constant, slope) of the fall to come over the recent fall, by least squares with a prior for
    the slope.
    """
    prior = 0.5 * math.log2(1 / progress)
    design = np.stack([np.ones(len(values)), values[:, 0]], axis=1)
    normal = design.T @ design + np.diag([0.0, RIDGE**2])
    right = design.T @ values[:, 1] + np.array([0.0, RIDGE**2 * prior])
    constant, slope = np.linalg.solve(normal, right)
    return float(constant), float(slope)
