"""A page as a reader sees it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "br", "link", "img"}


class Seen(HTMLParser):
    """The text of a page without scripts and styles, its elements, and its JSON."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[Any] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            kind = next(attrs for tag, attrs in reversed(self.elements) if tag == "script")
            if kind.get("type") == "application/json":
                self.data.append(json.loads(data))
        elif not self._open or self._open[-1] != "style":
            self.text = " ".join(f"{self.text} {data}".split())

    def classes(self, tag: str) -> list[str]:
        """The classes of all elements called `tag`."""
        return [str(attrs.get("class") or "") for name, attrs in self.elements if name == tag]

    def chart(self, name: str) -> dict[str, Any]:
        """What a chart shows under the pointer."""
        charts = [data for data in self.data if isinstance(data, dict) and "lines" in data]
        names = [
            str(attrs["id"]).removeprefix("chart-")
            for tag, attrs in self.elements
            if tag == "figure"
        ]
        return dict(zip(names, charts, strict=True))[name]
