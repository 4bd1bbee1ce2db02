"""Fit the law of the loss to azllm_lightning/planning/runs.tsv.

Called by `python benchmarks/law.py fit`. Writes coefficients.json next to the table, and prints
how far off the law is for runs that it has not seen.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from azllm_lightning.planning import rule
from azllm_lightning.planning.law import COEFFICIENTS, RUNS, Size, bits_per_byte

OTHER_TEXTS = ("log", "legislation", "wikipedia-literature", "other")
"""Text of another kind than that of most runs."""

LEAST_PARAMETERS = 500_000
"""Smaller models, which nobody trains on a text of their own, do not follow the same law."""

START = {
    "floor": 0.5,
    "A": 0.1,
    "alpha": 0.35,
    "B": 0.9,
    "beta": 0.3,
    "R": 1.0,
    "rho": 0.5,
    "tied": 0.05,
    "affixes": 0.015,
    "neighbors": 0.015,
    "induction": 0.05,
    "replaced": 0.02,
    "log": 1.2,
}
"""Where the fit starts. `log` is the scale of the text of that name, see planning.survey."""

PRIOR = {
    "floor": 0.15,
    "A": 1.0,
    "alpha": 0.1,
    "B": 1.0,
    "beta": 0.5,
    "R": 2.0,
    "rho": 0.3,
    "tied": 1.0,
    "affixes": 1.0,
    "neighbors": 1.0,
    "induction": 1.0,
    "replaced": 1.0,
    "log": 0.5,
}
"""Standard deviation of the logarithm of a coefficient around its start: a weak pull, but for the
floor and alpha, which runs of this size hardly determine. Theirs is that of Hoffmann et al. 2022.
"""

NOISE = 0.01
"""Relative error of a run between seeds, which that pull is compared with."""

STARTS = 2
RESAMPLES = 20
"""Fits to random draws of the groups of runs, for the spread of the coefficients."""

DROPOUT = 0.1
DECAY = 0.1
"""A dropout that differs by so much from the rule's, and decays that differ by this share of it,
still count as the rule's.
"""


Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A row of the table."""

    name: str
    text: str
    is_ours: bool
    size: Size
    weight_decay: float
    is_replaced: bool
    is_by_rule: bool
    """Whether decay and dropout are those of the rule."""
    val_bpb: float
    curve: list[tuple[int, float]]

    @property
    def group(self) -> tuple[Any, ...]:
        """The model and the text; a small and a large part of one text are different."""
        size = self.size
        text = (self.text, round(size.text_bytes))
        tables = size.is_tied, size.vocab_size, size.shares_affixes, size.starts_from_neighbors
        return size.parameters, *tables, size.starts_with_induction, *text


def main() -> None:
    """Fit both, print the errors, and write the files."""
    runs = read_runs()
    of_rule = [run for run in runs if run.is_by_rule and run.text not in OTHER_TEXTS[1:]]
    fitted = merged([run for run in of_rule if run.size.parameters >= LEAST_PARAMETERS])
    values = fit(fitted)
    show(fitted, values)
    errors = left_out(fitted, lambda run: (*run.group, round(10 * math.log(run.size.tokens))))
    report("same model and text, other tokens", errors)
    unseen = left_out(fitted, lambda run: run.group)
    report("model and text left out together", unseen)
    of_model = left_out(fitted, lambda run: (run.size.parameters, run.size.is_tied))
    report("model left out", of_model)
    error = root_mean_square(unseen.values())
    show_groups(fitted, unseen)
    show_variants(runs, values)
    for run in of_rule:
        if run.size.parameters < LEAST_PARAMETERS:
            print(f"  smaller {run.name}: {100 * relative(run, values):+.1f} %")
    for run in runs:
        if run.text in OTHER_TEXTS[1:]:
            ratio = run.val_bpb / expected(run, values)
            print(f"  kind {run.name}: {ratio:.3f} of the law's bits per byte")
    spread = spread_of(fitted)
    ranges = {
        "parameters": bounds(run.size.parameters for run in fitted),
        "different_bytes": bounds(run.size.different_bytes for run in fitted),
        "passes": [0, round(max(run.size.passes for run in fitted))],
        "vocab_size": bounds(run.size.vocab_size for run in fitted),
        # A small model of a long text is outside by its text alone.
        "parameters_per_token": [0, round(max(run.size.parameters_per_token for run in fitted))],
    }
    content = {
        "values": {name: float(f"{value:.4g}") for name, value in values.items()},
        "spread": {name: float(f"{value:.2g}") for name, value in spread.items()},
        "error": round(error, 4),
        "ranges": ranges,
        "runs": len(fitted),
    }
    COEFFICIENTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print({name: f"x or / {math.exp(value):.2f}" for name, value in spread.items()})


def merged(runs: Sequence[Run]) -> list[Run]:
    """One run for all that differ by the seed only, with their mean loss."""
    same: dict[Any, list[Run]] = {}
    for run in runs:
        same.setdefault((*run.group, run.size.tokens, run.is_replaced), []).append(run)
    return [
        replace(found[0], val_bpb=statistics.fmean(run.val_bpb for run in found))
        for found in same.values()
    ]


def read_runs() -> list[Run]:
    """The table of the package."""
    with RUNS.open(encoding="utf-8", newline="") as file:
        return [_run(values) for values in csv.DictReader(file, delimiter="\t")]


def _run(values: dict[str, str]) -> Run:
    bytes_per_token = float(values["bytes_per_token"])
    size = Size(
        parameters=int(values["parameters"]),
        unique_tokens=float(values["unique_tokens"]),
        tokens=float(values["tokens"]),
        text_bytes=float(values["text_bytes"]),
        vocab_size=int(values["vocab_size"]),
        bytes_per_token=bytes_per_token,
        is_tied=values["tied"] == "1",
        shares_affixes=float(values["affix_rate"]) > 0,
        starts_from_neighbors=values["embeddings"] == "neighbors",
        starts_with_induction=values["attention"] == "induction",
    )
    passes = round(size.passes) or size.passes
    wanted = [rule.regularization(passes), rule.regularization(passes, size.parameters_per_token)]
    decays = (float(values["weight_decay"]), float(values["table_decay"]))
    points = [point.partition(":") for point in values["curve"].split(",") if point]
    return Run(
        name=values["name"],
        text=values["text"],
        is_ours=values["recipe"] == "ours",
        size=size,
        weight_decay=decays[0],
        is_replaced=float(values["replaced"]) > 0,
        is_by_rule=values["recipe"] == "ours"
        and any(
            np.allclose(decays, (each.weight_decay, each.table_decay), rtol=DECAY)
            and abs(float(values["dropout"]) - each.dropout) <= DROPOUT + 1e-9
            for each in wanted
        ),
        val_bpb=float(values["val_loss"]) / math.log(2) / bytes_per_token,
        curve=[(int(step), float(loss)) for step, _, loss in points],
    )


# The law


def expected(run: Run, values: dict[str, float]) -> float:
    """The law for a run: that of the package, but that token replacement is not always used, and
    that the text of LOG.md is of another kind.
    """
    found = bits_per_byte(run.size, values)
    if run.is_replaced != rule.is_replacing(run.size.passes):
        found *= 1 - values["replaced"] if run.is_replaced else 1 / (1 - values["replaced"])
    return found * (values["log"] if run.text == "log" else 1.0)


def fit(runs: Sequence[Run], start: dict[str, float] = START) -> dict[str, float]:
    """The coefficients with the least squared relative errors: Levenberg-Marquardt on their
    logarithms, from several starts.
    """
    names = list(start)
    widths = np.array([PRIOR[name] for name in names])

    def residuals(logs: Array) -> Array:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        errors = [math.log(expected(run, values) / run.val_bpb) for run in runs]
        return np.array([*errors, *(NOISE * (logs - origin) / widths)])

    origin = np.log(np.array([start[name] for name in names]))
    generator = np.random.default_rng(0)
    more = generator.normal(0, 0.3, (STARTS - 1, len(names)))
    found = [levenberg_marquardt(residuals, origin + move) for move in [0 * origin, *more]]
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
        before = float((now**2).sum())
        after = float((trial**2).sum())
        if after < before:
            point = point + np.clip(move, -1, 1)
            now = trial
            damping = max(damping / 3, 1e-9)
        else:
            damping *= 4
        if damping > 1e4 or before * (1 - 1e-7) < after < before:
            break
    return point


def left_out(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[str, float]:
    """The relative error of each run, by a law fitted without all runs of the same `key`."""
    errors: dict[str, float] = {}
    for group in sorted({key(run) for run in runs}):
        rest = [run for run in runs if key(run) != group]
        values = fit(rest)
        errors |= {run.name: relative(run, values) for run in runs if key(run) == group}
    return errors


def spread_of(runs: Sequence[Run]) -> dict[str, float]:
    """The standard deviation of the logarithm of each coefficient between random draws of groups
    of runs.
    """
    groups = sorted({run.group for run in runs})
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(len(groups), size=len(groups))
        draws.append(fit([run for n in chosen for run in runs if run.group == groups[n]]))
    return {name: float(np.std([math.log(values[name]) for values in draws])) for name in draws[0]}


def relative(run: Run, values: dict[str, float]) -> float:
    """The relative error of the law for a run."""
    return expected(run, values) / run.val_bpb - 1


def report(what: str, errors: dict[str, float]) -> None:
    """How far off the law is for runs that it was not fitted to."""
    largest = max(errors, key=lambda name: abs(errors[name]))
    print(
        f"{what}: {100 * root_mean_square(errors.values()):.1f} % of val_loss, "
        f"median {100 * statistics.median(map(abs, errors.values())):.1f} %, "
        f"largest {100 * errors[largest]:+.1f} % ({largest})"
    )


def show(runs: Sequence[Run], values: dict[str, float]) -> None:
    """The coefficients, and how well they fit."""
    print(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    error = root_mean_square(relative(run, values) for run in runs)
    print(f"{len(runs)} runs, error of the fit {100 * error:.1f} %")


def show_groups(runs: Sequence[Run], errors: dict[str, float]) -> None:
    """The errors by text, model, and passes."""
    keys: dict[str, Callable[[Run], Any]] = {
        "text": lambda run: run.text,
        "parameters": lambda run: run.size.parameters,
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
    """Runs with another decay or dropout than the rule's."""
    for run in runs:
        if run.is_ours and not run.is_by_rule:
            gain = run.val_bpb / expected(run, values) - 1
            print(f"  variant {run.name}: {100 * gain:+.1f} % of what the rule should reach")


def root_mean_square(values: Any) -> float:
    """The root of the mean square."""
    return math.sqrt(statistics.fmean(value * value for value in values))


def bounds(values: Any) -> list[float]:
    """The smallest and the largest."""
    found = list(values)
    return [min(found), max(found)]
