"""The page of one run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

import yaml

from azllm_lightning.callbacks.text import count_text, duration, loss_text, perplexity_text
from azllm_lightning.cli.durations import local_time
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.local_paths import last_part
from azllm_lightning.config.resume import own_entries
from azllm_lightning.report.document import (
    BROAD,
    LARGE,
    MIDDLE,
    SMALL,
    as_json,
    commands,
    document,
    escape,
    figure,
    folded,
    section,
    table,
)
from azllm_lightning.report.record import RunRecord
from azllm_lightning.report.run_charts import (
    loss_chart,
    middle_charts,
    small_charts,
    source_chart,
)
from azllm_lightning.report.written import Written, way_text
from azllm_lightning.runs.checkpoint_files import BEST, step_files
from azllm_lightning.runs.paths import address_of, name_address_of, resume_address_of
from azllm_lightning.training.schedule import twice_as_long

MOST_ROWS = 60
"""Validations in the table of the page."""

REFRESH_SECONDS = (10, 120)
"""Shortest and longest pause before the page of a running training is loaded again."""

SILENT_INTERVALS = 3.0
"""Times the interval between validations, which write the page, after which a run without one may
have been stopped."""

SILENT_SECONDS = 600.0
"""But not sooner."""

SYMBOLS = {"done": "✓", "training": "●", "stopped": "■", "unfinished": "▲"}


def page(record: RunRecord) -> str:
    """The complete page of a run, in the language in use."""
    parts = [
        *_header(record),
        _tiles(record),
        _losses(record),
        *_more_charts(record),
        *_samples(record),
        section(tr("What next"), [commands(next_commands(record))], name="next"),
        *_details(record),
    ]
    return document(record.name, parts, _refresh_seconds(record))


def status_text(status: str) -> str:
    """The word for a status of `RunRecord`."""
    words = {
        "done": tr("done"),
        "training": tr("training"),
        "stopped": tr("stopped"),
        "unfinished": tr("unfinished"),
    }
    return words.get(status, status)


def pill(status: str) -> str:
    """The status as a colored word with a symbol."""
    symbol = SYMBOLS.get(status, "")
    return (
        f'<span class="pill {escape(status)}"><i aria-hidden="true">{symbol}</i>'
        f"{escape(status_text(status))}</span>"
    )


def _refresh_seconds(record: RunRecord) -> int | None:
    """About the time between two validations, while the run trains."""
    if not record.is_training:
        return None
    interval = record.validation_interval or 0.0
    return int(min(max(interval, REFRESH_SECONDS[0]), REFRESH_SECONDS[1]))


def _header(record: RunRecord) -> Iterator[str]:
    alive = datetime.fromtimestamp(record.alive_at)
    stamp = alive.astimezone().isoformat(timespec="seconds")
    limit = ""
    if record.is_training and (interval := record.validation_interval) is not None:
        limit = f' data-silent="{max(SILENT_SECONDS, SILENT_INTERVALS * interval):.0f}"'
    when = f'<time datetime="{stamp}"{limit}>{alive:%Y-%m-%d %H:%M:%S}</time>'
    facts = [escape(text) for text in _facts(record)]
    facts.append(f"{escape(tr('last sign of life'))} {when}")
    name, _, version = record.name.rpartition("/")
    yield (
        f'<header><div class="title"><h1>{escape(name)}<small>/{escape(version)}</small></h1>'
        f"{pill(record.status)}</div>"
        f'<p class="facts">{" · ".join(facts)}</p>{_progress(record)}</header>'
    )


def _facts(record: RunRecord) -> Iterator[str]:
    size = record.summary.get("num_params")
    if isinstance(size, int):
        yield tr("{params} parameters", params=count_text(size))
    shape = [record.setting(f"model.{key}") for key in ("n_layer", "n_embd")]
    if all(isinstance(number, int) for number in shape):
        yield tr("{layers} layers, width {width}", layers=shape[0], width=shape[1])
    if text := _text_name(record):
        yield tr("text: {name}", name=text)


def _text_name(record: RunRecord) -> str:
    """The files of the training text, or the name of a data set."""
    paths = record.setting("data.path") or []
    names = [last_part(str(path)) for path in ([paths] if isinstance(paths, str) else paths)]
    return ", ".join(names[:3]) or str(record.setting("data.name") or "")


def _progress(record: RunRecord) -> str:
    last = record.max_steps
    if not last:
        return f'<p class="progress">{escape(tr("step {step:,}", step=record.step))}</p>'
    share = min(1.0, record.step / last)
    words = [tr("step {step:,} of {steps:,}", step=record.step, steps=last)]
    left = record.seconds_left
    if record.is_training and left is not None:
        words.append(tr("about {time} left", time=duration(left)))
        end = local_time(record.alive_at + left)
        if end is not None:
            pattern = "%H:%M" if end.date() == datetime.now().date() else "%Y-%m-%d %H:%M"
            words.append(tr("ends around {time}", time=end.strftime(pattern)))
    text = escape(" · ".join(words))
    return (
        f'<div class="progress"><div class="bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}">'
        f'<i style="width:{100 * share:.1f}%"></i></div>'
        f"<p><b>{100 * share:.0f} %</b> {text}</p></div>"
    )


def _tiles(record: RunRecord) -> str:
    tiles = []
    best = record.best
    if best is not None:
        step, loss = best
        at = tr("at step {step:,}", step=step)
        tiles.append((tr("best val_loss"), loss_text(loss), at, "best"))
        ppl = record.value_at("val_ppl", step)
        tiles.append((tr("perplexity"), perplexity_text(ppl) if ppl else "-", at, ""))
        bpb = record.value_at("val_bpb", step)
        tiles.append((tr("bits per byte"), _loss(bpb), at, ""))
    forecast = record.forecast
    if forecast is not None and record.step < (record.forecast_step or 0):
        at = tr("at step {step:,}", step=record.forecast_step)
        note = f"± {forecast.error:.3f}, {at}"
        tiles.append((tr("forecast of val_loss"), f"{forecast.val_loss:.3f}", note, "forecast"))
    tokens = record.tokens_seen
    rate = record.tokens_per_sec
    seen = count_text(int(tokens)) if tokens else "-"
    speed = tr("{rate:,.0f} tokens/s per step", rate=rate) if rate else ""
    tiles.append((tr("tokens read"), seen, speed, ""))
    resumes = sum(mark.kind == "resume" for mark in record.marks)
    sessions = tr("resumed {count} times", count=resumes) if resumes > 1 else ""
    sessions = tr("resumed once") if resumes == 1 else sessions
    tiles.append((tr("time"), duration(record.seconds), sessions, ""))
    boxes = (
        f'<div class="tile {style}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
        f"<dd class=small>{escape(note)}</dd></div>"
        for name, value, note, style in tiles
    )
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def _losses(record: RunRecord) -> str:
    chart = loss_chart(record)
    if not chart.lines or chart.is_empty:
        return section(tr("Loss"), [], tr("no loss was logged yet"), "loss")
    marks = "".join(
        f'<li class="{escape(mark.kind)}"><i>{number}</i><b>{escape(mark.title)}</b> '
        f"<span>{escape(tr('step {step:,}', step=mark.step))}</span>"
        f"{f'<p>{escape(mark.text)}</p>' if mark.text else ''}</li>"
        for number, mark in enumerate(record.marks, start=1)
    )
    listed = f'<ol class="marks">{marks}</ol>' if marks else ""
    gap = f'<p class="note gap">{escape(record.gap)}</p>' if record.gap else ""
    return section("", [figure(chart, LARGE), gap, listed], name="loss")


def _more_charts(record: RunRecord) -> Iterator[str]:
    middle = [figure(chart, MIDDLE) for chart in middle_charts(record)]
    if middle:
        yield f'<div class="grid three">{"".join(middle)}</div>'
    sources = source_chart(record)
    if sources is not None:
        yield section("", [figure(sources, BROAD)], name="sources")
    small = [figure(chart, SMALL) for chart in small_charts(record)]
    if small:
        yield f'<div class="grid four">{"".join(small)}</div>'


def _samples(record: RunRecord) -> Iterator[str]:
    if not record.written:
        return
    last = len(record.written) - 1
    curve = record.events.curve("val_loss")
    losses = dict(zip(curve.steps, curve.values, strict=True))
    best = record.best and record.best[0]
    titles = [_sample_title(item.step, losses.get(item.step), best) for item in record.written]
    ways = [tuple(map(way_text, item.ways)) for item in record.written]
    prompts = [tuple(row.prompt for row in item.rows) for item in record.written]
    data = {
        "titles": titles,
        "ways": ways,
        "texts": [[[row.prompt, *row.texts] for row in item.rows] for item in record.written],
    }
    slider = (
        f'<div class="slider"><button type="button" data-move="-1" '
        f'aria-label="{escape(tr("earlier"))}">‹</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" '
        f'aria-label="{escape(tr("validation"))}">'
        f'<button type="button" data-move="1" aria-label="{escape(tr("later"))}">›</button>'
        f"<output>{escape(titles[last])}</output></div>"
    )
    note = tr("The same prompts at each validation. Move the slider to see it learn.")
    if len({*zip(ways, prompts, strict=True)}) > 1:
        note = tr("The prompts or settings of the samples changed between validations.")
    yield section(
        tr("What the model wrote"),
        [
            slider,
            _sample_cards(record.written[last]),
            f'<script type="application/json" id="samples-data">{as_json(data)}</script>',
        ],
        note,
        "samples",
    )


def _sample_title(step: int, loss: float | None, best: int | None) -> str:
    title = tr("step {step:,}", step=step)
    title += f" · val_loss {_loss(loss)}" if loss is not None else ""
    return title + (f" · {tr('best')}" if step == best else "")


def _sample_cards(written: Written) -> str:
    cards = []
    for row in written.rows:
        texts = "".join(
            f'<div><h3>{escape(way_text(way))}</h3><p lang="az"><b>{escape(row.prompt)}</b>'
            f"<span>{escape(text)}</span></p></div>"
            for way, text in zip(written.ways, row.texts, strict=False)
        )
        cards.append(f"<article>{texts}</article>")
    return f'<div class="samples">{"".join(cards)}</div>'


def next_commands(record: RunRecord) -> list[tuple[str, str]]:
    """What to type next, by how the run is."""
    address = address_of(record.folder)
    rows = []
    checkpoints = record.folder / "checkpoints"
    has_state = bool(step_files(checkpoints))
    if record.status in ("stopped", "unfinished"):
        if has_state:
            rows.append((tr("resume"), command("train", resume_address_of(record.folder))))
        elif typed := _typed(record):
            rows.append((tr("start again"), command("train", typed)))
    if has_state or (checkpoints / BEST).is_file():
        name = record.name.partition("/")[0]
        rows.append((tr("talk"), command("generate", address)))
        rows.append((tr("evaluate"), command("evaluate", address)))
        if record.status != "training":
            export = command("export", [*address, f"out={name}_hf"])
            rows.append((tr("export"), export))
    if record.can_be_extended:
        steps = twice_as_long(record.setting("schedule.branches") or 1, record.step)
        settings = [f"trainer.max_steps={steps}", f"schedule.total_steps={steps}"]
        longer = [*resume_address_of(record.folder), *settings]
        rows.append((tr("train longer"), command("train", longer)))
    rows.append((tr("this page again"), command("report", name_address_of(record.folder))))
    return rows


def _typed(record: RunRecord) -> list[str]:
    """What was typed for a run, without what brings code: its folder may be that of anyone."""
    typed = record.config.get("overrides") or []
    own = own_entries(typed)
    return [text for text in typed if text not in own]


def _details(record: RunRecord) -> Iterator[str]:
    rows = list(_validation_rows(record))
    if rows:
        head = [tr("step"), tr("mean train_loss"), "val_loss", "ppl", "bpb"]
        yield folded(tr("Validations"), table(head, rows, "numbers"), "validations")
    if record.config:
        typed = record.config.get("overrides") or []
        settings = "".join(f"<li><code>{escape(text)}</code></li>" for text in typed)
        chosen = f"<p>{escape(tr('typed'))}</p><ul>{settings}</ul>" if settings else ""
        values = {key: value for key, value in record.config.items() if key != "overrides"}
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        yield folded(tr("Settings"), f"{chosen}<pre>{escape(text)}</pre>", "settings")
    if record.environment:
        yield folded(tr("Environment"), f"<pre>{escape(record.environment)}</pre>", "environment")
    yield f"<footer>{escape(str(record.folder))}</footer>"


def _validation_rows(record: RunRecord) -> Iterator[list[str]]:
    curve = record.events.curve("val_loss")
    last = len(curve) - 1
    wanted = {round(i * last / (MOST_ROWS - 1)) for i in range(MOST_ROWS)}
    best = record.best
    columns = [
        dict(zip(found.steps, found.values, strict=True))
        for found in map(record.events.curve, ("generalization_gap", "val_ppl", "val_bpb"))
    ]
    for i, (step, loss) in enumerate(zip(curve.steps, curve.values, strict=True)):
        is_best = best is not None and step == best[0]
        if i not in wanted and not is_best:
            continue
        gap, ppl, bpb = (column.get(step) for column in columns)
        mark = f" {tr('best')}" if is_best else ""
        yield [
            f"{step:,}{mark}",
            _loss(None if gap is None else loss - gap),
            _loss(loss),
            "-" if ppl is None or not math.isfinite(ppl) else perplexity_text(ppl),
            _loss(bpb),
        ]


def _loss(value: float | None) -> str:
    """A loss, or bits per byte; "-" where it is unknown or not finite."""
    return loss_text(value if value is not None and math.isfinite(value) else None)
