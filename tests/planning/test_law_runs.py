"""The law and the forecast against the runs that they are fitted to."""

from __future__ import annotations

import importlib
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.planning.forecast import Row, forecast, recorded, row_at
from azllm_lightning.planning.law import bits_per_byte, coefficients
from tests.callbacks.recorded import CORPUS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def law_fit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/law_fit.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("law_fit")


@pytest.fixture
def law_forecast(law_fit: Any) -> Any:
    """benchmarks/law_forecast.py."""
    return importlib.import_module("law_forecast")


def fitted_runs(law_fit: Any) -> list[Any]:
    kinds = law_fit.OTHER_TEXTS[1:]
    runs = [
        run
        for run in law_fit.read_runs()
        if run.is_by_rule
        and run.text not in kinds
        and run.size.parameters >= law_fit.LEAST_PARAMETERS
    ]
    found: list[Any] = law_fit.merged(runs)
    return found


def test_the_law_is_that_of_its_runs(law_fit: Any) -> None:
    runs = fitted_runs(law_fit)
    values = dict(coefficients().values)
    errors = [law_fit.relative(run, values) for run in runs]
    assert law_fit.root_mean_square(errors) < coefficients().error
    assert abs(statistics.fmean(errors)) < 0.01
    for run in runs:
        low, high = coefficients().ranges["parameters"]
        assert low <= run.size.parameters <= high


@pytest.mark.slow
def test_a_fit_to_the_table_gives_the_law_of_the_package(law_fit: Any) -> None:
    runs = fitted_runs(law_fit)
    values = law_fit.fit(runs)
    for run in runs:
        ours = bits_per_byte(run.size, coefficients().values)
        assert bits_per_byte(run.size, values) == pytest.approx(ours, rel=0.005)


@pytest.mark.parametrize("is_strong", [False, True])
def test_the_forecast_is_closer_later_in_the_stored_runs(
    law_fit: Any, law_forecast: Any, is_strong: bool
) -> None:
    curves = law_forecast.curves(law_fit.read_runs(), is_strong)
    assert len(curves) > 5
    errors = []
    for share in (0.5, 0.9):
        found = [error_at(curve, share) for curve in curves]
        errors.append(law_fit.root_mean_square([error for error in found if error is not None]))
    assert errors[1] < errors[0] < 0.15
    assert errors[1] < 0.03


def error_at(curve: Any, share: float) -> float | None:
    """The relative error of the forecast at a share of a stored run."""
    points = [point for point in curve.points if point[0] <= share * curve.steps]
    found = forecast(points, curve.steps, "linear", 3.0 if curve.is_strong else 0.1)
    return None if found is None else found.val_loss / curve.points[-1][1] - 1


def test_a_run_ends_near_what_was_forecast() -> None:
    curve = [(step, val_loss) for step, _, val_loss in CORPUS]
    total, last = curve[-1]
    for share in (0.3, 0.5, 0.75, 0.9):
        found = forecast([point for point in curve if point[0] <= share * total], total)
        assert found is not None
        assert abs(found.val_loss - last) < 3 * found.error


def test_a_rate_that_falls_late_has_more_to_come() -> None:
    """320 steps of model=tiny with schedule=power (benchmarks/LOG.md, 2026-11-26)."""
    losses = (5.4623, 4.8338, 4.5241, 4.2797, 4.1033, 3.9553, 3.8303, 3.7201)
    curve = [(40 * number, loss) for number, loss in enumerate(losses, start=1)]
    for count in (4, 5, 6, 7):
        late, line = (forecast(curve[:count], 320, name) for name in ("power", "linear"))
        assert late is not None
        assert line is not None
        assert late.val_loss < line.val_loss
        assert abs(late.val_loss - losses[-1]) < 2 * late.error
        if count < 7:
            assert abs(late.val_loss - losses[-1]) < abs(line.val_loss - losses[-1])


def test_the_rows_of_a_forecast_go_on_to_the_end_of_a_run() -> None:
    rows = recorded(is_strong=True)
    assert row_at(0.0, rows) == rows[0]
    assert row_at(1.0, rows) == Row(1.0, 0.0, 0.0, 0.0)
    assert all(math.isfinite(value) for row in rows for value in row)
    middle = row_at((rows[0].progress + rows[1].progress) / 2, rows)
    assert min(rows[0].error, rows[1].error) <= middle.error <= max(rows[0].error, rows[1].error)
