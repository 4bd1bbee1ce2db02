"""benchmarks/turns.py: measurements that start side by side are timed one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
MEASUREMENT = """
import sys, time
from pathlib import Path
from turns import be_ready, take_turn
name, warm_up, log = sys.argv[1:]
time.sleep(float(warm_up))
if name == "broken":
    be_ready(name)
    raise SystemExit(1)
with open(log, "a") as file:
    print("warm", file=file, flush=True)
    take_turn()
    for word in ("begins", "ends"):
        print(word, name, file=file, flush=True)
        time.sleep(0.3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("third", ["c", "broken"])
def test_turns_begin_when_all_are_warm_and_do_not_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from turns import turns

    log = tmp_path / "log"
    with turns(3, tmp_path / "turns"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", MEASUREMENT, name, warm_up, log], cwd=BENCHMARKS
            )
            for name, warm_up in (("a", "0"), ("b", "0.2"), (third, "0.6"))
        ]
        for process in processes:
            process.wait(timeout=60)
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    count = 2 if third == "broken" else 3
    assert lines[:count] == ["warm"] * count
    order = [line.split()[1] for line in lines[count::2]]
    assert sorted(order) == ["a", "b", third][:count]
    assert lines[count:] == [f"{word} {name}" for name in order for word in ("begins", "ends")]
    assert not (tmp_path / "turns").exists()


def test_without_turns_nobody_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", MEASUREMENT, "a", "0", log]
    subprocess.run(command, cwd=BENCHMARKS, check=True, timeout=60)
    assert log.read_text(encoding="utf-8") == "warm\nbegins a\nends a\n"
