"""The description on PyPI: README.md with absolute links, since PyPI has no files beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


class AbsoluteLinks(MetadataHookInterface):
    """Fill in [project] readme."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Point the relative links of README.md to the repository, pictures to their bytes."""
        repository = metadata["urls"]["Repository"]
        raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")

        def absolute(match: re.Match[str]) -> str:
            start = f"{raw}/main" if match[1] else f"{repository}/blob/main"
            return f"{match[1]}[{match[2]}]({start}/{match[3]})"

        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": RELATIVE_LINK.sub(absolute, text),
        }
