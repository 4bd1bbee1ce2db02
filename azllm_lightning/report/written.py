"""What the model wrote at each validation, read back from the tables of `callbacks.samples`."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from azllm_lightning.cli.messages import tr
from azllm_lightning.report.events import RunEvents

SAMPLES = "samples"
"""The tag of these tables."""

CELL = re.compile(r"\*\*(.*?)\*\*(.*)", re.DOTALL)
"""A prompt in bold, and its continuation; stars of the text itself are escaped."""

WAY = re.compile(r"temperature?[= ]([\d.e+-]+)")
"""A heading of these tables: "temperature=0.8"; in older runs "temperature 0.8", or Azerbaijani."""

GREEDY = ("greedy", "ən ehtimallı")
"""The headings of older runs for a temperature of 0."""

BUDGET = 350_000
"""Bytes of samples that a page may contain; beyond that, validations are left out evenly."""


@dataclass(frozen=True)
class Continuation:
    """A prompt, and what the model wrote after it in each way of sampling."""

    prompt: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """The samples of one validation; `ways` are the headings, as they are stored."""

    step: int
    ways: tuple[str, ...]
    rows: tuple[Continuation, ...]

    @property
    def size(self) -> int:
        """About the bytes that it takes on the page."""
        texts = [text for row in self.rows for text in (row.prompt, *row.texts)]
        return sum(len(text.encode()) + 8 for text in texts)


def written_by(events: RunEvents, keep: int | None = None) -> list[Written]:
    """The samples of a run by step, at most BUDGET bytes: the first, the last, that of step `keep`,
    and evenly in between.
    """
    texts = events.texts.get(SAMPLES, {})
    found = [_parsed(step, texts[step].text) for step in sorted(texts)]
    found = [written for written in found if written.rows]
    room = max(2, int(len(found) * BUDGET / max(BUDGET, sum(item.size for item in found))))
    last = len(found) - 1
    if room > last:
        return found
    evenly = {round(i * last / (room - 1)) for i in range(room)}
    return [item for i, item in enumerate(found) if i in evenly or item.step == keep]


def way_text(heading: str) -> str:
    """The heading of a column of samples, in the language in use."""
    match = WAY.fullmatch(heading)
    if heading in GREEDY or (match and float(match[1]) == 0):
        return tr("greedy")
    return tr("temperature {temperature}", temperature=match[1]) if match else heading


def _parsed(step: int, table: str) -> Written:
    lines = [_cells(line) for line in table.split("\n") if line.startswith("| ")]
    if not lines:
        return Written(step, (), ())
    ways, *rows = lines
    continuations = []
    for cells in rows:
        pairs = [match.groups() for match in map(CELL.fullmatch, cells) if match]
        if pairs:
            prompt = _plain(pairs[0][0])
            continuations.append(Continuation(prompt, tuple(_plain(text) for _, text in pairs)))
    return Written(step, tuple(map(_plain, ways)), tuple(continuations))


def _cells(line: str) -> list[str]:
    """The cells of a row; a bar inside a text is escaped."""
    return line.removeprefix("| ").removesuffix(" |").split(" | ")


def _plain(cell: str) -> str:
    return html.unescape(cell.replace("<br>", "\n"))
