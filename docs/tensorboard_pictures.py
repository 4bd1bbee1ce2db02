"""Photograph TensorBoard's pages: python docs/tensorboard_pictures.py LIGHTNING_LOGS.

Needs Chromium. `docs/images` has them of the default job (`python -m azllm_lightning.train`).
"""

from __future__ import annotations

import base64
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.resolve()
sys.path.append(str(DOCS.parent / "tests"))

from test_tensorboard_page import BROWSER, browser, tensorboard  # noqa: E402

from azllm_lightning.callbacks.tensorboard import PAGE  # noqa: E402

PAGES = {
    "custom_scalars": (PAGE, 1280, 1560, 8),
    "scalars": ("?smoothing=0#scalars&_smoothingWeight=0", 1280, 1000, 4),
    "text": ("#text", 1280, 1000, "temperature"),
    "hparams": ("#hparams", 2080, 420, "val_loss_best"),
}
"""Address, width and height, and what a complete page shows: so many charts, or a word."""


def main() -> None:
    """Take the pictures."""
    if BROWSER is None:
        sys.exit("Chromium is needed: apt install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tensorboard(Path(sys.argv[1]), folder) as address, browser(folder / "b") as page:
            for name, (place, width, height, wanted) in PAGES.items():
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                page.call("Emulation.setDeviceMetricsOverride", **size)
                page.see(f"{address}{place}", partial(shows, wanted))
                shot = page.call("Page.captureScreenshot", format="png")["data"]
                picture = DOCS / "images" / f"tensorboard_{name}.png"
                picture.write_bytes(base64.b64decode(shot))


def shows(wanted: int | str, seen: dict[str, Any]) -> bool:
    """Whether the page has so many charts with a line in them, or this word."""
    if isinstance(wanted, int):
        return sum(lines > 1 for lines in seen["drawn"].values()) >= wanted
    return wanted in seen["text"]


if __name__ == "__main__":
    main()
