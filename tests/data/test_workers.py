from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from azllm_lightning.data.workers import Workers


def square(number: int) -> tuple[int, int]:
    if number == 13:
        raise ValueError("thirteen")
    time.sleep(0.02 * (number % 3 == 0))  # the results are not ready in order
    return number * number, os.getpid()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order(count: int) -> None:
    with Workers(count) as workers:
        found = list(workers.map(square, range(12)))
        assert [value for value, _ in found] == [n * n for n in range(12)]
        assert (os.getpid() in {pid for _, pid in found}) == (count == 1)
        again = list(workers.map(square, range(5)))
        assert len({pid for _, pid in found + again}) <= count  # the same processes


@pytest.mark.parametrize("items", [0, 1])
def test_no_process_is_started_for_one_item(items: int) -> None:
    with Workers(2) as workers:
        assert [pid for _, pid in workers.map(square, range(items))] == [os.getpid()] * items


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_at_its_turn(count: int) -> None:
    with Workers(count) as workers:
        results = workers.map(square, range(10, 20))
        assert [next(results)[0] for _ in range(3)] == [100, 121, 144]
        with pytest.raises(ValueError, match="thirteen"):
            next(results)


def end_the_process(_: int) -> None:
    os._exit(1)


def test_a_process_that_is_killed_is_an_error_with_the_way_out() -> None:
    with Workers(2) as workers, pytest.raises(ValueError, match=r"data\.prepare_workers=1"):
        list(workers.map(end_the_process, range(3)))


def test_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100, 200):
            taken.append(number)
            yield number

    with Workers(2) as workers:
        for done, _ in enumerate(workers.map(square, items()), 1):
            assert len(taken) <= done + 5


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import os, time\n"
        "from azllm_lightning.data.workers import Workers\n"
        "def pid(_): return os.getpid()\n"
        "with Workers(2) as workers:\n"
        "    print(*set(workers.map(pid, range(40))), flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = list(map(int, process.stdout.readline().split()))
    assert pids
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "the workers are still there"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody has waited for is dead
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return sys.platform != "linux"


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="spawns as others do")
def test_a_script_without_a_guard_is_an_error_where_processes_import_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from types import SimpleNamespace\n"
        "from azllm_lightning.config.data import DataConfig\n"
        "from azllm_lightning.data import pipeline, workers\n"
        "workers.sys = SimpleNamespace(platform='darwin')\n"
        "def prepared():\n"
        "    config = DataConfig(path='text.jsonl', vocab_size=300, prepare_workers=2)\n"
        "    print(pipeline.prepare(config))\n"
        "prepared()\n",
        encoding="utf-8",
    )
    text = "Bir var idi, bir yox idi. " * 200_000
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    environment = {**os.environ, "AZLLM_DATA_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ValueError: this script is run again" in last
    assert '`if __name__ == "__main__":`' in last


def test_windows_has_at_most_61_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int, *_: object) -> None:
            counts.append(count)
            super().__init__(2)

    monkeypatch.setattr("azllm_lightning.data.workers.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("azllm_lightning.data.workers.sys", SimpleNamespace(platform="win32"))
    with Workers(100) as workers:
        assert len(list(workers.map(square, range(3)))) == 3
    assert counts == [61]
