"""Sphinx settings of both languages: `make docs` builds docs/en and docs/az with this one file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from address import BRANCH, address  # noqa: E402

logger = logging.getLogger(__name__)

project = "azllm-lightning"
author = "The azllm-lightning authors"
copyright = f"2026, {author}"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # a link to #a-heading that is not there is a warning, and so an error
suppress_warnings: list[str] = []  # nothing: `make docs` turns every warning into an error

language = "en"  # `make docs` gives the other one with -D language=az
locale_dirs = [str(HERE / "locale")]  # Sphinx has no Azerbaijani of its own
templates_path = [str(HERE / "_templates")]
html_static_path = [str(HERE / "_static")]
html_theme = "furo"
html_title = project
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_theme_options = {"source_repository": address() + "/", "source_branch": BRANCH}
html_context = {"languages": {"en": "English", "az": "Azərbaycanca"}}
copybutton_exclude = ".linenos, .gp, .go"


def set_source_directory(app: Sphinx) -> None:
    """Let "Edit this page" lead to the folder of the language that is built."""
    app.config.html_theme_options["source_directory"] = f"docs/{Path(app.srcdir).name}/"


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn a link out of the site, such as ../../CONTRIBUTING.md, into one to the repository.

    Written as a relative path it also works in an editor and on GitHub.
    """

    def absolute(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2]
        target = HERE.parent / path
        if not target.exists():
            logger.warning("there is no file %s", path, location=page)
        return (
            f"]({address()}/{'tree' if target.is_dir() else 'blob'}/{BRANCH}/{path}{anchor or ''})"
        )

    source[0] = re.sub(r"\]\(\.\./\.\./([^)#]+)(#[^)]*)?\)", absolute, source[0])


def setup(app: Sphinx) -> None:
    """Connect the two functions above."""
    app.connect("builder-inited", set_source_directory)
    app.connect("source-read", link_to_repository)
