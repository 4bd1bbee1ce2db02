"""How exact a plan is: planned and taken seconds, planned and reached val_loss.

    python benchmarks/plan_time.py --text az_open.jsonl --plans 1:2 2:3 4:3

Each MB:MINUTES is a text of that size (documents of --text, shuffled) and a time. `plan` is asked,
the command that it prints is run, from the start of the process to its end, and both are compared.
A line of JSON per plan is kept in --out; what is there already is not run again. Three plans of 2
to 3 minutes take about 13 minutes, since each measures the machine first. Other programs must be
silent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azllm_lightning.machine.busy import how_busy

Row = dict[str, Any]

GOAL = 0.2
"""Error of the time that `plan` should stay below."""


def main() -> None:
    """Run the plans that are not in --out yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with `text`")
    parser.add_argument("--plans", nargs="+", default=["1:2", "2:3", "4:3"], metavar="MB:MINUTES")
    parser.add_argument("--work", type=Path, default=Path("plan_time"))
    parser.add_argument("--out", type=Path, default=Path("plan_time.jsonl"))
    parser.add_argument("--set", nargs="*", default=[], help="further settings of plan: model=nano")
    args = parser.parse_args()
    done = rows_of(args.out)
    for name in args.plans:
        if name in [row["name"] for row in done]:
            continue
        megabytes, minutes = map(float, name.split(":"))
        text = part(args.text, megabytes, args.work)
        row = measured(name, text, minutes, args.work, args.set)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
    print(table(done))


def rows_of(path: Path) -> list[Row]:
    """What an earlier call found."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def part(text: Path, megabytes: float, work: Path) -> Path:
    """A file with about so much of a text: its documents in random order, the same each time."""
    work.mkdir(parents=True, exist_ok=True)
    path = work.absolute() / f"{megabytes:g}mb.jsonl"
    lines = text.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            if size >= 1e6 * megabytes:
                break
            document = json.loads(line)["text"]
            size += len(document.encode("utf-8"))
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    return path


def measured(name: str, text: Path, minutes: float, work: Path, settings: Sequence[str]) -> Row:
    """Plan and carry out."""
    folder = work.absolute() / name.replace(":", "mb_") / f"{time.time():.0f}"
    folder.mkdir(parents=True)
    environment = {**os.environ, "AZLLM_DATA_DIR": str(folder / "cache")}
    planned = [f"data.path={text}", f"hours={minutes / 60:.6g}", "out=plan.json", *settings]
    command = [sys.executable, "-m", "azllm_lightning.plan", *planned]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    found = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    plan = found["plan"]
    machine = found["machine"]
    command = [sys.executable, *shlex.split(plan["command"])[1:], "run_name=planned"]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    taken = time.perf_counter() - started
    run = folder / "lightning_logs" / "planned" / "version_0"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "machine": machine["name"],
        "busy": how_busy(machine["cpu_share"], machine["others_share"]),
        "load": load,
        "model": plan["model"],
        "steps": plan["steps"],
        "passes": plan["passes"],
        "planned_seconds": plan["seconds"],
        "time_error": plan["time_error"],
        "taken_seconds": taken,
        "planned_loss": plan["val_loss"],
        "loss_error": plan["error"],
        "reached_loss": summary["val_loss"],
        "planned_bpb": plan["val_bpb"],
        "reached_bpb": summary["val_bpb"],
        "outside": plan["outside"],
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and the mean errors."""
    lines = [
        "| text, time | model | steps | passes | planned s | taken s | error | planned val_loss "
        "| reached | error | busy |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        megabytes, minutes = row["name"].split(":")
        cells = (
            f"{megabytes} MB, {minutes} min",
            row["model"],
            f"{row['steps']:,}",
            f"{row['passes']:.1f}",
            f"{row['planned_seconds']:.0f} ± {row['time_error']:.0%}",
            f"{row['taken_seconds']:.0f}",
            f"{time_error(row):+.0%}",
            f"{row['planned_loss']:.2f} ± {row['loss_error'] * row['planned_loss']:.2f}",
            f"{row['reached_loss']:.2f}",
            f"{loss_error(row):+.0%}",
            row["busy"] or "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if rows:
        times = [abs(time_error(row)) for row in rows]
        losses = [loss_error(row) for row in rows]
        lines += [
            "",
            f"Error of the time: mean {statistics.fmean(times):.0%}, largest {max(times):.0%} "
            f"(goal {GOAL:.0%}). Error of val_loss: root mean square "
            f"{math.sqrt(statistics.fmean(error**2 for error in losses)):.1%}.",
        ]
    return "\n".join(lines)


def time_error(row: Row) -> float:
    """How much longer than planned it took, as a share of the plan."""
    return float(row["taken_seconds"] / row["planned_seconds"] - 1)


def loss_error(row: Row) -> float:
    """How far above the planned val_loss it ended, as a share of it."""
    return float(row["reached_loss"] / row["planned_loss"] - 1)


if __name__ == "__main__":
    main()
