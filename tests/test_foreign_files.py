"""No command overwrites or removes a file that this project did not write."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import azllm_lightning
from azllm_lightning.cli.composition import composed_mapping
from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.verbs import EvaluateConfig, ExportConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.evaluate import evaluate
from azllm_lightning.export import export
from azllm_lightning.formats.new_folder import new_folder
from azllm_lightning.inference import result_files
from azllm_lightning.inference.result_files import result_file
from azllm_lightning.runs.folder import claim, reopen

PACKAGE = Path(azllm_lightning.__file__).parent
Train = Callable[..., Path]

WRITERS = {
    "check.py": "check.json",
    "machine/checkup.py": "a temporary folder",
    "machine/compiling.py": "a temporary folder",
    "machine/stopwatch.py": "a temporary file",
    "data/removed.py": "removed.jsonl in a new folder",
    "data/json_scanner.py": "a temporary file without a name",
    "machine/experiment.py": "a temporary folder",
    "machine/random_text.py": "a temporary folder",
    "machine/storage.py": "a temporary folder",
    "training/processes.py": "a temporary folder",
    "data/pipeline.py": "a new folder; data.dir with other content is refused",
    "data/shards.py": "files in that new folder",
    "data/blocks.py": "files in that new folder",
    "data/building.py": "files in that new folder",
    "data/cluster.py": "a hidden folder that it made, next to the new one",
    "data/tokenizer.py": "tokenizer.json in a new folder, or where the caller says",
    "data/cache.py": "files of the cache",
    "data/downloads.py": "files of the cache",
    "data/known_digests.py": "a file of the cache",
    "disk/lock.py": "the lock and the marker next to it",
    "evaluate.py": "the file that result_file has checked",
    "export.py": "a new folder",
    "formats/gguf.py": "a new folder",
    "formats/huggingface.py": "a new folder",
    "formats/new_folder.py": "a folder that does not exist yet",
    "formats/state_dict.py": "a new folder",
    "inference/result_files.py": "a temporary file without a name",
    "plan.py": "the file that own_file has checked",
    "prove_resume.py": "a temporary folder",
    "report/__main__.py": "report.html in a run folder, or the file that own_file has checked",
    "report/live.py": "report.html in a run folder",
    "runs/atomic.py": "the file of its caller; sweeps only what `replacing` left",
    "runs/checkpoint_files.py": "checkpoints in a run folder",
    "runs/curves.py": "event files in a run folder",
    "runs/event_file.py": "a new event file in a run folder",
    "runs/folder.py": "run folders; removes only one that this session made",
    "runs/table.py": "metrics.csv in a new run folder",
    "session/child.py": "output.txt in a temporary folder",
    "session/loggers.py": "a logger's files in a run folder",
    "session/open.py": "config, tokenizer and log in a run folder",
    "training/saving.py": "checkpoints in a run folder",
    "callbacks/summary.py": "summary.json in a run folder",
    "callbacks/tensorboard.py": "hparams.yaml in a run folder",
}
"""Every module that writes or deletes files, and what keeps it away from the files of others."""

MODE = re.compile(r"[wax]b?\+?b?|rb?\+b?")
"""The modes of `open` that write."""

SAVING = {"callbacks/diagnosis.py", "session/attempts.py", "training/causal_lm.py"}
"""Modules that call `save` of a logger or a callback."""

WRITES = set(
    "write_text write_bytes write_json replacing rename unlink rmtree rmdir copyfile copyfileobj "
    "copytree move symlink_to save save_file mkdir makedirs FileHandler TemporaryFile"
    " TemporaryDirectory mkdtemp".split()
)


def writes(source: Path) -> set[str]:
    """The calls by which a file writes or deletes something on disk."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
            modes = [
                argument.value
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
            if name in WRITES or (name == "open" and any(map(MODE.fullmatch, modes))):
                found.add(name)
    return found


@pytest.mark.parametrize(
    "source", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_every_module_that_writes_is_known(source: Path) -> None:
    name = source.relative_to(PACKAGE).as_posix()
    found = writes(source)
    if name in SAVING:
        found -= {"save"}
    assert not found or name in WRITERS, f"{name} writes ({found}): add it, with its guard"


def test_results_never_replace_a_file_of_another_program(tiny_run: Path) -> None:
    notes = Path("qeydlər.json")
    for content in ("mine", '{"mine": 1}', "[1]"):
        notes.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"qeydlər\.json exists and has no results"):
            evaluate(composed_evaluation(f"out={notes}"))
        assert notes.read_text(encoding="utf-8") == content


def composed_evaluation(*overrides: str) -> EvaluateConfig:
    return EvaluateConfig.from_mapping(composed_mapping("evaluate", list(overrides)))


def test_results_on_another_text_keep_those_on_the_runs_own(tiny_run: Path) -> None:
    own = evaluate(composed_evaluation())
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "kitab.txt").write_text("Bir gün tülkü meşəyə getdi.", encoding="utf-8")
    other = evaluate(composed_evaluation("data.path=a/kitab.txt"))
    evaluate(composed_evaluation("data.path=a/kitab.txt"))  # again
    namesake = evaluate(composed_evaluation("data.path=b/kitab.txt"))
    stored = {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for path in tiny_run.glob("evaluation*.json")
    }
    assert stored.pop("evaluation.json") == own
    assert stored.pop("evaluation-kitab.json") == other
    assert list(stored.values()) == [namesake]


SCORED = "başqa, validation split"


@pytest.mark.parametrize(
    ("typed", "name", "other"),
    [
        ("hf=a pairs=true", "pairs.json", {"model": "b"}),
        ("hf=a pairs=true", "pairs.json", {"model": "x/a"}),
        ("hf=a pairs=true", "pairs.json", {"model": "b", "step": 5}),
        ("hf=a samples=true", "samples.json", {"model": "b"}),
        ("hf=a samples=true data.dir=d", "samples-d.json", {"model": "b", "training_text": "d"}),
        ("hf=a samples=true data.dir=d", "samples-d.json", {"model": "a", "training_text": "x/d"}),
        ("hf=a data.path=k.txt", "evaluation-k.json", {"model": "b", "text": "k.txt"}),
        ("hf=a data.dir=x/d", "evaluation-d.json", {"model": "a", "text": SCORED}),
        ("hf=a", "evaluation.json", {"model": "b", "text": "d, validation split"}),
        ("hf=a", "evaluation.json", {"model": "a", "text": SCORED}),
        ("hf=a suite=true", "suite.json", {"model": "b", "text": {"text": "d, val"}}),
        ("hf=a suite=true", "suite.json", {"model": "a", "text": {"text": SCORED}}),
        ("ckpt_path=a pairs=true", "pairs.json", {"model": "b", "step": 5}),
        ("ckpt_path=a pairs=true", "pairs.json", {"model": "x/a"}),
        ("ckpt_path=a.ckpt pairs=true", "pairs.json", {"model": "b.ckpt", "step": 5}),
    ],
)
def test_results_of_one_model_do_not_replace_those_of_another(
    typed: str,
    name: str,
    other: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same holds for the text that a model of transformers is measured on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(result_files, "prepared_folder_of", lambda _: Path("d"))
    config = composed_evaluation(*typed.split())
    checkpoint = Path("a.ckpt" if config.ckpt_path == "a.ckpt" else "a")
    place = result_file(config, checkpoint)
    assert place.name == name
    stored = json.dumps({"start_token": True, **other}, ensure_ascii=False)
    place.write_text(stored, encoding="utf-8")
    again = result_file(config, checkpoint)
    assert re.fullmatch(rf"{place.stem}-[0-9a-f]{{8}}\.json", again.name)
    # The same command replaces its own results.
    own = {"model": "a", "start_token": True, "text": SCORED}
    again.write_text(json.dumps(own), encoding="utf-8")
    assert result_file(config, checkpoint) == again


def test_the_same_model_and_text_have_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(result_files, "prepared_folder_of", lambda _: Path("d"))
    for typed, other in (
        ("hf=./a/ pairs=true", {"model": str(tmp_path / "a")}),
        ("hf=a samples=true data.dir=x/d", {"model": "a", "training_text": str(Path("x/d"))}),
        ("hf=a data.dir=x/d", {"model": "a", "text": f"{Path('x/d')}, validasiya hissəsi"}),
        ("hf=a suite=true", {"model": "a", "text": {"text": "d, validation split"}}),
        ("ckpt_path=a pairs=true", {"model": "elsewhere/a", "step": 5}),
    ):
        config = composed_evaluation(*typed.split())
        place = result_file(config, Path("a"))
        stored = json.dumps({"start_token": True, **other}, ensure_ascii=False)
        place.write_text(stored, encoding="utf-8")
        assert result_file(config, Path("a")) == place
        place.unlink()


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_place_that_cannot_be_written_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    checkpoint = tmp_path / "r" / "version_0" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(ValueError, match=r"evaluation\.json \(the disk is read-only\).*out=FILE"):
        result_file(composed_evaluation(), checkpoint)


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
def test_an_export_never_writes_into_what_exists(kind: str, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    if kind == "file":
        out.write_bytes(b"mine")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "config.json").write_bytes(b"mine")
    config = ExportConfig.from_mapping(composed_mapping("export", [f"out={out}"]))
    with pytest.raises(ValueError, match="already exists"):
        export(config)
    assert out.read_bytes() == b"mine" if kind == "file" else out.is_dir()
    assert kind != "folder" or (out / "config.json").read_bytes() == b"mine"


def test_a_failed_export_removes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / ".model.1234.tmp").mkdir()
    (tmp_path / ".model.1234.tmp" / "mine").write_bytes(b"")
    with pytest.raises(KeyError), new_folder(tmp_path / "model"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == [".model.1234.tmp"]
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OSError, match="cannot be written"), new_folder(tmp_path / "file" / "x"):
        pass
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_run_leaves_what_others_put_next_to_it(train_tiny: Train) -> None:
    mine = {
        Path("lightning_logs/tiny/notes.txt"),
        Path("lightning_logs/tiny/version_0/notes.txt"),
        Path("lightning_logs/tiny/version_0/.notes.1.tmp"),
        Path("lightning_logs/tiny/version_0/checkpoints/.notes.tmp"),
        Path("lightning_logs/tiny/version_0/checkpoints/good_one.ckpt"),
        Path("lightning_logs/tiny/version_0/checkpoints/step_4_kept.ckpt"),
    }
    train_tiny("trainer.max_steps=4")
    for path in mine:
        path.write_bytes(b"mine")
    train_tiny("ckpt_path=last", "trainer.max_steps=24", "schedule.total_steps=24")
    assert {path for path in mine if path.read_bytes() == b"mine"} == mine


def test_a_new_run_never_takes_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "r" / "version_0").mkdir(parents=True)
    (tmp_path / "r" / "version_0" / "mine").write_bytes(b"")
    run = claim("r", tmp_path)
    assert run.version == 1
    run.release(failed=True)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "r/version_0/mine"
    ]
    again = reopen(tmp_path / "r" / "version_0")
    again.release(failed=True)
    assert (tmp_path / "r" / "version_0" / "mine").is_file()


def test_prepared_data_never_goes_into_a_folder_with_other_content(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train_00000.bin").write_bytes(b"mine")
    data: DataConfig = replace(compose().data, tales_bytes=60_000, dir=str(folder))
    with pytest.raises(ValueError, match=r"data\.dir=.*: exists, but has no manifest"):
        prepare(data)
    assert {path.name for path in folder.iterdir()} == {"train_00000.bin"}
