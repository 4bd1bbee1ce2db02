"""report.html in a real browser: charts, marks, values, samples, and a page that loads again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import WriteRun, healthy
from test_tensorboard_page import BROWSER, Page, browser

from azllm_lightning.report.comparison import comparison
from azllm_lightning.report.page import page
from azllm_lightning.report.record import read_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the browser is driven through pipes"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt install chromium)"),
]

TRAINER = {"trainer": {"max_steps": 800, "val_every_steps": 100}}
WIDE = 1200
NARROW = 390

STATE = """
(() => {
  const visible = (root, selector) =>
    [...root.querySelectorAll(selector)].filter(node => node.getClientRects().length);
  const box = node => node.getBoundingClientRect();
  return {
    ready: document.readyState,
    errors: window.errors || [],
    width: document.documentElement.scrollWidth,
    charts: [...document.querySelectorAll("figure")].map(figure => ({
      name: figure.id,
      shown: visible(figure, ".drawing").length,
      drawn: visible(figure, ".line path").filter(path => box(path).width > 50).length,
      flags: visible(figure, ".flag text").map(text => text.textContent).join(" "),
      letter: Math.min(...visible(figure, ".axis text").map(text => box(text).height)),
    })),
    heading: document.querySelector("#samples h2")?.textContent,
    sample: document.querySelector("#samples output")?.textContent + ": "
      + document.querySelector("#samples article p")?.textContent,
    tip: [...document.querySelectorAll(".tip")].filter(tip => !tip.hidden)
      .map(tip => tip.innerText).join("|"),
    background: getComputedStyle(document.body).backgroundColor,
    scroll: Math.round(scrollY),
    time: document.querySelector("time")?.textContent,
  };
})()
"""


def evaluate(page_of: Page, expression: str) -> Any:
    result = page_of.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")


def open_page(page_of: Page, file: Path, width: int, scheme: str = "light") -> dict[str, Any]:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page_of.call("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page_of.call("Emulation.setEmulatedMedia", features=features)
    page_of.call("Page.enable")
    page_of.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.errors = []; addEventListener('error', e => errors.push(e.message))",
    )
    page_of.call("Page.navigate", url="about:blank")  # not the page before, if it is slow
    page_of.call("Page.navigate", url=file.as_uri())
    return wait_for(page_of, lambda state: bool(state["charts"]))


def wait_for(page_of: Page, enough: Any, seconds: float = 30) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        time.sleep(0.2)
        is_over = time.monotonic() > end
        try:
            state: dict[str, Any] = evaluate(page_of, STATE)
        except AssertionError:  # the page is being replaced
            if is_over:
                raise
            continue
        is_complete = state["ready"] == "complete"
        if (is_complete and enough(state)) or is_over:
            return state


def run_with_everything(write_run: WriteRun) -> Path:
    curves = healthy()
    curves["val_loss"] = {0: 6.0, 100: 3.5, 200: 3.0, 300: 3.2, 400: 3.6}
    curves |= {f"val_loss_by_source/s{i}": {0: 6.0 + i, 400: 3.0 + i} for i in range(3)}
    rows = {
        step: f"| greedy | temperature 0.8 |\n|---|---|\n| **Bir**gün {step} | **Bir**il |"
        for step in curves["val_loss"]
    }
    rows[0] = (
        "| greedy | temperature 0.5 |\n|---|---|\n| **İki**gün | **İki**il |\n| **O**n | **O**d |"
    )
    texts = {
        "samples": rows,
        "resume": {100: "a.ckpt"},
        "diagnosis/overfitting": {300: "step 300: overfitting. val_loss is rising"},
    }
    return write_run(curves=curves, texts=texts, config=TRAINER)


def test_a_reader_finds_charts_marks_values_and_samples(
    write_run: WriteRun, tmp_path: Path
) -> None:
    folder = run_with_everything(write_run)
    file = folder / "report.html"
    file.write_text(page(read_record(folder, is_training=True)), encoding="utf-8")
    backgrounds = set()
    with browser(tmp_path / "profile") as page_of:
        for width, scheme in ((NARROW, "light"), (WIDE, "dark"), (WIDE, "light")):
            state = open_page(page_of, file, width, scheme)
            assert state["errors"] == []
            assert state["width"] <= width, "the page scrolls sideways"
            names = [chart["name"].removeprefix("chart-") for chart in state["charts"]]
            assert names == "loss ppl bpb sources lr tokens_per_sec".split()
            for chart in state["charts"]:
                assert chart["shown"] == 1, chart
                assert chart["drawn"] >= 1, chart
                assert chart["letter"] >= 9, f"too small to read: {chart}"
            assert state["charts"][0]["flags"] == "1 2"
            backgrounds.add((scheme, state["background"]))
        assert len({color for _, color in backgrounds}) == 2

        # The pointer above the mark of the diagnosis.
        evaluate(
            page_of,
            "(() => { const d = document.querySelector('#chart-loss .drawing'), b = "
            "d.getBoundingClientRect(), [x, k] = JSON.parse(d.dataset.map), s = b.width / "
            "d.querySelector('svg').viewBox.baseVal.width; d.dispatchEvent(new PointerEvent("
            "'pointermove', {clientX: b.left + s * (x + 300 * k), clientY: b.top + 50})) })()",
        )
        tip = evaluate(page_of, STATE)["tip"].split("\n")
        assert tip[0] == "step 300"
        assert tip[tip.index("val_loss") + 1] == "3.2000"
        assert "2 overfitting" in tip

        # The slider goes back to the first validation, and stays there when the page loads again.
        assert evaluate(page_of, STATE)["sample"].startswith("step 400 · val_loss 3.6000: Birgün")
        evaluate(
            page_of,
            "(() => { const s = document.querySelector('input[type=range]'); s.value = 2; "
            "s.dispatchEvent(new Event('input')); scrollTo(0, 700); })()",
        )
        assert evaluate(page_of, STATE)["sample"] == "step 200 · val_loss 3.0000 · best: Birgün 200"
        samples = "document.querySelector('.samples').innerText.split(/\\s+/).join(' ')"
        evaluate(page_of, "document.querySelector('[data-move=\"-1\"]').click()")
        evaluate(page_of, "document.querySelector('[data-move=\"-1\"]').click()")
        assert evaluate(page_of, samples) == "greedy İkigün temperature 0.5 İkiil On Od"
        evaluate(page_of, "document.querySelector('[data-move=\"1\"]').click()")
        evaluate(page_of, "document.querySelector('[data-move=\"1\"]').click()")
        text = file.read_text(encoding="utf-8")
        soon = text.replace('data-refresh="100"', 'data-refresh="3"')
        file.write_text(soon, encoding="utf-8")
        state = open_page(page_of, file, WIDE)
        assert state["sample"] == "step 200 · val_loss 3.0000 · best: Birgün 200"
        evaluate(page_of, "scrollTo(0, 600)")
        file.write_text(text.replace("What the model wrote", "RELOADED"), encoding="utf-8")
        state = wait_for(
            page_of, lambda state: state["heading"] == "RELOADED" and state["scroll"] == 600
        )
        assert state["heading"] == "RELOADED"
        assert state["scroll"] == 600
        assert "no sign of life" in state["time"]


def test_a_reader_compares_runs_by_step_tokens_or_minutes(
    write_run: WriteRun, tmp_path: Path
) -> None:
    folders = [write_run("a"), write_run("b")]
    file = tmp_path / "comparison.html"
    text = comparison([read_record(folder) for folder in folders])
    file.write_text(text, encoding="utf-8")
    with browser(tmp_path / "profile") as page_of:
        for width in (NARROW, WIDE):
            assert open_page(page_of, file, width)["width"] <= width
        for axis in ("tokens", "minutes", "step"):
            evaluate(page_of, f"document.querySelector('button[data-axis={axis}]').click()")
            state = evaluate(page_of, STATE)
            shown = {chart["name"]: chart["drawn"] for chart in state["charts"] if chart["shown"]}
            assert shown == {
                f"chart-{tag}-{axis}": 2 for tag in ("val_loss", "val_bpb", "train_loss")
            }
        assert json.dumps(state["errors"]) == "[]"
