"""The charts of one run."""

from __future__ import annotations

import numpy as np

from azllm_lightning.callbacks.text import loss_text
from azllm_lightning.cli.messages import tr
from azllm_lightning.report.charts import Chart, Flag, Line
from azllm_lightning.report.marks import Mark
from azllm_lightning.report.record import RunRecord
from azllm_lightning.report.ticks import Floats, averaged, thinned

BY_SOURCE = "val_loss_by_source/"

MOST_SOURCES = 8
"""Sources with a line of their own: there are no more colors that one can tell apart."""

MOST_FLAGS = 24
"""Things that happened with a number on the chart; the list below it has all."""

WIDE_RANGE = 30.0
"""Ratio of two values from which an axis is logarithmic."""


def loss_chart(record: RunRecord) -> Chart:
    """train_loss and val_loss, the best step, what happened, and the gap once the run overfits."""
    steps, raw = points(record, "train_loss")
    middle, train = averaged(steps, raw)
    lines = []
    if len(middle) < np.isfinite(raw).sum():
        lines.append(Line("", "raw", *thinned(steps, raw), is_read=False))
        lines.append(Line("train_loss", "train", middle, train))
    elif len(steps):
        lines.append(Line("train_loss", "train", *thinned(steps, raw)))
    val_steps, val = points(record, "val_loss")
    if len(val_steps):
        lines.append(Line("val_loss", "val", *thinned(val_steps, val), dots=True))
    best = record.best
    ring = None
    if best is not None:
        ring = (float(best[0]), best[1], tr("best {loss}", loss=loss_text(best[1])))
    return Chart(
        name="loss",
        title=tr("Loss"),
        unit=tr("nats per token, by step"),
        lines=tuple(lines),
        flags=tuple(flags(record.marks)),
        ring=ring,
        band=gap_band(record, (middle, train), (val_steps, val)),
        hides_start=True,
    )


def flags(marks: list[Mark]) -> list[Flag]:
    """The marks that fit above the chart; resumes give way to what went wrong."""
    numbered = list(enumerate(marks, start=1))
    chosen = sorted(numbered, key=lambda item: item[1].kind == "resume")[:MOST_FLAGS]
    chosen.sort(key=lambda item: item[0])
    return [Flag(float(mark.step), number, mark.kind, mark.title) for number, mark in chosen]


def gap_band(
    record: RunRecord, train: tuple[Floats, Floats], val: tuple[Floats, Floats]
) -> tuple[tuple[float, float], ...]:
    """The area between the two losses from the best step on, if the run overfits."""
    best = record.best
    if best is None or not record.overfits or not len(train[0]):
        return ()
    since = (val[0] >= best[0]) & np.isfinite(val[1])
    steps = val[0][since]
    if len(steps) < 2:
        return ()
    below = (train[0] > steps[0]) & (train[0] < steps[-1])
    lower_x = np.concatenate(([steps[0]], train[0][below], [steps[-1]]))
    lower_y = np.interp(lower_x, *train)
    upper = list(zip(steps.tolist(), val[1][since].tolist(), strict=True))
    lower = list(zip(lower_x.tolist(), lower_y.tolist(), strict=True))
    return (*upper, *reversed(lower), upper[0])


def middle_charts(record: RunRecord) -> list[Chart]:
    """Perplexity, bits per byte, and the gap between the losses."""
    steps, raw = averaged(*points(record, "train_loss"))
    ppl = np.exp(np.minimum(raw, 700.0))
    perplexities = [Line("train_ppl", "train", steps, ppl)] if len(steps) else []
    perplexities += _lines(record, {"val_ppl": "val"}, dots=True)
    gap = _lines(record, {"generalization_gap": "gap"}, dots=True)
    charts = [
        Chart("ppl", tr("Perplexity"), tr("log scale"), tuple(perplexities), log=True),
        Chart(
            "bpb",
            tr("Bits per byte"),
            "",
            tuple(_lines(record, {"val_bpb": "val"}, dots=True)),
            hides_start=True,
        ),
        Chart("gap", tr("Gap"), "val_loss − train_loss", tuple(gap), hides_start=True),
    ]
    return [chart for chart in charts if chart.lines and not chart.is_empty]


def source_chart(record: RunRecord) -> Chart | None:
    """val_loss of each source; None unless there are several."""
    tags = sorted(tag for tag in record.events.scalars if tag.startswith(BY_SOURCE))
    if len(tags) < 2:
        return None
    tags.sort(key=lambda tag: -(record.last(tag) or 0.0))
    shown = sorted(tags[:MOST_SOURCES])
    styles = {tag: f"series-{number}" for number, tag in enumerate(shown)}
    lines = _lines(record, styles, dots=True)
    chart = Chart(
        "sources", tr("val_loss by source"), tr("nats per token"), tuple(lines), hides_start=True
    )
    return None if chart.is_empty else chart


def small_charts(record: RunRecord) -> list[Chart]:
    """Learning rate, gradient norm, speed and memory."""
    names = {
        "lr": (tr("Learning rate"), ""),
        "grad_norm": (tr("Gradient norm"), ""),
        "tokens_per_sec": (tr("Speed"), tr("tokens/s")),
        "peak_memory_gb": (tr("Peak memory"), "GB"),
    }
    charts = []
    for tag, (title, unit) in names.items():
        lines = tuple(_lines(record, {tag: "plain"}))
        if not lines:
            continue
        values = lines[0].y[np.isfinite(lines[0].y) & (lines[0].y > 0)]
        spread = values.max() / values.min() if len(values) else 1.0
        is_log = bool(tag == "grad_norm" and spread > WIDE_RANGE)
        unit = tr("log scale") if is_log else unit
        from_zero = tag in ("tokens_per_sec", "peak_memory_gb")
        charts.append(Chart(tag, title, unit, lines, log=is_log, from_zero=from_zero))
    return [chart for chart in charts if not chart.is_empty]


def points(record: RunRecord, tag: str) -> tuple[Floats, Floats]:
    """Steps and values of a scalar."""
    curve = record.events.curve(tag)
    # Copies: a buffer that an array holds could not grow any more.
    return np.array(curve.steps, dtype=float), np.array(curve.values)


def _lines(record: RunRecord, styles: dict[str, str], dots: bool = False) -> list[Line]:
    """A line for each scalar that was logged."""
    lines = []
    for tag, style in styles.items():
        x, y = points(record, tag)
        if len(x):
            lines.append(Line(tag.removeprefix(BY_SOURCE), style, *thinned(x, y), dots=dots))
    return lines
