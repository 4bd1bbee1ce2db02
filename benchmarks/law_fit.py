"""Fit the law of the loss, and the forecast during a run, to azllm_lightning/planning/runs.tsv.

Called by `python benchmarks/law.py fit`. Writes coefficients.json and forecasts.json next to the
table, and prints how far off the law is for runs that it has not seen.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from azllm_lightning.planning import rule
from azllm_lightning.planning.forecast import FORECASTS, recent_fall
from azllm_lightning.planning.law import COEFFICIENTS, RUNS, Size, bits_per_byte

MAIN_TEXTS = ("0.25mb", "1mb", "4mb", "all")
"""Parts of one text; the others are of another kind, and are not fitted."""

START = {
    "floor": 0.4,
    "A": 0.2,
    "alpha": 0.3,
    "B": 0.5,
    "beta": 0.3,
    "R": 5.0,
    "C": 0.05,
    "gamma": 0.5,
}
"""Where the fit starts."""

PRIOR = 2.0
"""Standard deviation of the logarithm of a coefficient around its start: a weak pull."""

NOISE = 0.01
"""Relative error of a run between seeds, which that pull is compared with."""

FOLDS = 10
PROGRESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RIDGE = 0.01
"""Prior standard deviation of the forecast's two numbers, relative to the error of a run."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A row of the table."""

    name: str
    text: str
    size: Size
    is_by_rule: bool
    """Whether decay and dropout are those of the rule."""
    val_bpb: float
    last: float
    """The final val_loss, in nats per token."""
    steps: int
    curve: list[tuple[int, float]]


def main() -> None:
    """Fit both, print the errors, and write the files."""
    runs = read_runs()
    fitted = [run for run in runs if run.text in MAIN_TEXTS and run.is_by_rule]
    values = fit(fitted)
    show(fitted, values)
    errors = left_out(fitted)
    error = root_mean_square(errors.values())
    print(
        f"one run left out at a time in {FOLDS} folds: {100 * error:.1f} % of val_loss, "
        f"largest {100 * max(map(abs, errors.values())):.1f} %"
    )
    show_groups(fitted, errors)
    show_variants(runs, values)
    show_kinds(runs, values)
    ranges = {
        "parameters": bounds(run.size.parameters for run in fitted),
        "unique_tokens": bounds(run.size.unique_tokens for run in fitted),
        "passes": [1, round(max(run.size.passes for run in fitted))],
        "vocab_size": bounds(run.size.vocab_size for run in fitted),
    }
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    content = {"values": rounded, "error": round(error, 4), "ranges": ranges, "runs": len(fitted)}
    COEFFICIENTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = forecasts([run for run in runs if run.is_by_rule])
    FORECASTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


def read_runs() -> list[Run]:
    """The table of the package."""
    with RUNS.open(encoding="utf-8", newline="") as file:
        return [_run(values) for values in csv.DictReader(file, delimiter="\t")]


def _run(values: dict[str, str]) -> Run:
    bytes_per_token = float(values["bytes_per_token"])
    size = Size(
        int(values["parameters"]),
        float(values["unique_tokens"]),
        float(values["tokens"]),
        int(values["vocab_size"]),
        bytes_per_token,
    )
    wanted = rule.regularization(round(size.passes))
    chosen = rule.Regularization(
        float(values["weight_decay"]), float(values["table_decay"]), float(values["dropout"])
    )
    points = [point.partition(":") for point in values["curve"].split(",")]
    return Run(
        name=values["name"],
        text=values["text"],
        size=size,
        is_by_rule=chosen == wanted,
        val_bpb=float(values["val_loss"]) / math.log(2) / bytes_per_token,
        last=float(values["last_val_loss"]),
        steps=int(values["steps"]),
        curve=[(int(step), float(loss)) for step, _, loss in points],
    )


# The law


def fit(runs: Sequence[Run], start: dict[str, float] = START) -> dict[str, float]:
    """The coefficients with the least squared relative errors: Levenberg-Marquardt on their
    logarithms, from several starts.
    """
    names = list(start)

    def residuals(logs: Array) -> Array:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        errors = [math.log(bits_per_byte(run.size, values) / run.val_bpb) for run in runs]
        pulls = NOISE * (logs - origin) / PRIOR
        return np.array([*errors, *pulls])

    origin = np.log(np.array([start[name] for name in names]))
    generator = np.random.default_rng(0)
    starts = [origin, *(origin + generator.normal(0, 0.5, len(names)) for _ in range(5))]
    found = [levenberg_marquardt(residuals, point) for point in starts]
    best = min(found, key=lambda logs: float((residuals(logs) ** 2).sum()))
    return dict(zip(names, np.exp(best).tolist(), strict=True))


def levenberg_marquardt(
    residuals: Callable[[Array], Array], point: Array, iterations: int = 100
) -> Array:
    """The point with the least sum of squared residuals near a start."""
    damping = 1e-2
    now = residuals(point)
    for _ in range(iterations):
        step = 1e-5
        columns = [(residuals(point + step * unit) - now) / step for unit in np.eye(len(point))]
        jacobian = np.stack(columns, axis=1)
        normal = jacobian.T @ jacobian
        move = np.linalg.solve(
            normal + damping * np.diag(np.diag(normal) + 1e-12), -jacobian.T @ now
        )
        trial = residuals(point + np.clip(move, -1, 1))
        if (trial**2).sum() < (now**2).sum():
            point = point + np.clip(move, -1, 1)
            now = trial
            damping = max(damping / 3, 1e-9)
        else:
            damping *= 4
    return point


def left_out(runs: Sequence[Run]) -> dict[str, float]:
    """The relative error of each run, by a law fitted without its fold.

    Runs of one model on one text are in one fold: an unseen combination, at any number of passes.
    """
    groups = sorted({(run.size.parameters, run.text, run.size.vocab_size) for run in runs})
    order = np.random.default_rng(1).permutation(len(groups))
    fold = {groups[index]: place % FOLDS for place, index in enumerate(order)}
    errors: dict[str, float] = {}
    for number in range(FOLDS):
        out = [
            run
            for run in runs
            if fold[run.size.parameters, run.text, run.size.vocab_size] == number
        ]
        values = fit([run for run in runs if run not in out])
        errors |= {run.name: relative(run, values) for run in out}
    return errors


def relative(run: Run, values: dict[str, float]) -> float:
    """The relative error of the law for a run."""
    return bits_per_byte(run.size, values) / run.val_bpb - 1


def show(runs: Sequence[Run], values: dict[str, float]) -> None:
    """The coefficients, and how well they fit."""
    print(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    error = root_mean_square(relative(run, values) for run in runs)
    print(f"{len(runs)} runs, error of the fit {100 * error:.1f} %")


def show_groups(runs: Sequence[Run], errors: dict[str, float]) -> None:
    """The errors by text, model, and passes."""
    keys: dict[str, Callable[[Run], Any]] = {
        "text": lambda run: run.text,
        "model": lambda run: run.name.partition("-")[0],
        "passes": lambda run: round(run.size.passes),
        "vocabulary": lambda run: run.size.vocab_size,
    }
    for label, key in keys.items():
        for group in sorted({key(run) for run in runs}):
            chosen = [errors[run.name] for run in runs if key(run) == group]
            mean = statistics.fmean(chosen)
            print(
                f"  {label} {group}: {len(chosen)} runs, error "
                f"{100 * root_mean_square(chosen):.1f} %, mean {100 * mean:+.1f} %"
            )


def show_variants(runs: Sequence[Run], values: dict[str, float]) -> None:
    """Runs with another decay or dropout, next to the one by the rule."""
    by_rule = {
        (run.size.parameters, run.text, run.size.vocab_size, round(run.size.passes)): run
        for run in runs
        if run.is_by_rule
    }
    for run in runs:
        key = (run.size.parameters, run.text, run.size.vocab_size, round(run.size.passes))
        if not run.is_by_rule and key in by_rule:
            gain = run.val_bpb / by_rule[key].val_bpb - 1
            print(f"  variant {run.name}: {100 * gain:+.1f} % of the rule's bits per byte")


def show_kinds(runs: Sequence[Run], values: dict[str, float]) -> None:
    """Text of other kinds: its bits per byte for each one of the law."""
    for run in runs:
        if run.text not in MAIN_TEXTS:
            ratio = run.val_bpb / bits_per_byte(run.size, values)
            print(f"  kind {run.name}: {ratio:.3f} of the law's bits per byte")


# The forecast


def forecasts(runs: Sequence[Run]) -> list[list[float]]:
    """For each share of the steps: the two numbers of `forecast.Row`, and the error of runs that
    were left out.
    """
    rows = []
    for progress in PROGRESS:
        points = [point for run in runs if (point := at(run, progress)) is not None]
        if len(points) < 5:
            continue
        values = np.array(points)
        usual, follows = line(values)
        errors = []
        for index in range(len(values)):
            a, b = line(np.delete(values, index, axis=0))
            fall, future, _ = values[index]
            errors.append((a + b * fall - future) / (1 - future))
        error = root_mean_square(errors)
        rows.append([progress, round(usual, 4), round(follows, 4), round(error, 4)])
        print(
            f"  forecast at {progress:.0%}: error {100 * error:.2f} % of val_loss, "
            f"{len(values)} runs"
        )
    return rows


def at(run: Run, progress: float) -> tuple[float, float, float] | None:
    """(recent fall, fall still to come, steps) at a share of a run; None if not validated there."""
    points = [point for point in run.curve if point[0] <= (progress + 0.02) * run.steps]
    if (len(points) < 2 and progress >= 0.2) or not points:
        return None
    step, now = points[-1]
    if abs(step / run.steps - progress) > 0.05 or len(points) < 2:
        return None
    return recent_fall(points), 1 - run.last / now, float(run.steps)


def line(values: Array) -> tuple[float, float]:
    """(constant, slope) of the fall to come over the recent fall, by least squares."""
    design = np.stack([np.ones(len(values)), values[:, 0]], axis=1)
    normal = design.T @ design + RIDGE**2 * np.eye(2)
    constant, slope = np.linalg.solve(normal, design.T @ values[:, 1])
    return float(constant), float(slope)


def root_mean_square(values: Any) -> float:
    """The root of the mean square."""
    return math.sqrt(statistics.fmean(value * value for value in values))


def bounds(values: Any) -> list[float]:
    """The smallest and the largest."""
    found = list(values)
    return [min(found), max(found)]
