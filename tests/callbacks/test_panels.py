from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any

import pytest

import azllm_lightning
from azllm_lightning.callbacks.panels import (
    MOST_ROWS,
    Validation,
    checkpoint_bytes,
    duration,
    end_panel,
    start_panel,
    table,
    validation_line,
)
from azllm_lightning.callbacks.words import LANGUAGES, Words, read_texts
from azllm_lightning.cli.entrance import compose
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.build import check, model_config

COMMAND = "python -m azllm_lightning.train run_name=tales ckpt_path=last trainer.max_steps=1200"
LABELS = (
    "run model data steps hardware disk time sources done best watch talk longer export".split()
)


def course(steps: int, losses: list[float]) -> list[Validation]:
    """Validations every `steps` steps, the first at 0, with a training loss 0.1 below."""
    return [
        Validation(i * steps, loss - 0.1 if i else None, loss, 2.718281828**loss, loss / 3)
        for i, loss in enumerate(losses)
    ]


def start(words: Words, folder: Path, *overrides: str) -> list[str]:
    """The lines of the first panel; the data have 439,424 tokens to train on."""
    config = compose(["trainer.accelerator=cpu", *overrides])
    settings = check({**config, "logs_dir": str(folder)})
    model = model_config(config, config["data"]["vocab_size"], settings.data.block_size, 0)
    data: Any = SimpleNamespace(
        config=settings.data,
        folder=folder,
        train_windows=SimpleNamespace(num_windows=439_424 // model.block_size),
        chosen_val_windows=lambda: range(191),
    )
    return start_panel(
        words, Run(folder), model, data, settings.trainer, settings.optimizer, "cpu"
    ).splitlines()


@pytest.mark.parametrize("row", read_texts(), ids=lambda row: row["key"])
def test_both_languages_have_the_same_fields(row: dict[str, str]) -> None:
    english, azerbaijani = (
        {(name, style) for _, name, style, _ in Formatter().parse(row[lang]) if name is not None}
        for lang in LANGUAGES
    )
    left_out = (
        {("bpb", "")} if row["key"] == "validation" else set()
    )  # 80 columns have no room for it
    assert azerbaijani == english - left_out


def test_every_text_is_used_and_has_one_line() -> None:
    folder = Path(azllm_lightning.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    keys = [row["key"] for row in read_texts()]
    assert len(keys) == len(set(keys))
    plain = [
        key for key in keys if not key.startswith("column_")
    ]  # those are of the table's columns, by their names
    assert [key for key in plain if not re.search(f"[\"']{key}[\"']", code)] == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_labels_fit_their_column(lang: str) -> None:
    assert [label for label in LABELS if len(Words(lang)(label)) > 9] == []


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("experiment", ["cpu", "debug", "t4", "laptop_4gb"])
def test_the_first_panel_fits_80_columns(experiment: str, lang: str, tmp_path: Path) -> None:
    told = start(Words(lang), tmp_path, f"+experiment={experiment}")
    lines = [
        line for line in told if str(tmp_path) not in line and line != Words(lang)("run")
    ]  # paths stay whole
    assert len(lines) >= 6
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"\S+ +\S| {10}\S", line) and line[9] == " " for line in lines)


def test_what_the_first_panel_says(tmp_path: Path) -> None:
    text = "\n".join(start(Words(), tmp_path, "trainer.compile=false", "trainer.precision=32-true"))
    assert "2.2 M parameters: 4 x 192, 3 heads, vocabulary 2,048, context 128" in text
    assert "439,424 training tokens, 191 validation windows" in text
    assert "600 of 2,048 tokens: 1.2 M tokens, 2.8 passes over the data" in text
    assert "0.6 tokens a parameter (Chinchilla's rule: about 20)" in text
    assert "32-true, not compiled" in text
    assert re.search(
        r"checkpoints take about 65 MB; [\d,.]+ [GM]B are free$", text
    )  # 3 states with Muon, and the best


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=50_000_000))
    assert "checkpoints take about 65 MB; 50 MB are free: too little" in "\n".join(
        start(Words(), tmp_path)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoints_take_what_is_said(train_tiny: Callable[..., Path], optimizer: str) -> None:
    size = ["model.n_embd=64", "data.vocab_size=512", f"optimizer={optimizer}"]
    overrides = [
        *size,
        "trainer.checkpoint_every_steps=2",
        "trainer.compile=false",
        "callbacks.samples.max_new_tokens=0",
    ]
    folder = train_tiny(*overrides)
    config = compose(
        [
            "data.block_size=32",
            "model.n_layer=1",
            "model.n_head=2",
            *overrides,
            "trainer.max_steps=8",
        ]
    )
    settings = check(config)
    expected = checkpoint_bytes(
        model_config(config, 512, 32, 0), settings.trainer, settings.optimizer
    )
    files = [path for path in (folder / "checkpoints").iterdir() if not path.is_symlink()]
    texts = (
        4 * (folder / "tokenizer.json").stat().st_size
        + 4 * (folder / ".hydra" / "config.yaml").stat().st_size
    )
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) - texts == pytest.approx(expected, rel=0.1)


def test_a_line_compares_with_the_last_and_with_the_best() -> None:
    rows = course(100, [7.6, 3.0, 2.5, 2.6, 2.55, 2.4])
    lines = [validation_line(Words(), rows[: i + 1], 600) for i in range(len(rows))]
    assert lines[0] == "step   0  val_loss 7.6000  ppl 1,998  bpb 2.5333"
    assert lines[1] == "step 100  val_loss 3.0000  ppl 20.09  bpb 1.0000  ↓ 4.600  best"
    assert lines[3] == "step 300  val_loss 2.6000  ppl 13.46  bpb 0.8667  ↑ 0.100  best +0.100"
    assert lines[4].endswith("↓ 0.050  best +0.050")
    assert lines[5].endswith("↓ 0.150  best")


def test_the_untrained_model_is_never_the_best() -> None:
    rows = course(100, [3.0, 3.5])
    assert validation_line(Words(), rows, 600).endswith("↑ 0.500  best")
    assert table(Words(), rows)[2].endswith("best")


def test_a_line_of_a_diverged_run() -> None:
    rows = course(100, [7.6, 3.0])
    rows += [
        Validation(200, None, float("nan"), float("nan"), float("nan")),
        Validation(300, 3.1, 3.2, 24.5, 1.0),
    ]
    assert validation_line(Words(), rows[:3], 600) == "step 200  val_loss nan  ppl nan  bpb nan"
    assert validation_line(Words(), rows, 600).endswith("bpb 1.0000")  # nothing to compare with
    assert [line for line in table(Words(), rows) if line.endswith("best")] == [
        table(Words(), rows)[2]
    ]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_lines_and_tables_fit_80_columns(lang: str) -> None:
    rows = course(10_000, [11.5, 3.0, 5.9, 5.95])
    texts = [validation_line(Words(lang), rows[: i + 1], 50_000) for i in range(len(rows))] + table(
        Words(lang), rows
    )
    assert max(map(len, texts)) <= 80


def test_the_table() -> None:
    assert table(Words(), course(50, [7.6, 2.5, 2.6])) == [
        "step  train_loss  val_loss    ppl     bpb     gap",
        "   0           -    7.6000  1,998  2.5333       -",
        "  50      2.4000    2.5000  12.18  0.8333  0.1000  best",
        " 100      2.5000    2.6000  13.46  0.8667  0.1000",
    ]


@pytest.mark.parametrize("best", range(1, 40))
def test_a_long_table_is_thinned(best: int) -> None:
    losses = [5.0] * 40
    losses[best] = 4.0
    steps = [int(line.split()[0]) for line in table(Words(), course(1, losses))[1:]]
    assert {0, 39, best} <= set(steps)
    assert MOST_ROWS - 1 <= len(steps) <= MOST_ROWS
    assert max(b - a for a, b in pairwise(steps)) <= 4


def end(words: Words, folder: Path, **last: float) -> list[str]:
    summary = {
        "steps": 600,
        "wall_seconds": 146.2,
        "tokens_per_sec": 14_205.4,
        "best_val_loss": 0.64,
        "best_step": 500,
    }
    commands = {"watch": "tensorboard --logdir lightning_logs", "longer": COMMAND}
    return end_panel(
        words, Run(folder), course(300, [7.6, 0.7, 0.64]), last, summary, commands
    ).splitlines()


def test_the_last_panel() -> None:
    lines = end(Words(), Path("lightning_logs/tales/version_0"))
    assert lines[0] == lines[5] == ""
    assert lines[6:] == [
        "done      600 steps in 2 min 26 s, 14,205 tokens/s",
        "best      val_loss 0.6400 at step 500",
        f"          {Path('lightning_logs/tales/version_0/checkpoints/best.ckpt')}",
        "watch     tensorboard --logdir lightning_logs",
        "longer",
        f"  {COMMAND}",
    ]


def test_paths_and_commands_are_never_broken() -> None:
    folder = Path("/home/aygün/bir qovluq", "çox " * 30 + "uzun", "version_0")
    assert f"  {folder / 'checkpoints' / 'best.ckpt'}" in end(Words("az"), folder)
    assert f"  {COMMAND}" in end(Words("az"), folder)


@pytest.mark.parametrize("length", range(1, 12))
def test_sources_are_shown(length: int) -> None:
    names = ["x" * length + str(i) for i in range(9)]
    lines = end(
        Words(),
        Path("x"),
        val_loss=2.5,
        **{f"val_loss_by_source/{n}": 2.0 + i for i, n in enumerate(names)},
    )
    first = next(i for i, line in enumerate(lines) if line.startswith("sources"))
    shown = lines[first : next(i for i, line in enumerate(lines) if line.startswith("done"))]
    assert len(shown) > 1
    for line in shown:  # no figure stands without its name
        assert len(line) <= 80
        assert re.fullmatch(r"[^ ]* +(x+\d \d+\.\d{4},? ?)+", line), line


@pytest.mark.parametrize(
    ("seconds", "english", "azerbaijani"),
    [
        (0.4, "0 s", "0 s"),
        (59.6, "1 min 0 s", "1 dəq 0 s"),
        (146, "2 min 26 s", "2 dəq 26 s"),
        (6011, "1 h 40 min", "1 saat 40 dəq"),
        (3 * 86400 + 4 * 3600, "3 d 4 h", "3 gün 4 saat"),
    ],
)
def test_duration(seconds: float, english: str, azerbaijani: str) -> None:
    assert [duration(Words(lang), seconds) for lang in LANGUAGES] == [english, azerbaijani]
