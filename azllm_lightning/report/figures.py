"""Charts of runs for notebooks, with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from azllm_lightning.callbacks.text import loss_text
from azllm_lightning.cli.messages import tr
from azllm_lightning.report.record import RunRecord, find_run, read_record
from azllm_lightning.report.run_charts import BY_SOURCE, points
from azllm_lightning.runs.paths import LOGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHARTS = {
    "loss": "train_loss val_loss",
    "perplexity": "train_ppl val_ppl",
    "bpb": "val_bpb",
    "gap": "generalization_gap",
    "sources": BY_SOURCE,
    "lr": "lr",
    "grad_norm": "grad_norm",
    "speed": "tokens_per_sec",
    "memory": "peak_memory_gb",
}
"""The charts of `plot_runs`, each with its scalars."""

FEW_POINTS = 100
"""Validations up to which each has a dot."""

AXES = ("step", "tokens", "minutes")


def plot_runs(
    runs: str | Path | Iterable[str | Path],
    charts: str | Sequence[str] = ("loss", "perplexity", "lr", "gap"),
    axis: str = "step",
) -> list[Axes]:
    """Draw `charts` of one run or several with matplotlib, and return their axes, to add to them.

    Each run is a path or a name, as for `read_run`. Charts are loss, perplexity, bpb, gap, sources,
    lr, grad_norm, speed and memory; `axis` is step, tokens or minutes. Training is pale,
    validation has dots; a ring marks the best step, dotted lines mark resumes and problems.

    Raises ValueError if matplotlib (the extra `notebooks`) is missing, or there is no such run,
    chart or axis.
    """
    names = [charts] if isinstance(charts, str) else list(charts)
    _check("charts", names, tuple(CHARTS))
    _check("axis", [axis], AXES)
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        message = tr(
            "plot_runs needs matplotlib ({reason}): pip install matplotlib, or this project with "
            'its extra ".[notebooks]"',
            reason=error,
        )
        raise ValueError(message) from None
    paths = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not paths:
        raise ValueError(tr("plot_runs([]): name at least one run"))
    found = [find_run(str(path), LOGS) for path in paths]
    records = [read_record(events.folder, events) for events in found]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    size = (5.5 * columns, 3.5 * rows) if len(names) > 1 else (7.0, 4.0)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    drawn: list[Axes] = list(grid.flat)
    for chart, axes in zip(names, drawn, strict=False):
        _draw(axes, chart, records, axis)
    for axes in drawn[len(names) :]:
        axes.remove()
    return drawn[: len(names)]


def _check(name: str, given: Sequence[str], choices: Sequence[str]) -> None:
    for value in given:
        if value not in choices:
            raise ValueError(
                tr(
                    "plot_runs: {name}={value} is not one of {choices}",
                    name=name,
                    value=value,
                    choices=", ".join(choices),
                )
            )


def _draw(axes: Axes, chart: str, records: Sequence[RunRecord], axis: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for number, record in enumerate(records):
        tags = CHARTS[chart].split()
        if chart == "sources":
            tags = sorted(tag for tag in record.events.scalars if tag.startswith(BY_SOURCE))
        for position, tag in enumerate(tags):
            color = _color(number, position, chart, len(records))
            _line(axes, record, tag, axis, color, len(records) == 1)
        if chart == "loss":
            _marks(axes, record, axis, f"C{number}", len(records) == 1)
    axes.set(title=_title(chart), xlabel=_axis_text(axis))
    axes.grid(alpha=0.3)
    if chart == "perplexity":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart in ("loss", "sources") or len(records) > 1:
        axes.legend(fontsize="small")


def _color(number: int, position: int, chart: str, runs: int) -> str:
    """By run if there are several, else by curve: the colors of the page."""
    if chart == "sources":
        return f"C{position % 10}"
    if runs > 1:
        return f"C{number % 10}"
    return "#1769aa" if position == 0 and chart in ("loss", "perplexity") else "#c2410c"


def _line(axes: Axes, record: RunRecord, tag: str, axis: str, color: str, is_alone: bool) -> None:
    steps, values = points(record, tag)
    if not len(steps):
        return
    is_training = tag.startswith("train_")
    is_measured = tag.startswith(("val_", "generalization"))
    label = tag.removeprefix(BY_SOURCE)
    if not is_alone:
        names = f"{record.name} {label}" if tag.startswith(BY_SOURCE) else record.name
        label = "_" if is_training else names
    axes.plot(
        record.along(axis, steps),
        values,
        color=color,
        alpha=0.45 if is_training else 1.0,
        marker="." if is_measured and len(steps) < FEW_POINTS else "",
        label=label,
    )


def _marks(axes: Axes, record: RunRecord, axis: str, color: str, is_alone: bool) -> None:
    """The best step, and what happened, which has a label if there is only one run."""
    best = record.best
    if best is not None:
        place = record.along(axis, [best[0]])
        text = tr("best {loss}", loss=loss_text(best[1]))
        label = f"{text}, {tr('step {step:,}', step=best[0])}" if is_alone else "_"
        axes.plot(
            place,
            [best[1]],
            "o",
            mfc="none",
            mec="#0f7b3f" if is_alone else color,
            ms=9,
            label=label,
        )
    for mark in record.marks:
        where = float(record.along(axis, [mark.step])[0])
        title = f"{mark.title}, {tr('step {step:,}', step=mark.step)}" if is_alone else "_"
        shade = "0.5" if mark.kind in ("resume", "branch") else "#b42318"
        axes.axvline(where, color=shade, linestyle=":", linewidth=1.2, label=title)


def _title(chart: str) -> str:
    titles = {
        "loss": f"{tr('Loss')}, {tr('nats per token')}",
        "perplexity": tr("Perplexity"),
        "bpb": f"{tr('Bits per byte')} (val_bpb)",
        "gap": f"{tr('Gap')} (val_loss − train_loss)",
        "sources": tr("val_loss by source"),
        "lr": tr("Learning rate"),
        "grad_norm": tr("Gradient norm"),
        "speed": f"{tr('Speed')}, {tr('tokens/s')}",
        "memory": f"{tr('Peak memory')}, GB",
    }
    return titles[chart]


def _axis_text(axis: str) -> str:
    return {"step": tr("step"), "tokens": tr("tokens"), "minutes": tr("minutes")}[axis]
