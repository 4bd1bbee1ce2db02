"""What part of a curve a chart shows."""

from __future__ import annotations

import numpy as np
import pytest

from azllm_lightning.report.charts import Chart, Line, draw


@pytest.mark.parametrize(("points", "is_shown"), [(2, True), (4, True), (40, False)])
def test_a_steep_start_leaves_the_chart_only_once_there_is_more(
    points: int, is_shown: bool
) -> None:
    steps = np.linspace(0.0, 400.0, points)
    losses = 0.5 + 8.0 * np.exp(-steps / 10)
    line = Line("val_loss", "val", steps, losses)
    drawing = draw(Chart("loss", "Loss", "", (line,), hides_start=True), 400, 200)
    first = drawing.y[0] + drawing.y[1] * losses[0]
    assert bool(first >= drawing.top - 1) == is_shown
    assert drawing.top <= drawing.y[0] + drawing.y[1] * losses[-1] <= drawing.bottom
