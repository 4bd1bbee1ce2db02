"""What part of a curve a chart shows."""

from __future__ import annotations

import numpy as np
import pytest

from azllm_lightning.report.charts import Chart, Drawing, Line, draw
from azllm_lightning.report.ticks import Floats


@pytest.mark.parametrize(("points", "is_shown"), [(2, True), (4, True), (40, False)])
def test_a_steep_start_leaves_the_chart_only_once_there_is_more(
    points: int, is_shown: bool
) -> None:
    steps = np.linspace(0.0, 400.0, points)
    losses = 0.5 + 8.0 * np.exp(-steps / 10)
    drawing = shown(steps, losses)
    first = drawing.y[0] + drawing.y[1] * losses[0]
    assert bool(first >= drawing.top - 1) == is_shown
    assert drawing.top <= drawing.y[0] + drawing.y[1] * losses[-1] <= drawing.bottom


def test_an_early_best_stays_on_the_chart_whose_start_leaves_it() -> None:
    """val_loss of a small text: from 9 to its best in the first twentieth, then up for ever."""
    steps = np.linspace(0.0, 400.0, 41)
    losses = 3.0 + steps / 400
    losses[:3] = 9.0, 2.0, 2.2
    drawing = shown(steps, losses)
    first, best, last = (drawing.y[0] + drawing.y[1] * losses[i] for i in (0, 1, -1))
    assert first < drawing.top
    assert drawing.top <= last < best <= drawing.bottom + 1


def test_a_gap_that_starts_low_leaves_the_chart_at_the_bottom() -> None:
    steps = np.linspace(0.0, 400.0, 41)
    gaps = steps / 1000
    gaps[0] = -3.0
    drawing = shown(steps, gaps)
    first, second, last = (drawing.y[0] + drawing.y[1] * gaps[i] for i in (0, 4, -1))
    assert first > drawing.bottom
    assert drawing.top - 1 <= last < second <= drawing.bottom


def shown(steps: Floats, values: Floats) -> Drawing:
    line = Line("val_loss", "val", steps, values)
    return draw(Chart("loss", "Loss", "", (line,), hides_start=True), 400, 200)
