"""Charts as SVG, drawn by pygal, with the colors left to the style sheet of the page.

An SVG is sharp on paper, needs no script to be seen, and the same one is the picture of a model
card. What a chart shows under the pointer is added by `page.js`, from `pointer_data`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from azllm_lightning.report.ticks import Floats, linear_ticks, log_ticks, tick_text

FLAG_ROOM = 24
"""Height of the row above a chart for the numbers of what happened."""

FLAG_WIDTH = 17.0
LETTER = 7.6
"""About the width of a letter of a label, which is bold."""

LETTER_HEIGHT = 12
FARTHEST = 80
"""How far from the best point its label may be, where curves leave no room for it."""

FEW_POINTS = 60
"""Up to so many points of a curve are marked with dots."""

EARLY = 0.08
"""Share of a run whose falling loss may leave the chart at the top, and whose rising gap at the
bottom, where it would flatten the rest."""

MARGIN = 0.06
"""Share of the height of the rest that is added there, so that one sees where it comes from."""

FLATTENED = 1.4
"""Times the height of the rest from which the start does so."""

ENOUGH = 8
"""Points that the rest must have for that: the first validations are shown from the start."""

TITLE_ROOM = 30
"""Height of the heading of a picture."""

PICTURE_CSS = """
.paper { fill: var(--card); }
.chart .heading { fill: var(--ink); font-size: 13px; }
.chart .key { fill: var(--c); font-size: 13px; font-weight: 600; text-anchor: end; }
"""

NUMBERS = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Line:
    """A curve of a chart; `style` is its class in the style sheet."""

    name: str
    style: str
    x: Floats
    y: Floats
    dots: bool = False
    is_read: bool = True
    """Whether its value is shown under the pointer."""


@dataclass(frozen=True)
class Flag:
    """A thing that happened at `x`, shown as `number` above the chart."""

    x: float
    number: int
    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows, whatever its size."""

    name: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    axis: str = "step"
    log: bool = False
    flags: tuple[Flag, ...] = ()
    ring: tuple[float, float, str] | None = None
    """The best point, with its label."""
    band: tuple[tuple[float, float], ...] = ()
    """The corners of a shaded area."""
    hides_start: bool = False
    """Whether the start may leave the chart, at the side that it comes from."""
    from_zero: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no point to draw."""
        return not any(np.isfinite(line.y).any() for line in self.lines)


@dataclass(frozen=True)
class Drawing:
    """An SVG, and how it maps values to its units: x' = x[0] + x[1] * x, likewise y."""

    svg: str
    x: tuple[float, float]
    y: tuple[float, float]
    top: float
    bottom: float


def draw(chart: Chart, width: int, height: int) -> Drawing:
    """`chart` as an SVG of that shape."""
    import pygal
    from pygal.style import Style

    scale = _Scale(chart)
    numbers = dict.fromkeys(_SIZES, 12)
    graph = pygal.XY(
        width=width,
        height=height,
        style=Style(**numbers),
        css=(),
        js=(),
        no_prefix=True,
        disable_xml_declaration=True,
        show_legend=False,
        show_dots=False,
        dots_size=2.6,
        allow_interruptions=True,
        truncate_label=-1,
        spacing=6,
        margin=6,
        margin_top=FLAG_ROOM if chart.flags else 8,
        margin_right=14,
        xrange=(scale.left, scale.right),
        range=(scale.low, scale.high),
        x_labels=_labels(linear_ticks(scale.left, scale.right, max(4, width // 120))),
        y_labels=[
            {"value": scale.place(tick), "label": tick_text(tick)}
            for tick in scale.ticks(max(4, height // 70))
        ],
    )
    styles = []
    if chart.band:
        graph.add("", [(x, scale.place(y)) for x, y in chart.band], fill=True)
        styles.append("band")
    for line in chart.lines:
        graph.add("", scale.points(line))
        styles.append(f"line {line.style}")
        measured = scale.measured(line)
        if len(measured) == 1 or (line.dots and len(measured) <= FEW_POINTS):
            graph.add("", measured, show_dots=True, stroke=False)
            styles.append(f"dots {line.style}")
    found: dict[str, Any] = {}

    def finish(root: Any) -> Any:
        found.update(_finished(root, graph, chart, scale, styles))
        return root

    graph.add_xml_filter(finish)
    svg = graph.render(is_unicode=True)
    return Drawing(svg=svg, **found)


_SIZES = (
    "label_font_size major_label_font_size value_font_size value_label_font_size "
    "tooltip_font_size title_font_size legend_font_size no_data_font_size"
).split()


class _Scale:
    """The range of a chart's axes."""

    def __init__(self, chart: Chart) -> None:
        xs = np.concatenate([line.x for line in chart.lines])
        self.is_log = chart.log
        self.left = float(min(xs.min(), 0.0))
        self.right = float(xs.max())
        if self.right <= self.left:
            self.right = self.left + 1
        late = self.left + EARLY * (self.right - self.left)
        values = np.concatenate([line.y for line in chart.lines])
        finite = values[np.isfinite(values) & ((values > 0) | (not chart.log))]
        lowest, highest = float(finite.min()), float(finite.max())
        if chart.hides_start:
            known = np.isfinite(values)
            first = values[known][xs[known].argmin()]
            rest = values[known & (xs >= late)]
            if len(rest) >= ENOUGH and highest - lowest > FLATTENED * (rest.max() - rest.min()) > 0:
                # Only on the side that it comes from: an early best must stay on the chart.
                if first > rest.max():
                    highest = float(rest.max())
                    highest += MARGIN * (highest - lowest)
                elif first < rest.min():
                    lowest = float(rest.min())
                    lowest -= MARGIN * (highest - lowest)
        if chart.log:
            lowest, highest = lowest / 1.05, highest * 1.05
            if highest / lowest < 1.5:
                lowest, highest = lowest / 1.2, highest * 1.2
        elif highest - lowest < 1e-6 * max(abs(highest), 1e-9):
            pad = 0.1 * abs(highest) or 1.0
            lowest, highest = lowest - pad, highest + pad
        if chart.from_zero:
            lowest, highest = 0.0, 1.08 * highest
        self.lowest, self.highest = lowest, highest
        self.low, self.high = self.place(lowest), self.place(highest)

    def place(self, value: float) -> float:
        """Where a value is on the axis that pygal draws."""
        return math.log10(max(value, 1e-300)) if self.is_log else value

    def ticks(self, count: int) -> list[float]:
        if self.is_log:
            return log_ticks(self.lowest, self.highest)
        return linear_ticks(self.lowest, self.highest, count)

    def points(self, line: Line) -> list[tuple[float, float | None]]:
        """The points of a line, cut off where it leaves the chart; None where there is no value."""
        points: list[tuple[float, float | None]] = []
        before: tuple[float, float] | None = None
        for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True):
            if not math.isfinite(y) or (self.is_log and y <= 0):
                points.append((x, None))
                before = None
                continue
            here = (x, self.place(y))
            inside = self._holds(here)
            if before is not None and self._holds(before) != inside:
                edge = self.high if max(before[1], here[1]) > self.high else self.low
                share = (edge - before[1]) / (here[1] - before[1])
                points.append((before[0] + share * (x - before[0]), edge))
            points.append(here if inside else (x, None))
            before = here
        return points

    def measured(self, line: Line) -> list[tuple[float, float]]:
        """The points of a line that are on the chart."""
        known = zip(line.x.tolist(), line.y.tolist(), strict=True)
        placed = [
            (x, self.place(y)) for x, y in known if math.isfinite(y) and (y > 0 or not self.is_log)
        ]
        return [point for point in placed if self._holds(point)]

    def _holds(self, point: tuple[float, float]) -> bool:
        return self.low <= point[1] <= self.high


def _labels(ticks: Iterable[float]) -> list[dict[str, Any]]:
    return [{"value": tick, "label": tick_text(tick)} for tick in ticks]


def _finished(
    root: Any, graph: Any, chart: Chart, scale: _Scale, styles: Sequence[str]
) -> dict[str, Any]:
    """Give the parts of pygal's SVG the classes of our style sheet, add flags and the best point,
    and remove what the page does not need; returns the mapping of values.
    """
    _strip(root)
    view = graph.view
    left, top = graph.margin_box.left, graph.margin_box.top
    # pygal writes the corner of the plot in whole units.
    left, top = int(left), int(top)
    plot, overlay = (
        next(node for node in root.iter("g") if node.get("class") == name)
        for name in ("plot", "plot overlay")
    )
    for node in (node for part in (plot, overlay) for node in part):
        if match := re.match(r"series serie-(\d+)", node.get("class", "")):
            node.set("class", styles[int(match[1])])
    _add_flags(graph, plot, chart.flags)
    if chart.ring is not None:
        _add_ring(graph, overlay, chart, scale)
    for node in root.iter():
        for key in ("d", "x", "y", "cx", "cy", "width", "height"):
            if key in node.attrib:
                node.set(key, NUMBERS.sub(lambda match: f"{float(match[0]):.1f}", node.get(key)))
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", f"{chart.title} ({chart.unit})" if chart.unit else chart.title)
    x0, y0 = view.x(0.0), view.y(0.0)
    return {
        "x": (left + x0, view.x(1.0) - x0),
        "y": (top + y0, view.y(1.0) - y0),
        "top": float(top),
        "bottom": float(top + view.height),
    }


def _strip(root: Any) -> None:
    """Remove scripts, styles, comments, native tooltips, and the parts of pygal's own tooltip."""
    root.attrib.pop("id", None)
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.tag if isinstance(child.tag, str) else "comment"
            classes = child.get("class", "")
            if name in ("comment", "defs", "title", "desc") or classes in (
                "titles",
                "plot text-overlay",
                "plot tooltip-overlay",
            ):
                parent.remove(child)


def _add_flags(graph: Any, plot: Any, flags: Sequence[Flag]) -> None:
    """A dotted line and a number for each thing that happened; numbers do not overlap."""
    free_from = -math.inf
    for flag in sorted(flags, key=lambda flag: flag.x):
        x = graph.view.x(flag.x)
        group = graph.svg.node(plot, class_=f"flag {flag.kind}")
        graph.svg.node(group, "path", d=f"M{x:.1f} -2 V{graph.view.height:.1f}")
        at = min(max(x, free_from), graph.view.width)
        free_from = at + FLAG_WIDTH
        graph.svg.node(group, "circle", cx=at, cy=-12.0, r=8)
        label = graph.svg.node(group, "text", x=at, y=-8.0)
        label.text = str(flag.number)


def _add_ring(graph: Any, overlay: Any, chart: Chart, scale: _Scale) -> None:
    assert chart.ring is not None
    best, value, text = chart.ring
    x, y = graph.view.x(best), graph.view.y(scale.place(value))
    group = graph.svg.node(overlay, class_="ring")
    graph.svg.node(group, "circle", cx=x, cy=y, r=6)
    curves = []
    for line in chart.lines:
        points = [point for point in scale.points(line) if point[1] is not None]
        if line.is_read and points:
            curves.append(np.array([(graph.view.x(at), graph.view.y(to)) for at, to in points]))
    left, baseline = _free_place(
        (x, y), len(text) * LETTER, (graph.view.width, graph.view.height), curves
    )
    label = graph.svg.node(group, "text", x=left, y=baseline)
    label.set("text-anchor", "start")
    label.text = text


def _free_place(
    ring: tuple[float, float], width: float, room: tuple[float, float], curves: Sequence[Floats]
) -> tuple[float, float]:
    """The left end and the baseline of a label that no curve crosses, near `ring`; above it if
    there is none in the plot, of the size `room`.
    """
    x, y = ring
    lefts = [min(max(x - share * width, 0.0), room[0] - width) for share in (0.5, 1.0, 0.0)]
    for shift in range(0, FARTHEST, 4):
        for baseline in (y - 13 - shift, y + 20 + shift):
            if not LETTER_HEIGHT <= baseline <= room[1] - 3:
                continue
            box = (baseline - LETTER_HEIGHT - 3, baseline + 6)
            for left in lefts:
                if not any(_crosses(curve, (left, left + width), box) for curve in curves):
                    return left, baseline
    return lefts[0], y - 13 if y > 26 else y + 20


def _crosses(curve: Floats, x: tuple[float, float], y: tuple[float, float]) -> bool:
    """Whether a curve of points (N, 2), in the order of x, enters a box."""
    if curve[0, 0] > x[1] or curve[-1, 0] < x[0]:
        return False
    inside = curve[(curve[:, 0] > x[0]) & (curve[:, 0] < x[1]), 1]
    within = np.concatenate((inside, np.interp(x, curve[:, 0], curve[:, 1])))
    return bool(within.min() <= y[1] and within.max() >= y[0])


def picture(chart: Chart, width: int, height: int, style: str) -> str:
    """`chart` as an SVG file of its own, light or dark as its reader prefers; `style` is the
    style sheet of charts.
    """
    drawing = draw(replace(chart, flags=()), width, height + TITLE_ROOM)
    opening, _, rest = drawing.svg.partition(">")
    names = [line for line in chart.lines if line.is_read]
    title = escape(f"{chart.title}, {chart.unit}")
    heading = f'<text class="heading" x="10" y="{18 - TITLE_ROOM}">{title}</text>'
    for row, line in enumerate(names):
        place = f'x="{width - 14}" y="{18 - TITLE_ROOM + 17 * row}"'
        heading += f'<text class="key {line.style}" {place}>{escape(line.name)}</text>'
    size = f'width="{width}" height="{height + 2 * TITLE_ROOM}"'
    view = f'viewBox="0 -{TITLE_ROOM} {width} {height + 2 * TITLE_ROOM}"'
    opening = re.sub(r'viewBox="[^"]*"', f"{view} {size}", opening)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n{opening}><style>{style}{PICTURE_CSS}</style>'
        f'<rect class="paper" y="-{TITLE_ROOM}" {size}/>{heading}{rest}\n'
    )


def pointer_data(chart: Chart) -> dict[str, Any]:
    """The values of a chart as plain types, for the script of the page."""
    lines = [
        {
            "name": line.name,
            "style": line.style,
            "x": [_short(x) for x in line.x.tolist()],
            "y": [_short(y) for y in line.y.tolist()],
        }
        for line in chart.lines
        if line.is_read
    ]
    flags = [{"x": _short(flag.x), "n": flag.number, "title": flag.title} for flag in chart.flags]
    return {"axis": chart.axis, "log": chart.log, "lines": lines, "flags": flags}


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    return int(rounded) if rounded == int(rounded) else rounded
