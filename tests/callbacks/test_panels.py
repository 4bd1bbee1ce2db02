from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.callbacks.history import Validation
from azllm_lightning.callbacks.panels import (
    MAX_ROWS,
    checkpoint_bytes,
    end_panel,
    longer_command,
    sample_line,
    start_panel,
    table,
    validation_line,
)
from azllm_lightning.callbacks.summary import RunSummary
from azllm_lightning.cli.messages import LANGUAGES, tr, use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.config.optimizer import CHOICES
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.planning.choice import Task, planned
from azllm_lightning.planning.models import named_models
from azllm_lightning.planning.speed import Speed
from azllm_lightning.planning.survey import Text
from azllm_lightning.runs.checkpoint_files import step_path
from azllm_lightning.runs.folder import Run
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.saving import KEEP

RUN = Run(Path("lightning_logs/tales/version_0"))
LONGER = (
    "  python -m azllm_lightning.train run_name=tales ckpt_path=last "
    "trainer.max_steps=1200 schedule.total_steps=1200"
)


@pytest.fixture(autouse=True)
def in_a_folder_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone has the run of RUN after `make train`."""
    monkeypatch.chdir(tmp_path)


def course(steps: int, losses: list[float]) -> list[Validation]:
    """Validations every `steps` steps, the first at 0, with a training loss 0.1 below."""
    return [
        Validation(i * steps, loss - 0.1 if i else None, loss, 2.718281828**loss, loss / 3)
        for i, loss in enumerate(losses)
    ]


def settled(*overrides: str) -> RunConfig:
    """A config whose model knows its data, as a run stores it."""
    config = compose(["trainer.accelerator=cpu", "logs_dir=.", *overrides])
    shape = config.model.for_data(config.data.vocab_size, config.data.block_size, 0)
    return replace(config, model=shape)


def start(folder: Path, *overrides: str, factor: int = 1) -> list[str]:
    """The lines of the start panel; the data has 439,424 tokens to train on, and a pass `factor`
    times as many.
    """
    config = settled(*overrides)
    unique = 439_424 // config.data.block_size
    per_pass = factor * unique
    data: Any = SimpleNamespace(
        folder=folder,
        train_windows=SimpleNamespace(num_windows=per_pass, unique_windows=unique),
        chosen_val_windows=lambda: range(191),
    )
    return start_panel(config, Run(folder), data, "cpu").splitlines()


# --- start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("experiment", ["debug", "t4", "laptop_4gb"])
def test_the_start_panel_fits_80_columns(experiment: str, lang: str, tmp_path: Path) -> None:
    use_language(lang)
    panel = start(tmp_path, f"+experiment={experiment}")
    # Paths are not broken.
    lines = [line for line in panel if str(tmp_path) not in line and line != tr("run")]
    assert len(lines) >= 6
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"\S+ +\S| {10}\S", line) and line[9] == " " for line in lines)


def test_what_the_start_panel_says(tmp_path: Path) -> None:
    panel = start(tmp_path, "trainer.compile=false", "trainer.precision=32-true")
    text = re.sub(r"\s+", " ", " ".join(panel))
    assert "2.1 M parameters: 3 x 192, 3 heads, vocabulary 2,048, context 128" in text
    assert "439,424 training tokens, 191 validation windows" in text
    assert (
        "steps 360 x 2,048 tokens = 737,280 tokens "
        "(1.7 epochs; 0.3 tokens per parameter, Chinchilla ~20)"
    ) in text
    assert "32-true, not compiled" in text
    # Three states with Muon, a fourth before the oldest goes, and the best weights:
    assert re.search(r"checkpoints need about 104 MB; [\d,.]+ [GM]B are free$", text)


def test_a_mix_has_passes_of_its_own_and_no_more_text(tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", " ".join(start(tmp_path, "data.mix=kitab.txt: 4", factor=4)))
    assert "439,424 training tokens" in text
    assert "737,280 tokens (0.4 passes of data.mix; 0.3 tokens per" in text


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_start_panel_of_a_student_names_its_teachers(lang: str, tmp_path: Path) -> None:
    use_language(lang)
    assert not any(line.startswith(tr("teachers")) for line in start(tmp_path))
    [line] = [
        line
        for line in start(tmp_path, "teachers=[a,b]", "teacher_share=0.7")
        if line.startswith(tr("teachers"))
    ]
    assert "2 model" in line
    assert "70%" in line


def test_a_disk_that_is_too_small_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=50_000_000))
    assert "not enough space: checkpoints need about 104 MB, 50 MB are free" in "\n".join(
        start(tmp_path)
    )


def test_checkpoints_that_are_there_need_no_more_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new state is written before the oldest goes, though."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for number in (1, 2, 3):
        with step_path(checkpoints, number).open("wb") as file:
            file.truncate(27_000_000)
    for free, fits in ((50_000_000, True), (20_000_000, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda folder, usage=usage: usage)
        assert ("not enough space" not in "\n".join(start(tmp_path))) == fits


@pytest.mark.parametrize("optimizer", CHOICES)
@pytest.mark.parametrize("tied", ["true", "false"])
def test_checkpoints_take_what_was_announced(optimizer: str, tied: str) -> None:
    tokenizer = Tokenizer.train(write_tales(200_000, 0), 2048)
    small = ["data.vocab_size=2048", "data.block_size=32", "model.n_embd=96"]
    config = settled(*small, f"optimizer={optimizer}", f"model.tie_embeddings={tied}")
    net = GPT(config.shape)
    steps = build_optimizer(net, config.optimizer, torch.float32, tokenizer=tokenizer)
    tokens = torch.zeros((1, 8), dtype=torch.long)
    net(tokens, tokens).backward()
    steps.step()
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    state = sum(
        value.numel() * value.element_size()
        for values in steps.state_dict()["state"].values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    assert checkpoint_bytes(config) == pytest.approx(4 * (weights + state) + weights, rel=0.05)
    short = replace(config, trainer=replace(config.trainer, max_steps=1))
    assert checkpoint_bytes(short) == pytest.approx(2 * weights + state, rel=0.05)
    by_the_clock = replace(short.trainer, checkpoint_every_minutes=30)
    assert checkpoint_bytes(replace(config, trainer=by_the_clock)) == checkpoint_bytes(config)


def test_a_plan_and_the_run_announce_the_same_checkpoints() -> None:
    text = Text("text", 2e7, 1e6, 100, 0, False, 5.0, 5.3, 1.0, 400)
    for model in named_models():
        plan = planned(Task(text, Speed.assumed("cpu", 2), [model], 256, 8192), model, 1e7)
        assert plan.steps / plan.every > KEEP
        prepared = 2.1e7 + 4 * 2.1e7 / text.bytes_per_token(8192)
        announced = checkpoint_bytes(settled("data.vocab_size=8192", *plan.overrides()))
        assert plan.disk_bytes - prepared == pytest.approx(announced, rel=0.05), model.name


# --- validations --------------------------------------------------------------------------------


def lines(rows: list[Validation], max_steps: int = 600) -> list[str]:
    return [validation_line(rows[: i + 1], max_steps) for i in range(len(rows))]


def test_a_line_compares_with_the_last_and_with_the_best() -> None:
    rows = course(100, [7.6, 3.0, 2.5, 2.6, 2.55, 2.4])
    assert lines(rows) == [
        "step   0  val_loss 7.6000  ppl  1,998  bpb 2.5333",
        "step 100  val_loss 3.0000  ppl  20.09  bpb 1.0000  ↓ 4.600  best",
        "step 200  val_loss 2.5000  ppl  12.18  bpb 0.8333  ↓ 0.500  best",
        "step 300  val_loss 2.6000  ppl  13.46  bpb 0.8667  ↑ 0.100  +0.100 above best",
        "step 400  val_loss 2.5500  ppl  12.81  bpb 0.8500  ↓ 0.050  +0.050 above best",
        "step 500  val_loss 2.4000  ppl  11.02  bpb 0.8000  ↓ 0.150  best",
    ]
    use_language("az")
    assert lines(rows)[2:4] == [
        "addım 200  val_loss 2.5000  ppl  12.18  bpb 0.8333  ↓ 0.500  rekord",
        "addım 300  val_loss 2.6000  ppl  13.46  bpb 0.8667  ↑ 0.100  rekorddan +0.100",
    ]


def test_the_untrained_model_is_never_the_best() -> None:
    rows = course(100, [3.0, 3.5])
    assert lines(rows)[1].endswith("↑ 0.500  best")
    assert table(rows)[2].endswith("best")


def test_a_line_of_a_diverged_run() -> None:
    nan = float("nan")
    broken = [Validation(200, None, nan, nan, nan), Validation(300, 3.1, 3.2, 24.5, 1.0)]
    rows = [*course(100, [7.6, 3.0]), *broken]
    assert lines(rows)[2] == "step 200  val_loss    nan  ppl    nan  bpb    nan"
    assert lines(rows)[3].endswith("bpb 1.0000")  # nothing to compare with
    assert [line for line in table(rows) if line.endswith("best")] == [table(rows)[2]]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_lines_and_tables_fit_80_columns(lang: str) -> None:
    use_language(lang)
    rows = course(10_000, [11.5, 3.0, 5.9, 5.95])
    assert max(map(len, [*lines(rows, 50_000), *table(rows)])) <= 80


def test_columns_of_validations_are_aligned() -> None:
    rows = course(1000, [11.5, 9.2, 5.0, 2.5])
    ends = [
        [found.end() for found in re.finditer(r"(?:val_loss|ppl|bpb) +[\d.,e+]+", line)]
        for line in lines(rows, 50_000)
    ]
    assert ends == [ends[0]] * 4


def test_the_line_under_a_validation_has_the_curve_and_a_sample() -> None:
    rows = course(100, [7.6, 3.0, 2.0, 2.5])
    assert sample_line(rows, "Bir gün\n\n  ayı\x00 gəldi") == "  █▁▅  Bir gün ayı gəldi"
    assert sample_line(rows[:1], "Bir gün") == "  Bir gün"  # one validation is no curve
    assert sample_line(rows, "") == ""
    long = sample_line(course(100, [5.0] * 60), "söz " * 40)
    assert len(long) <= 80
    assert long.endswith("…")


def test_the_table() -> None:
    assert table(course(50, [7.6, 2.5, 2.6])) == [
        "step  mean train_loss  val_loss    ppl     bpb     gap",
        "   0                -    7.6000  1,998  2.5333       -",
        "  50           2.4000    2.5000  12.18  0.8333  0.1000  best",
        " 100           2.5000    2.6000  13.46  0.8667  0.1000",
    ]


@pytest.mark.parametrize("best", range(1, 40))
def test_a_long_table_is_thinned(best: int) -> None:
    losses = [5.0] * 40
    losses[best] = 4.0
    *rows, note = table(course(1, losses))[1:]
    steps = [int(line.split()[0]) for line in rows]
    assert note == f"{len(rows)} of 40 validations; TensorBoard has all"
    assert {0, 39, best} <= set(steps)
    assert MAX_ROWS - 1 <= len(steps) <= MAX_ROWS
    assert max(b - a for a, b in pairwise(steps)) <= 4


# --- end ----------------------------------------------------------------------------------------

SUMMARY = RunSummary(
    run_name="tales",
    version=0,
    status="done",
    steps=600,
    tokens_seen=1_228_800,
    val_loss=0.64,
    val_ppl=1.9,
    val_bpb=0.3,
    best_val_loss=0.64,
    best_step=500,
    tokens_per_sec=14_205.4,
    wall_seconds=146.2,
    peak_memory_bytes=None,
    precision="32-true",
    compile=False,
    num_params=2_160_000,
    resumed_from=[],
)


def end(
    run: Run = RUN, longer: int | None = 1200, better: str | None = None, **last: float
) -> list[str]:
    rows = course(300, [7.6, 0.7, 0.64])
    on = None if longer is None else longer_command(run, longer)
    return end_panel(run, rows, last, SUMMARY, on, better, "Bir gün " * 20).splitlines()


def test_the_end_panel() -> None:
    panel = end()
    assert panel[0] == panel[5] == ""
    assert panel[6:] == [
        "done      600 steps in 2 min 26 s, 14,205 tokens/s per step",
        "curve     val_loss █▁",
        "best      val_loss 0.6400 at step 500, which generate and export use",
        f"          {RUN.checkpoints / 'best.ckpt'}",
        "writes    " + ("Bir gün " * 8) + "Bir g…",
        "watch     tensorboard --logdir lightning_logs",
        "          http://localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0",
        "talk      python -m azllm_lightning.generate run_name=tales",
        "          python -m azllm_lightning.chat run_name=tales",
        "export    python -m azllm_lightning.export run_name=tales out=tales_hf",
        "train longer",
        LONGER,
    ]


def test_the_end_panel_of_an_older_version_names_its_folder(tmp_path: Path) -> None:
    for version in (0, 1):
        (tmp_path / "tales" / f"version_{version}").mkdir(parents=True)
    run = Run(tmp_path / "tales" / "version_0")
    commands = [line for line in end(run) if "python -m azllm_lightning." in line]
    assert len(commands) == 4
    assert all(f" ckpt_path={run.folder}" in line for line in commands)
    assert not any("run_name=" in line for line in commands)


def test_the_end_panel_in_azerbaijani() -> None:
    use_language("az")
    assert end()[6:9] == [
        "hazırdır  600 addım, 2 dəq 26 san, sürət addımlarda 14,205 token/s",
        "əyri      val_loss █▁",
        "rekord    val_loss 0.6400, 500-cü addımda; generate və export bunu işlədir",
    ]
    assert end()[-2:] == ["təlimi uzatmaq", LONGER]


def test_the_end_panel_has_a_word_on_the_gap() -> None:
    word = "val_loss is 0.84 above train_loss: " + "söz " * 20
    panel = end_panel(RUN, course(300, [7.6, 0.7]), {}, SUMMARY, None, gap=word).splitlines()
    at = next(number for number, line in enumerate(panel) if line.startswith("gap  "))
    assert panel[at].startswith("gap       val_loss is 0.84")
    assert max(map(len, panel[at : at + 3])) <= 80


def test_train_longer_is_not_offered_if_more_steps_do_not_help() -> None:
    assert end(longer=None) == end()[:-2]
    better = "python -m azllm_lightning.train run_name=tales model.dropout=0.2"
    assert end(longer=None, better=better) == [*end()[:-2], f"next time {better}"]


def test_paths_and_commands_are_never_broken() -> None:
    folder = Path("/home/aygün/bir qovluq", "çox " * 30 + "uzun", "version_0")
    panel = end(Run(folder))
    assert f"  {folder / 'checkpoints' / 'best.ckpt'}" in panel
    assert any(line.startswith("  python -m azllm_lightning.train ") for line in panel)


@pytest.mark.parametrize("length", range(1, 12))
def test_sources_are_shown(length: int) -> None:
    names = ["x" * length + str(i) for i in range(9)]
    losses = {f"val_loss_by_source/{name}": 2.0 + i for i, name in enumerate(names)}
    panel = end(val_loss=2.5, **losses)
    first = next(i for i, line in enumerate(panel) if line.startswith("sources"))
    shown = panel[first : next(i for i, line in enumerate(panel) if line.startswith("done"))]
    assert len(shown) > 1
    for line in shown:  # each number is on the line of its name
        assert len(line) <= 80
        assert re.fullmatch(r"[^ ]* +(x+\d \d+\.\d{4},? ?)+", line), line
