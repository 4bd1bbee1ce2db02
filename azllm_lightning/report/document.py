"""The frame of a page: one file with its style sheet and script, and figures with their charts."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import language, tr
from azllm_lightning.report.charts import Chart, draw, pointer_data

HERE = Path(__file__).parent

Size = tuple[int, int]

LARGE: Sequence[Size] = ((1020, 360), (345, 290))
"""Width and height of a chart that fills the page: on a wide screen, and on a phone."""

BROAD: Sequence[Size] = ((1020, 280), (345, 250))
HALF: Sequence[Size] = ((490, 240), (345, 240))
MIDDLE: Sequence[Size] = ((320, 210),)
SMALL: Sequence[Size] = ((232, 140),)


GENERATOR = '<meta name="generator" content="azllm-lightning">'
"""The line of a page's head that names this package."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> str:
    """`value` as text of a page, in an element or in an attribute."""
    return html.escape(str(value), quote=True)


def as_json(values: Any) -> str:
    """JSON that can stand in a script element: without <, > and &."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, from a file name that is not Unicode, cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def is_page(path: Path) -> bool:
    """Whether the file is a page of this package."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return GENERATOR in file.read(2000)


def document(title: str, body: Iterable[str], refresh_seconds: int | None = None) -> str:
    """A complete page; with `refresh_seconds` it loads itself again as long as it is open."""
    words = {
        "ago": tr("{time} ago"),
        "units": tr("d h min s").split(),
        "step": tr("step"),
        "tokens": tr("tokens"),
        "minutes": tr("minutes"),
        "silent": tr("no sign of life for {time}: the run may have been stopped"),
        "copied": tr("copied"),
    }
    refresh = "" if refresh_seconds is None else f' data-refresh="{refresh_seconds}"'
    # Without scripts the browser reloads by itself; with them the page does, and keeps its place.
    no_script = "" if not refresh else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    page = f"""<!doctype html>
<html lang="{language()}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{GENERATOR}
<title>{escape(title)}</title>
<noscript>{no_script}</noscript>
<style>{asset("chart.css")}{asset("page.css")}</style>
</head>
<body{refresh}>
<main>
{chr(10).join(body)}
</main>
<script type="application/json" id="words">{as_json(words)}</script>
<script>{asset("page.js")}</script>
</body>
</html>
"""
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def asset(name: str) -> str:
    """A style sheet or script of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def section(title: str, content: Iterable[str], note: str = "", name: str = "") -> str:
    """A part of the page under a heading."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{name}">{heading}{remark}{"".join(content)}</section>'


def figure(chart: Chart, sizes: Sequence[Size]) -> str:
    """A chart in each of `sizes`, of which the style sheet shows one, with what is under the
    pointer.
    """
    drawings = []
    for (width, height), place in zip(sizes, ("wide", "narrow"), strict=False):
        drawing = draw(chart, width, height)
        data = as_json([*drawing.x, *drawing.y, drawing.top, drawing.bottom])
        kind = place if len(sizes) > 1 else "only"
        drawings.append(f'<div class="drawing {kind}" data-map="{data}">{drawing.svg}</div>')
    unit = f" <small>{escape(chart.unit)}</small>" if chart.unit else ""
    keys = [
        f'<li class="{escape(line.style)}"><i></i>{escape(line.name)}</li>'
        for line in chart.lines
        if line.is_read
    ]
    key = f'<ul class="legend">{"".join(keys)}</ul>' if len(keys) > 1 else ""
    return (
        f'<figure id="chart-{escape(chart.name)}" tabindex="0">'
        f"<figcaption><b>{escape(chart.title)}</b>{unit}{key}</figcaption>"
        f'{"".join(drawings)}<div class="tip" hidden></div>'
        f'<script type="application/json">{as_json(pointer_data(chart))}</script></figure>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """A table that scrolls by itself where it is too wide; cells are escaped unless Markup."""

    def inner(cell: str) -> str:
        return cell if isinstance(cell, Markup) else escape(cell)

    cells = "".join(f"<th scope=col>{inner(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{inner(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def folded(title: str, content: str, name: str) -> str:
    """A part that is closed until someone opens it."""
    return (
        f'<details id="{name}"><summary>{escape(title)}</summary>'
        f'<div class="inside">{content}</div></details>'
    )


def commands(rows: Iterable[tuple[str, str]]) -> str:
    """Commands to copy, each with what it does."""
    copy = escape(tr("copy"))
    return "".join(
        f'<div class="command"><span>{escape(what)}</span><code>{escape(text)}</code>'
        f'<button type="button" class="copy">{copy}</button></div>'
        for what, text in rows
    )
