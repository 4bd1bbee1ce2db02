"""TensorBoard in a real browser: charts, samples and rows are where the documentation says."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning import compose
from azllm_lightning.callbacks.tensorboard import LAYOUT, METRICS, PAGE
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs.curves import read_scalars

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# What the page shows is in shadow roots inside shadow roots.
WALK = """
(() => {
  const found = {text: [], drawn: {}};
  const walk = (node, chart) => {
    if (node.nodeType === Node.TEXT_NODE) found.text.push(node.data);
    if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return;
    if (/^(tf-custom-scalar-multi-line-chart-card|scalar-card)$/i.test(node.nodeName)) {
      const title = node.title || node.querySelector("[title]")?.title || "";
      chart = title + "#" + Object.keys(found.drawn).length;
      found.drawn[chart] = 0;
    }
    const points = (node.getAttribute?.("d") || "").split("L").length;
    if (chart && node.nodeName.toLowerCase() === "path" && points > 2) found.drawn[chart] += 1;
    if (node.shadowRoot) walk(node.shadowRoot, chart);
    node.childNodes.forEach(child => walk(child, chart));
  };
  walk(document.body, null);
  return {text: found.text.join(" ").replace(/\\s+/g, " "), drawn: found.drawn};
})()
"""


class Page:
    """A tab of a headless browser, controlled through a pipe (Chrome DevTools Protocol)."""

    def __init__(self, to: int, back: int) -> None:
        self._to = os.fdopen(to, "wb")
        self._back = os.fdopen(back, "rb")
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        size = {"width": 1600, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        message = {"id": next(self._numbers), "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._back.fileno(), 1 << 16)
                assert piece, "the browser has ended"
                self._rest += piece
            text, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def see(
        self, url: str, enough: Callable[[dict[str, Any]], bool], seconds: float = 120
    ) -> dict[str, Any]:
        """What `url` shows, as soon as it is `enough` or after `seconds`."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        end = time.monotonic() + seconds
        while True:
            time.sleep(1)
            found = self.call("Runtime.evaluate", expression=WALK, returnByValue=True)[
                "result"
            ].get("value")
            if found is not None and (enough(found) or time.monotonic() > end):
                return dict(found)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A headless Chromium that contacts no other server and writes only to `profile`."""
    assert BROWSER is not None
    profile.mkdir()
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    flags = (
        "--headless=new --no-sandbox --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --use-angle=swiftshader "
        "--enable-unsafe-swiftshader --remote-debugging-pipe"
    )
    # It reads commands from file descriptor 3 and answers on 4.
    start = (
        f"import os, sys; os.dup2({to_read}, 3); os.dup2({back_write}, 4); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", start, BROWSER, *flags.split()]
    with (profile / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(to_read, back_write),
            stdout=log,
            stderr=log,
        )
    os.close(to_read)
    os.close(back_write)
    try:
        yield Page(to_write, back_read)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def tensorboard(logs: Path, folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that has loaded `logs`."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs)]
    command += ["--port", "0", "--host", "127.0.0.1"]
    with (folder / "tensorboard.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        address = ""
        while not address:
            assert process.poll() is None
            assert time.monotonic() < end, "TensorBoard did not start"
            time.sleep(0.5)
            words = (folder / "tensorboard.log").read_text(encoding="utf-8").split()
            address = next((word for word in words if word.startswith("http://127.0.0.1")), "")
        while not json.load(urllib.request.urlopen(f"{address}data/runs")):
            assert time.monotonic() < end, "TensorBoard found no run"
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the browser is driven through inherited pipes")
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt install chromium)")
def test_the_page_shows_charts_samples_and_settings(
    train_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    lines = [
        {"text": f"{number} kitab və {number % 7} dəftər", "source": f"s{number % 2}"}
        for number in range(600)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = [
        "data=text",
        f"data.path={tmp_path / 'a.jsonl'}",
        "data.source_field=source",
        "data.val_windows=null",
    ]
    interrupt = ["_target_=azllm_lightning.callbacks.interrupt.Interrupt", "step=5", "kill=false"]
    with pytest.raises(Resumable):
        train_tiny(
            *data, "trainer.val_every_steps=2", *(f"+callbacks.stop.{pair}" for pair in interrupt)
        )
    folder = train_tiny("ckpt_path=last")
    train_tiny(*data, "trainer.val_every_steps=2", "optimizer.lr=1e-4")
    runs = ("tiny/version_0", "tiny/version_1")
    with ExitStack() as stack:
        address = stack.enter_context(tensorboard(folder.parent.parent, tmp_path))
        page = stack.enter_context(browser(tmp_path / "profile"))

        # Every chart that is drawn has two lines or more; an empty one has one, of an icon.
        seen = page.see(
            f"{address}?tagFilter=%5E(train%7Cval)_loss%24#timeseries", lambda seen: drawn(seen, 2)
        )
        assert drawn(seen, 2), seen

        seen = page.see(
            f"{address}{PAGE}", lambda seen: drawn(seen, sum(map(len, LAYOUT.values())))
        )
        assert drawn(seen, sum(map(len, LAYOUT.values()))), seen["drawn"]
        assert [title.partition("#")[0] for title in seen["drawn"]] == [
            title for row in LAYOUT.values() for title in row
        ]
        for tag in (
            "train_loss",
            "val_loss",
            "val_loss_by_source/s0",
            "val_ppl",
            "lr",
            "peak_memory_gb",
        ):
            assert all(f"{tag} ({run})" in seen["text"] for run in runs), tag

        samples = [
            f"step {step} temperature=0 temperature=0.8 Azərbaycanın paytaxtı"
            for step in (8, 6, 4, 2, 0)
        ]
        # TensorBoard opens the first two groups, here resume and samples.
        session = f"session {3 * len(runs)}"
        seen = page.see(
            f"{address}#text",
            lambda seen: all(text in seen["text"] for text in (*samples, session)),
        )
        assert all(seen["text"].count(text) == len(runs) for text in samples), seen["text"]
        assert session in seen["text"], seen["text"]

        rows = [(run, read_scalars(folder.parent / Path(run).name)["val_loss"][8]) for run in runs]
        optimizer = compose([]).optimizer
        cells = [
            f"{run} text {rate:#.5g} {optimizer.name}"
            for run, rate in zip(runs, (optimizer.lr, 1e-4), strict=True)
        ]
        seen = page.see(
            f"{address}#hparams", lambda seen: all(cell in seen["text"] for cell in cells)
        )
        assert all(seen["text"].count(cell) == 1 for cell in cells), seen["text"]
        assert " ".join(METRICS) in seen["text"]
        assert all(f"{loss:#.5g}" in seen["text"] for _, loss in rows), (rows, seen["text"])


def drawn(seen: dict[str, Any], charts: int) -> bool:
    """Whether there are at least `charts` charts, each with a line in it."""
    return len(seen["drawn"]) >= charts and all(lines > 1 for lines in seen["drawn"].values())
