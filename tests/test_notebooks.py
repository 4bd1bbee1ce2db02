"""The notebooks: well-formed, in both languages, with public names only, and they run."""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import azllm_lightning
from azllm_lightning import compose, read_run
from azllm_lightning.runs.curves import write_description

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def sources(path: Path, kind: str) -> list[str]:
    """The text of each cell of `kind`; in code, magics such as %pip become `pass`."""
    texts = ["".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == kind]
    return [re.sub(r"^( *)%.*$", r"\1pass", text, flags=re.MULTILINE) for text in texts]


def named(name: str) -> Path:
    return ROOT / "notebooks" / f"{name}.ipynb"


# --- what every notebook is ----------------------------------------------------------------------


@every_notebook
def test_notebook_is_well_formed_and_kept_without_outputs(path: Path) -> None:
    import nbformat

    nbformat.validate(nbformat.read(path, as_version=4))
    cells = cells_of(path)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@every_notebook
def test_every_text_is_in_both_languages(path: Path) -> None:
    english = {"a", "and", "it", "the"}
    texts = sources(path, "markdown")
    missing = [t for t in texts if "ə" not in t or english.isdisjoint(t.lower().split())]
    assert missing == []


@every_notebook
def test_comments_titles_and_labels_are_in_both_languages(path: Path) -> None:
    for code in sources(path, "code"):
        comments = re.findall(r"#  ?(.*)$", code, re.MULTILINE)
        assert [text for text in comments if " · " not in text] == []
        for call in ast.walk(ast.parse(code)):
            if not isinstance(call, ast.Call):
                continue
            labels = [k.value for k in call.keywords if k.arg in ("xlabel", "ylabel", "title")]
            shown = [label.value for label in labels if isinstance(label, ast.Constant)]
            assert [text for text in shown if " · " not in text] == []


@every_notebook
def test_the_badge_and_the_install_cell_lead_to_the_repository(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    address = importlib.import_module("address")
    text = path.read_text(encoding="utf-8")
    assert text == address.with_badge(path.name, text), "run python docs/address.py"
    first, install = ("".join(cell["source"]) for cell in cells_of(path)[:2])
    repository = address.owner_and_name()
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks"
    assert first.startswith("[![Open in Colab](")
    assert f"]({colab}/{path.name})\n\n# " in first
    assert f"%pip install -q git+https://github.com/{repository}\n" in install + "\n"
    # One edit, in pyproject.toml, moves every address.
    monkeypatch.setattr(address, "address", lambda: "https://github.com/else/azllm-lightning")
    assert repository not in address.with_badge(path.name, text)


@every_notebook
def test_code_compiles_and_imports_public_names_only(path: Path) -> None:
    code = "\n".join(sources(path, "code"))
    compile(code, str(path), "exec")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("azllm"):
            continue
        names = [alias.name for alias in node.names]
        assert [name for name in names if name.startswith("_")] == []
        module = importlib.import_module(str(node.module))
        assert [name for name in names if not hasattr(module, name)] == []
        if module is azllm_lightning:
            assert set(names) <= set(azllm_lightning.__all__)


@every_notebook
def test_settings_in_the_code_exist(path: Path) -> None:
    from azllm_lightning.cli.keys import keys_of

    keys = set(keys_of(compose([]).to_mapping()))
    texts = " ".join(sources(path, "code")) + " ".join(sources(path, "markdown"))
    groups = "data|model|optimizer|schedule|trainer"
    used = set(re.findall(rf"(?<![\w.+/])(?:{groups})\.\w+(?==)", texts))
    assert used
    assert used - keys == set()


def test_every_published_figure_has_its_source() -> None:
    (code,) = (text for text in sources(named("your_own_text"), "code") if "published = " in text)
    values: dict[str, Any] = {}
    exec("import pandas as pd\n" + code.partition("mine = ")[0], values)
    published = values["published"]
    assert len(published) > 10
    assert published["source"].str.fullmatch(r"https://huggingface\.co/[\w-]+/[\w-]+").all()
    assert published["tokens per word"].between(1, 5).all()


def test_monitor_takes_only_runs_that_have_curves_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.chdir(tmp_path)
    folders = [Path("lightning_logs") / name / "version_0" for name in "abcd"]
    for folder, tag in zip(folders, ("val_loss", "val_loss", "lr", ""), strict=True):
        with SummaryWriter(str(folder)) as writer:
            if tag:
                writer.add_scalar(tag, 3.0, 0)
    starting = Path("lightning_logs/e/version_0")
    starting.mkdir(parents=True)
    write_description(starting, [])  # the first file of a run
    (code,) = (text for text in sources(named("monitor"), "code") if "def newest_runs" in text)
    values: dict[str, Any] = {"Path": Path, "islice": islice, "read_run": read_run}
    exec(code.partition("if not newest_runs")[0], values)
    assert sorted(values["newest_runs"]()) == folders[:2]


# --- what they do --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_quickstart_runs_at_a_tiny_size(
    shared_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    code = "\n".join(sources(named("quickstart"), "code"))
    for text, smaller in {
        "tales_bytes=300_000": "tales_bytes=60_000",
        "vocab_size=1024": "vocab_size=300",
        "block_size=64": "block_size=16",
        "n_embd=128": "n_embd=32",
        "total_steps=300": "total_steps=8",
        "max_steps=150": "max_steps=4",
        "max_steps=300": "max_steps=8",
        "val_every_steps=25": "val_every_steps=2",
        "max_new_tokens=60": "max_new_tokens=4",
    }.items():
        assert text in code
        code = code.replace(text, smaller)
    try:
        exec(code, {})
        assert len(plt.get_fignums()) == 2
    finally:
        plt.close("all")
    curves = read_run("quickstart/version_0")
    assert list(curves["val_loss"].dropna().index) == [0, 2, 4, 6, 8]
    assert len(curves.attrs["summary"]["resumed_from"]) == 1
    assert capsys.readouterr().out.count("Bir gün") >= 6


@pytest.fixture
def run_notebook(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """run_notebook(name): run it from top to bottom in `tmp_path`, in a kernel; returns its
    outputs as text, "PNG" for a picture.
    """
    import nbformat
    from nbclient import NotebookClient

    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> list[str]:
        notebook = nbformat.read(named(name), as_version=4)
        here = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=here).execute()
        found = []
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            data = output.get("data", {})
            text = output.get("text", "") + data.get("text/plain", "")
            found.append("PNG" if "image/png" in data else text)
        return found

    return run


@pytest.mark.slow
def test_quickstart(run_notebook: Callable[[str], list[str]]) -> None:
    outputs = run_notebook("quickstart")
    assert outputs.count("PNG") == 2
    curves = read_run("quickstart/version_0")
    val_loss = curves["val_loss"].dropna()
    assert list(val_loss.index) == list(range(0, 301, 25))
    assert val_loss[300] < val_loss[150] < val_loss[0]
    assert len(curves.attrs["summary"]["resumed_from"]) == 1


@pytest.mark.slow
def test_monitor_makes_two_runs_if_there_are_none_and_compares_them(
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


@pytest.mark.slow
def test_resume_ends_as_the_run_that_was_never_stopped(
    run_notebook: Callable[[str], list[str]],
) -> None:
    outputs = run_notebook("resume")
    assert any("resume · davam" in text and "ckpt_path=last" in text for text in outputs)
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


@pytest.mark.slow
def test_your_own_text_measures_tokens_per_word_as_evaluate_does(
    run_notebook: Callable[[str], list[str]],
) -> None:
    outputs = run_notebook("your_own_text")
    assert outputs.count("PNG") == 2
    (folder,) = Path("lightning_logs/my_text").glob("version_*")
    figures = json.loads((folder / "evaluation-my_text_kept.json").read_text("utf-8"))["all"]
    (measured,) = (text for text in outputs if text.startswith("{'this run"))
    assert math.isclose(float(measured.rstrip("}").rpartition(" ")[2]), figures["tokens_per_word"])
    val_loss = read_run("my_text")["val_loss"].dropna()
    assert val_loss[120] < val_loss[0]
