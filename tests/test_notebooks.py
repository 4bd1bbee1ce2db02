from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning import read_run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells_of(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


@pytest.fixture
def run_notebook(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """run_notebook(name): run it from top to bottom in `tmp_path`; returns what it puts out, "PNG" for a picture."""
    import nbformat
    from nbclient import NotebookClient

    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> list[str]:
        notebook = nbformat.read(
            next(path for path in NOTEBOOKS if path.stem == name), as_version=4
        )
        here = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=200, kernel_name="python3", resources=here).execute()
        found = []
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            data = output.get("data", {})
            found.append(
                "PNG"
                if "image/png" in data
                else output.get("text", "") + data.get("text/plain", "")
            )
        return found

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    assert not [
        cell["id"] for cell in cells_of(path) if cell.get("outputs") or cell.get("execution_count")
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_speaks_both_languages_and_begins_with_the_install_cell(path: Path) -> None:
    cells = cells_of(path)
    told = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    english = {"a", "and", "it", "the"}
    assert [
        text for text in told if "ə" not in text or english.isdisjoint(text.lower().split())
    ] == []
    assert [cell["cell_type"] for cell in cells[:2]] == ["markdown", "code"]
    assert "%pip install" in "".join(cells[1]["source"])


def test_quickstart(run_notebook: Callable[[str], list[str]]) -> None:
    outputs = run_notebook("quickstart")
    assert outputs.count("PNG") == 2
    curves = read_run("quickstart/version_0")
    val_loss = curves["val_loss"].dropna()
    assert list(val_loss.index) == list(range(0, 301, 25))
    assert val_loss[300] < val_loss[150] < 0.6 * val_loss[0]
    assert len(curves.attrs["summary"]["resumed_from"]) == 1


def test_monitor_makes_two_runs_where_there_are_none_and_compares_them(
    run_notebook: Callable[[str], list[str]],
) -> None:
    outputs = run_notebook("monitor")
    assert outputs.count("PNG") == 3
    best = read_run(["lr_1e-3", "lr_1e-2"])["val_loss"].min()
    (compared,) = (text for text in outputs if "best val_loss" in text)
    for run, loss in best.items():
        assert run in compared
        assert str(loss)[:5] in compared
    (differing,) = (text for text in outputs if "optimizer.lr" in text)
    assert [line.split()[0] for line in differing.splitlines()[1:]] == ["run_name", "optimizer.lr"]


def test_resume_ends_as_the_run_that_was_never_stopped(
    run_notebook: Callable[[str], list[str]],
) -> None:
    outputs = run_notebook("resume")
    assert any("To go on" in text and "ckpt_path=last" in text for text in outputs)
    assert any("'status': 'stopped', 'steps': 25" in text for text in outputs)
    assert outputs.count("PNG") == 1
    curves = read_run(["stopped/version_0", "straight/version_0"])
    assert len(curves.attrs["summary"]["stopped/version_0"]["resumed_from"]) == 1
    for tag in ("train_loss", "val_loss"):
        stopped, straight = (
            curves[tag][run].dropna() for run in ("stopped/version_0", "straight/version_0")
        )
        assert stopped.index[-1] == 60
        assert stopped.equals(straight)


def test_your_own_text_measures_tokens_per_word_as_evaluate_does(
    run_notebook: Callable[[str], list[str]],
) -> None:
    outputs = run_notebook("your_own_text")
    assert outputs.count("PNG") == 2
    (folder,) = Path("lightning_logs/my_text").glob("version_*")
    figures = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["all"]
    (measured,) = (text for text in outputs if text.startswith("{'this run"))
    assert math.isclose(float(measured.rstrip("}").rpartition(" ")[2]), figures["tokens_per_word"])
    val_loss = read_run("my_text")["val_loss"].dropna()
    assert val_loss[120] < 0.8 * val_loss[0]


def test_every_published_figure_has_its_source() -> None:
    (path,) = (path for path in NOTEBOOKS if path.stem == "your_own_text")
    (code,) = (
        text
        for text in map("".join, (cell["source"] for cell in cells_of(path)))
        if "published = " in text
    )
    values: dict[str, Any] = {}
    exec("import pandas as pd\n" + code.partition("mine = ")[0], values)
    published = values["published"]
    assert len(published) > 10
    assert published["source"].str.fullmatch(r"https://huggingface\.co/[\w-]+/[\w-]+").all()
    assert published["tokens per word"].between(1, 5).all()
