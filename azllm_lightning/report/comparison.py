"""The page of several runs: their curves on the same axes, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from azllm_lightning.callbacks.text import count_text, duration, loss_text
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.report.charts import Chart, Line
from azllm_lightning.report.document import (
    HALF,
    LARGE,
    Markup,
    document,
    escape,
    figure,
    section,
    table,
)
from azllm_lightning.report.page import pill
from azllm_lightning.report.record import RunRecord
from azllm_lightning.report.run_charts import points
from azllm_lightning.report.ticks import averaged, thinned

STYLES = 8
"""Lines that one can tell apart by color and dashes."""

NO_DIFFERENCE = ("run_name", "lang", "logs_dir", "ckpt_path", "overrides", "auto")
"""Settings that say nothing about what was learned."""

TEXT_SETTINGS = "name dir path val_path val_fraction max_bytes tales_bytes tales_seed".split()
"""The settings of data that decide the validation text of a run that does not record it."""


class ValidationWindows(NamedTuple):
    """What each validation reads: some windows of `block_size` tokens, chosen by a fixed seed, or
    all of them.
    """

    block_size: int | None
    some: int | None
    """How many of them; None if all."""


class Comparability(NamedTuple):
    """Whether the losses of runs compare, and their bits per byte; `note` says why not."""

    losses: bool
    bits: bool
    note: str


def comparison(records: Sequence[RunRecord]) -> str:
    """The page of several runs, in the language in use."""
    names = ", ".join(record.name for record in records)
    count = len(records)
    compares = _comparability(records)
    title = trn("{count} run compared", "{count} runs compared", count)
    parts = [
        f'<header><div class="title"><h1>{escape(title)}</h1></div>'
        f'<p class="facts">{escape(names)}</p></header>',
        section(tr("Results"), [_results(records, compares)], name="results"),
        *_charts(records, compares.note),
        section(tr("Settings that differ"), [_differences(records)], name="differences"),
    ]
    return document(f"{title}: {names}", parts)


def _results(records: Sequence[RunRecord], compares: Comparability) -> str:
    """A row per run; the lowest value is marked only in columns that are comparable."""
    head = [
        tr("run"),
        tr("status"),
        tr("best val_loss"),
        tr("at step"),
        "val_bpb",
        tr("steps"),
        tr("tokens"),
        tr("time"),
        tr("tokens/s"),
    ]
    bpbs = [_best_bpb(record) for record in records]
    losses = [record.best[1] if record.best else math.inf for record in records]
    rows = []
    for number, record in enumerate(records):
        best = record.best
        tokens, rate = record.tokens_seen, record.tokens_per_sec
        rows.append(
            [
                _key(number, record),
                Markup(pill(record.status)),
                _marked(losses, number, compares.losses),
                f"{best[0]:,}" if best else "-",
                _marked(bpbs, number, compares.bits),
                f"{record.step:,}",
                count_text(int(tokens)) if tokens else "-",
                duration(record.seconds),
                f"{rate:,.0f}" if rate else "-",
            ]
        )
    return table(head, rows, "numbers")


def _key(number: int, record: RunRecord) -> Markup:
    """The name of a run with the color of its lines."""
    style = f"key series-{number % STYLES}"
    return Markup(f'<span class="{style}"><i></i>{escape(record.name)}</span>')


def _best_bpb(record: RunRecord) -> float:
    value = record.value_at("val_bpb", record.best[0]) if record.best else None
    return math.inf if value is None or not math.isfinite(value) else value


def _comparability(records: Sequence[RunRecord]) -> Comparability:
    if not _have_one_validation_text(records):
        note = tr(
            "The runs were validated on different texts: neither their losses nor their bits per "
            "byte can be compared."
        )
        return Comparability(losses=False, bits=False, note=note)
    windows = {_windows(record) for record in records}
    is_one_tokenizer = _have_one_tokenizer(records)
    # With another tokenizer, the same number of windows is other text, unless it is all of them.
    if len(windows) > 1 or not (is_one_tokenizer or windows.pop().some is None):
        note = tr(
            "The runs were validated on different windows of the text: `evaluate run_name=NAME` "
            "compares them on all of it."
        )
        return Comparability(losses=False, bits=False, note=note)
    if not is_one_tokenizer:
        note = tr(
            "The runs have different tokenizers: compare their bits per byte, not their losses."
        )
        return Comparability(losses=False, bits=True, note=note)
    return Comparability(losses=True, bits=True, note="")


def _have_one_validation_text(records: Sequence[RunRecord]) -> bool:
    """Whether all runs were validated on the same documents; older runs, which do not record it,
    by the settings that decide them.
    """
    texts = [record.data.get("validation_text") for record in records]
    if None in texts:
        texts = [[record.setting(f"data.{key}") for key in TEXT_SETTINGS] for record in records]
    return all(text == texts[0] for text in texts)


def _windows(record: RunRecord) -> ValidationWindows:
    """The validation windows of a run; those of older runs, which do not record all of this, by
    their settings.
    """
    most = record.setting("data.val_windows")
    count = record.data.get("validation_windows", most)
    total = record.data.get("all_validation_windows")
    are_all = most is None or count < most if total is None else count == total
    block_size = record.data.get("block_size", record.setting("data.block_size"))
    return ValidationWindows(block_size, None if are_all else count)


def _have_one_tokenizer(records: Sequence[RunRecord]) -> bool:
    """Whether the tokens of all runs are the same, so that their losses per token compare."""
    return len({_tokenizer(record) for record in records}) == 1


def _tokenizer(record: RunRecord) -> str:
    """The fingerprint of a run's tokenizer; without it, the size of the vocabulary."""
    try:
        return Tokenizer.from_file(record.folder).fingerprint
    except (ValueError, OSError):
        return str(record.setting("data.vocab_size"))


def _marked(values: Sequence[float], number: int, are_comparable: bool) -> str:
    """A value of a column, in bold if it is the lowest of comparable ones."""
    value = values[number]
    if not math.isfinite(value):
        return "-"
    text = loss_text(value)
    is_lowest = are_comparable and value == min(values)
    return Markup(f'<b class="lowest">{text}</b>') if is_lowest else text


def _charts(records: Sequence[RunRecord], note: str) -> Iterator[str]:
    axes = {"step": tr("by step"), "tokens": tr("by tokens"), "minutes": tr("by minutes")}
    buttons = "".join(
        f'<button type="button" data-axis="{axis}">{escape(text)}</button>'
        for axis, text in axes.items()
    )
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    yield f'<div class="switch">{buttons}</div>{remark}'
    for axis in axes:
        large = _chart(records, axis, "val_loss", "val_loss", tr("nats per token"))
        halves = [
            _chart(records, axis, "val_bpb", tr("Bits per byte"), "val_bpb"),
            _chart(records, axis, "train_loss", "train_loss", tr("nats per token")),
        ]
        drawn = "".join(figure(chart, HALF) for chart in halves if chart is not None)
        first = section("", [figure(large, LARGE)]) if large is not None else ""
        yield f'<div data-axis="{axis}">{first}<div class="grid two">{drawn}</div></div>'


def _chart(
    records: Sequence[RunRecord], axis: str, tag: str, title: str, unit: str
) -> Chart | None:
    """A scalar of all runs; None if none has it."""
    lines = []
    for number, record in enumerate(records):
        steps, values = points(record, tag)
        if not len(steps):
            continue
        if tag == "train_loss":
            steps, values = averaged(steps, values)
        steps, values = thinned(steps, values)
        if not len(steps):
            continue
        places = record.along(axis, steps)
        style = f"series-{number % STYLES}"
        dots = tag != "train_loss"
        lines.append(Line(record.name, style, places, np.asarray(values), dots=dots))
    chart = Chart(f"{tag}-{axis}", title, unit, tuple(lines), axis=axis, hides_start=True)
    return chart if lines and not chart.is_empty else None


def _differences(records: Sequence[RunRecord]) -> str:
    flat = [flattened(record.config) for record in records]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = []
    for key in keys:
        if key.partition(".")[0] in NO_DIFFERENCE:
            continue
        values = [_shown(found.get(key)) for found in flat]
        if len(set(values)) > 1:
            rows.append([Markup(f"<code>{escape(key)}</code>"), *values])
    if not rows:
        return f'<p class="note">{escape(tr("no setting differs"))}</p>'
    names = [_key(number, record) for number, record in enumerate(records)]
    return table([tr("setting"), *names], rows, "settings")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
