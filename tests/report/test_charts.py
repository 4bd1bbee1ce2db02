"""What part of a curve a chart shows."""

from __future__ import annotations

import re

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


@pytest.mark.parametrize(
    "losses",
    [
        [9.0, 5.4],  # two validations
        [9.0, 5.4, 5.3],
        [5.0, 9.0, 9.0],
        [9.0, 5.0, 9.0],
        [9.0, 8.0, 5.0, 6.0, 7.0, 7.5],
        list(3 + 6 * np.exp(-np.arange(20) / 3)),
    ],
)
@pytest.mark.parametrize("size", [(400, 200), (900, 300)])
def test_no_curve_crosses_the_label_of_the_best_point(
    losses: list[float], size: tuple[int, int]
) -> None:
    steps = np.linspace(0.0, 400.0, len(losses))
    values = np.array(losses)
    best = int(values.argmin())
    text = f"best {values[best]:.4f}"
    train = Line("train_loss", "train", steps[1:], values[1:] - 0.2)
    lines = (Line("val_loss", "val", steps, values), train)
    drawing = draw(Chart("loss", "Loss", "", lines, ring=(steps[best], values[best], text)), *size)
    match = re.search(rf"<text([^>]*)>{text}</text>", drawing.svg)
    assert match is not None
    x, y = (float(re.findall(rf' {name}="([-\d.]+)"', match[1])[0]) for name in "xy")
    group = re.search(r'transform="translate\((\d+), (\d+)\)" class="plot overlay"', drawing.svg)
    assert group is not None
    x, y = x + int(group[1]), y + int(group[2])
    assert int(group[1]) <= x
    assert x + 7.5 * len(text) <= size[0]
    across = np.linspace(x, x + 7.5 * len(text), 200)
    for line in lines:
        places = drawing.x[0] + drawing.x[1] * line.x
        heights = np.interp(across, places, drawing.y[0] + drawing.y[1] * line.y, np.nan, np.nan)
        assert not ((heights > y - 11) & (heights < y + 2)).any()


def shown(steps: Floats, values: Floats) -> Drawing:
    line = Line("val_loss", "val", steps, values)
    return draw(Chart("loss", "Loss", "", (line,), hides_start=True), 400, 200)
