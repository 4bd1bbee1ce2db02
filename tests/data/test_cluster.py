"""Preparing text by several tasks: the same files as `prepare`, also after a kill."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sample_texts import make_texts

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import building
from azllm_lightning.data.cluster import Clean, pipeline, split_evenly, stages
from azllm_lightning.data.pipeline import prepare

TASKS = 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 3000)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Seven files of four formats, with duplicates across files and broken UTF-8, and a folder of
    validation text."""
    texts = make_texts(400)
    folder = tmp_path / "mətn"
    (tmp_path / "val").mkdir()
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(texts[:150]), encoding="utf-8")
    (folder / "b.txt").write_text("\n\n".join(texts[140:150]), encoding="utf-8")
    (folder / "c.txt").write_text("", encoding="utf-8")
    rows = [{"text": text, "site": "xyz"[i % 3]} for i, text in enumerate(texts[100:300])]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in [*rows, {"text": None}])
    (folder / "d.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(folder / "e.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(texts[290:400]))
    (folder / "f.txt").write_bytes("Bakı \n\nə".encode()[:-1])
    (folder / "g.csv").write_text("text\nBir cümlə.\nİki cümlə.\n", encoding="utf-8")
    (tmp_path / "val" / "v.txt").write_text("\n\n".join(texts[::40]), encoding="utf-8")
    return DataConfig(
        path=str(folder),
        val_path=str(tmp_path / "val"),
        dir=str(tmp_path / "data"),
        vocab_size=320,
        tokenizer_sample_bytes=20_000,
        block_size=32,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of `folder`, but the record of checks."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "verified.json"
    }


def contents_of_prepare(config: DataConfig, tmp_path: Path) -> dict[str, bytes]:
    return contents(prepare(replace(config, dir=str(tmp_path / "local"), prepare_workers=1)))


def run(config: DataConfig, tasks: int = TASKS) -> Path:
    """Do the work of all tasks in this process."""
    for stage in stages(config, tasks):
        for rank in range(stage.tasks):
            list(stage.step(None, rank, stage.tasks) or ())
    assert config.dir is not None
    return Path(config.dir)


@pytest.mark.parametrize("tasks", [1, 3, pytest.param(12, marks=pytest.mark.thorough)])
def test_tasks_give_the_files_of_prepare(config: DataConfig, tmp_path: Path, tasks: int) -> None:
    expected = contents_of_prepare(config, tmp_path)
    assert {"manifest.json", "tokenizer.json", "train_00000.bin"} <= expected.keys()
    assert json.loads(expected["manifest.json"])["cleaning"]["bad_utf8_lines"] == 1
    assert contents(run(config, tasks)) == expected
    assert not (tmp_path / ".azllm-data.tasks" / "work").exists()
    assert prepare(config) == tmp_path / "data"


def test_tasks_give_the_sources_of_prepare(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.MAX_SOURCES", 7)  # of eight files
    expected = contents_of_prepare(config, tmp_path)
    spans = json.loads(expected["manifest.json"])["spans"]
    assert {span["source"] for span in spans} == {"text"}
    assert contents(run(config)) == expected


@pytest.mark.slow
def test_shards_do_not_depend_on_where_blocks_end(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": text, "site": "xyz"[i % 3]} for i, text in enumerate(make_texts(300, seed=1))]
    rows[0]["text"] = rows[1]["text"] = make_texts(400)[0]  # left out: it is validation text
    path = tmp_path / "sites.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    config = replace(config, path=str(path), source_field="site", val_path=config.val_path)
    found = []
    for chars in (1, 2000, 10**9):
        monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", chars)
        found.append(contents(prepare(replace(config, dir=str(tmp_path / f"blocks_{chars}")))))
    assert found[0] == found[1] == found[2]


@pytest.mark.thorough
def test_a_killed_task_continues_after_its_last_block(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents_of_prepare(config, tmp_path)
    clean = stages(config, TASKS)[0].step
    assert isinstance(clean, Clean)
    interrupted = clean(None, 1, TASKS)
    done = [next(interrupted), next(interrupted)]
    interrupted.close()
    times = [path.stat().st_mtime_ns for path in done]
    again = stages(config, TASKS)[0].step
    assert list(again(None, 1, TASKS) or ())[:2] == done
    assert [path.stat().st_mtime_ns for path in done] == times

    def full(*_: Any) -> None:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(building.ShardWriter, "write", full)
        with pytest.raises(OSError, match="full"):
            run(config)
    assert contents(run(config)) == expected


def test_text_that_changes_is_noticed(config: DataConfig, tmp_path: Path) -> None:
    first = stages(config, TASKS)[0].step
    list(first(None, 0, TASKS) or ())
    (tmp_path / "mətn" / "a.txt").write_text("Başqa mətn.\n\n" * 9, encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.path has changed"):
        list(first(None, 1, TASKS) or ())
    expected = contents_of_prepare(config, tmp_path)
    assert contents(run(config)) == expected


@pytest.mark.thorough
def test_a_removed_folder_is_made_again(config: DataConfig) -> None:
    first = contents(run(config))
    for path in (folder := run(config)).iterdir():
        path.unlink()
    folder.rmdir()
    assert contents(run(config)) == first


@pytest.mark.parametrize(
    ("settings", "tasks", "message"),
    [
        ({"name": "tales", "path": None}, 2, "data.path"),
        ({"max_bytes": 1000}, 2, r"data\.max_bytes=1000"),
        ({}, 0, "tasks=0"),
        ({"path": None}, 2, r"data\.path is not set"),
    ],
)
def test_what_only_one_machine_can_read(
    config: DataConfig, settings: dict[str, Any], tasks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stages(replace(config, **settings), tasks)


def test_no_text_at_all(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in "abc":
        (tmp_path / "empty" / f"{name}.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no text in 3 files"):
        run(replace(config, path=str(tmp_path / "empty")), tasks=2)


def test_tasks_read_about_as_many_bytes_each() -> None:
    assert split_evenly([1, 1, 1, 1], 2) == ((0, 2), (2, 4))
    assert split_evenly([9, 1, 1, 1], 2) == ((0, 1), (1, 4))
    assert split_evenly([0, 0], 2)[-1][1] == 2
    for count in (1, 2, 7, 40):
        ranges = split_evenly([5, 0, 30, 2, 8, 8, 1], count)
        assert [ranges[0][0], ranges[-1][1], len(ranges)] == [0, 7, count]
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_each_executor_depends_on_the_one_before(config: DataConfig) -> None:
    def executor(job_name: str = "", **options: Any) -> dict[str, Any]:
        return {"job_name": job_name, **options}

    last = pipeline(config, 5, executor, alone={"memory": 32}, workers=4, memory=2)
    chain = []
    while last is not None:
        chain.append((last["job_name"], last["tasks"], last["workers"], last["memory"]))
        last = last["depends"]
    assert chain[::-1] == [
        ("azllm-clean", 5, 4, 2),
        ("azllm-select", 1, 1, 32),
        ("azllm-tokenize", 5, 4, 2),
        ("azllm-write", 1, 1, 32),
    ]


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import corpus
from azllm_lightning.data.cluster import pipeline

corpus.BLOCK_CHARS = 3000
KILLED = Path("killed")

def kill_once(data, rank, tasks):
    for number, _ in enumerate(data or ()):
        if rank == 1 and number == 1 and not KILLED.exists():
            KILLED.touch()
            os.kill(os.getpid(), signal.SIGKILL)

def local(pipeline, **options):
    return LocalPipelineExecutor(pipeline=[*pipeline, kill_once], **options)

if __name__ == "__main__":
    config = DataConfig(**json.loads(Path("config.json").read_text(encoding="utf-8")))
    if sys.argv[1] == "local":
        pipeline(config, 3, local, workers=2).run()
    else:
        pipeline(config, 3, SlurmPipelineExecutor, time="1:00:00", partition="cpu").run()
"""


@pytest.fixture
def script(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command, to be run in the current folder, that prepares `config` by datatrove."""
    pytest.importorskip("datatrove", reason="needs the extra datatrove")
    if not hasattr(os, "killpg"):
        pytest.skip("needs process groups")
    monkeypatch.chdir(tmp_path)
    settings = {key: value for key, value in vars(config).items() if value is not None}
    Path("config.json").write_text(json.dumps(settings), encoding="utf-8")
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, "script.py"]


@pytest.mark.slow
def test_a_task_of_datatrove_is_killed_and_the_same_script_finishes(
    config: DataConfig, script: list[str], tmp_path: Path
) -> None:
    expected = contents_of_prepare(config, tmp_path)
    completions = tmp_path / ".azllm-data.tasks" / "logs" / "1_clean" / "completions"
    with Path("first.log").open("wb") as log:
        first = subprocess.Popen([*script, "local"], start_new_session=True, stdout=log, stderr=log)
        try:  # a pool waits forever for the task of a killed process: end them all
            deadline = time.monotonic() + 120
            awaited = [Path("killed"), completions / "00000", completions / "00002"]
            while not all(path.exists() for path in awaited):
                assert time.monotonic() < deadline, Path("first.log").read_text("utf-8")
                time.sleep(0.1)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert not (completions / "00001").exists()
    assert not (tmp_path / "data").exists()
    second = subprocess.run([*script, "local"], capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    assert "Skipping 2 already completed tasks" in second.stderr
    assert contents(tmp_path / "data") == expected


FAKE_SLURM = {
    "sbatch": """#!/usr/bin/env bash
# runs each task of the array at once; prints the number of the job as the real one does
script="${@: -1}"
export SLURM_NODELIST=localhost
for argument in "$@"; do case "$argument" in --export=*) export "${argument##*,}";; esac; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "${last:-0}"); do
  [ -n "$last" ] && export SLURM_ARRAY_TASK_ID=$task
  bash "$script" >>slurm.log 2>&1 || exit 1
done
echo "Submitted batch job 7"
""",
    "scontrol": "#!/usr/bin/env bash\necho localhost\n",
    "srun": """#!/usr/bin/env bash
while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
""",
}


@pytest.mark.slow
def test_the_jobs_of_slurm_give_the_same_files(
    config: DataConfig, script: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name, content in FAKE_SLURM.items():
        (tmp_path / "bin" / name).write_text(content, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    folders = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        [*script, "slurm"],
        env={**os.environ, "PATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    slurm_log = Path("slurm.log").read_text("utf-8") if Path("slurm.log").exists() else ""
    assert done.returncode == 0, done.stderr + slurm_log
    assert contents(tmp_path / "data") == contents_of_prepare(config, tmp_path), slurm_log
