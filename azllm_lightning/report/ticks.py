"""Round numbers for the axes of charts, and curves thinned out to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_POINTS = 400
"""Points of a curve on a chart; a line of 1000 pixels cannot show more."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    sizes = [unit * power for unit in (10, 5, 2.5, 2, 1, 0.5)]
    enough = (size for size in sizes if high // size - math.ceil(low / size) + 1 >= count - 1)
    size = next(enough, sizes[-1])
    first = math.ceil(low / size - 1e-9)
    last = math.floor(high / size + 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, and 2 and 5 times these where there are few."""
    decades = math.log10(high / low)
    units = (1, 2, 5) if decades < 3 else (1, 3) if decades < 5 else (1,)
    if decades < 0.5:
        return [tick for tick in linear_ticks(low, high, 4) if tick > 0]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [unit * 10.0**power for power in powers for unit in units]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def tick_text(value: float) -> str:
    """A number at an axis: 0.5, 20, 1.5k, 3M, 1e-4."""
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:g}G"
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1000:
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:g}"


def thinned(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """At most MOST_POINTS points of a curve: of each interval its lowest and its highest, so that
    no spike is lost. A value that is not finite stays as a gap.
    """
    xs = np.asarray(x, dtype=float)
    ys = np.asarray(y, dtype=float)
    if len(xs) <= MOST_POINTS:
        return xs, ys
    chosen: set[int] = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), MOST_POINTS // 2 - 1):
        values = ys[part]
        finite = np.isfinite(values)
        if not finite.all():
            chosen.add(int(part[int(np.argmin(finite))]))
        if finite.any():
            chosen.add(int(part[int(np.argmin(np.where(finite, values, np.inf)))]))
            chosen.add(int(part[int(np.argmax(np.where(finite, values, -np.inf)))]))
    places = sorted(chosen)
    return xs[places], ys[places]


def averaged(x: Floats, y: Floats, count: int = 100) -> tuple[Floats, Floats]:
    """The means of `count` intervals of a curve, at the middle of each; as it is if it is short."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 2 * count:
        return x, y
    parts = np.array_split(np.arange(len(x)), count)
    middle = np.array([x[part].mean() for part in parts])
    means = np.array([y[part].mean() for part in parts])
    return middle, means
