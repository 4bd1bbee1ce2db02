"""Draw a terminal of 80 columns: python docs/terminal_picture.py OUT < TEXT (with Chromium)."""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = 80
PAGE_CSS = (
    "margin: 0; padding: 16px 18px; background: #1e1e1e; color: #e6e6e6; "
    "font: 15px/20px 'DejaVu Sans Mono', monospace"
)


def wrap(line: str) -> list[str]:
    """`line` as a terminal shows it, in pieces of COLUMNS characters."""
    return [line[at : at + COLUMNS] for at in range(0, max(len(line), 1), COLUMNS)]


def main() -> None:
    """Read the text from standard input and write the picture."""
    sys.stdin.reconfigure(encoding="utf-8")
    lines = [piece for line in sys.stdin.read().splitlines() for piece in wrap(line)]
    text = html.escape("\n".join(lines))
    page = f'<meta charset="utf-8"><pre style="{PAGE_CSS}">{text}</pre>'
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("Chromium is needed: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "terminal.html"
        source.write_text(f"<body style='margin: 0'>{page}", encoding="utf-8")
        size = f"--window-size=759,{20 * len(lines) + 32}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        target = f"--screenshot={Path(sys.argv[1]).resolve()}"
        subprocess.run(
            [browser, *options, target, source.as_uri()], check=True, capture_output=True
        )


if __name__ == "__main__":
    main()
