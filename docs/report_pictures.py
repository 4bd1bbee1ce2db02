"""Train three small runs and photograph their pages: python docs/report_pictures.py [FOLDER].

With FOLDER, runs that are there already are not trained again. Needs Chromium; takes some minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from azllm_lightning import compose, train
from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.report.__main__ import report

DOCS = Path(__file__).parent.resolve()
IMAGES = DOCS / "images"

SMALL = (
    "model.n_layer=2 model.n_head=4 model.n_embd=96 data.vocab_size=1024 data.block_size=64 "
    "trainer.global_batch_size=12 trainer.log_every_steps=2 trainer.compile=false "
    "trainer.accelerator=cpu callbacks.samples.max_new_tokens=40 trainer.max_steps=400 "
    "trainer.val_every_steps=25 data.val_windows=100"
).split()

WIDE = 1200
PHONE = 390
PHONE_HEIGHT = 1500


def main() -> None:
    """Train, write the pages, and take the pictures."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("Chromium is needed: apt install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        folder.mkdir(exist_ok=True)
        os.chdir(folder)  # the commands on the page are then short
        healthy()
        overfitting()
        several_sources()
        pages = {name: written(name) for name in ("tales", "overfitting", "sources")}
        both = report(compose(["run_name=[tales,overfitting,sources]"], "report"))
        photograph(browser, pages["tales"], IMAGES / "report.png")
        photograph(browser, pages["overfitting"], IMAGES / "report_overfitting.png", is_dark=True)
        phones(browser, pages["sources"], IMAGES / "report_phone.png")
        photograph(browser, both, IMAGES / "report_several.png")


def healthy() -> None:
    """A run on plenty of text, stopped twice and resumed."""
    if Path("lightning_logs/tales").exists():
        return
    settings = [*SMALL, "run_name=tales", "data.tales_bytes=1_000_000"]
    again = ["run_name=tales", "ckpt_path=last"]
    for overrides in (settings, again, again):
        with contextlib.suppress(Resumable):
            train(compose([*overrides, *interrupt_at(130 if overrides is settings else 270)]))


def interrupt_at(step: int) -> list[str]:
    """Settings that stop a run after `step`, as Ctrl+C does."""
    entry = ["_target_=azllm_lightning.callbacks.interrupt.Interrupt", f"step={step}", "kill=false"]
    return [f"+callbacks.stop.{pair}" for pair in entry]


def overfitting() -> None:
    """A run that reads a short text too often."""
    if Path("lightning_logs/overfitting").exists():
        return
    settings = [*SMALL, "run_name=overfitting", "data.tales_bytes=40_000", "data.vocab_size=512"]
    settings += ["data.val_fraction=0.2"]
    train(compose([*settings, "optimizer.weight_decay=0", "optimizer.adam_weight_decay=0"]))


def several_sources() -> None:
    """A run on tales, on sentences of these pages, and on names and numbers."""
    if Path("lightning_logs/sources").exists():
        return
    pages = " ".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("az/*.md")))
    sentences = re.findall(r"[A-ZƏÖÜÇŞĞİ][^.`|\[\]()*#]{40,200}\.", pages)
    texts = {
        "nağıllar": write_tales(300_000, 0),
        "sənədlər": [" ".join(sentences[i : i + 3]) for i in range(len(sentences))],
        "tənzimləmələr": (DOCS / "settings" / "az.md").read_text(encoding="utf-8").split("\n") * 2,
    }
    lines = [
        json.dumps({"text": text, "source": source}, ensure_ascii=False)
        for source, documents in texts.items()
        for text in documents
        if len(text) > 40
    ]
    Path("texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = [*SMALL, "run_name=sources", "data=text", "data.path=texts.jsonl"]
    settings += ["data.source_field=source", "data.vocab_size=1024", "data.block_size=64"]
    train(compose([*settings, "data.val_windows=null", "data.val_fraction=0.1"]))


def written(name: str) -> Path:
    """The page of a run, written again."""
    return report(compose([f"run_name={name}"], "report"))


def photograph(browser: str, page: Path, target: Path, is_dark: bool = False) -> None:
    """The complete page on a wide screen."""
    text = page.read_text(encoding="utf-8")
    if is_dark:
        text = text.replace("@media (prefers-color-scheme: dark)", "@media screen")
    measure = (
        "<script>document.documentElement.dataset.height = document.body.scrollHeight</script>"
    )
    copy = page.with_name("picture.html")
    copy.write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    found = run(browser, copy, f"--window-size={WIDE},800", "--dump-dom")
    height = re.search(r'data-height="(\d+)"', found)
    assert height is not None
    run(browser, copy, f"--window-size={WIDE},{height[1]}", f"--screenshot={target}")
    copy.unlink()


def phones(browser: str, page: Path, target: Path) -> None:
    """The page on two phones: its start on a light one, what follows on a dark one."""
    text = page.read_text(encoding="utf-8")
    copies = [page.with_name("light.html"), page.with_name("dark.html")]
    copies[0].write_text(text, encoding="utf-8")
    dark = text.replace("@media (prefers-color-scheme: dark)", "@media screen")
    copies[1].write_text(dark, encoding="utf-8")
    style = f"border:0;width:{PHONE}px;height:{PHONE_HEIGHT}px;float:left;margin-right:20px"
    sources = [copies[0].name, f"{copies[1].name}#sources"]
    frames = "".join(f'<iframe style="{style}" src="{source}"></iframe>' for source in sources)
    both = page.with_name("phones.html")
    both.write_text(
        f'<body style="margin:0;background:#888;width:900px">{frames}', encoding="utf-8"
    )
    size = f"--window-size={2 * PHONE + 20},{PHONE_HEIGHT}"
    run(browser, both, size, f"--screenshot={target}")
    for file in (*copies, both):
        file.unlink()


def run(browser: str, page: Path, *options: str) -> str:
    """What Chromium prints about `page`."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [browser, *fixed, *options, page.resolve().as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    return done.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    main()
