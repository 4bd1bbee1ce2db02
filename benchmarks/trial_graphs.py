"""Many trainings on little text that share one GPU, each step one CUDA graph.

    python benchmarks/trial_graphs.py LIST.jsonl --data FULL --out RESULTS.jsonl --seconds 110

A step of 5 M parameters takes 6 ms to launch and 1 ms to compute, so steps are recorded as graphs,
and several trainings run in streams of their own. Each line of LIST is a trial, with the settings
that differ from DEFAULTS, most important first; `kind` is "ours" (as azllm_lightning.train
model=tiny) or "peer" (as peer_recipe.py). FULL is a folder of prepared shards. A trial trains on
`mb` MB of its training documents, chosen at random (a smaller choice is part of a larger one) and
in their order, and is validated on 256 windows of its complete validation split, after each pass.
Results are lines of RESULTS; trials of the same `group` form ensembles, which are scored by their
mean probabilities at the end. `combine` takes the changes that paid in the trials of RESULTS called
"c ...", compared with those called "base ...".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), "benchmarks"]  # also where this is a copy elsewhere

import numpy as np
import torch
from graph_training import DEFAULTS, VAL_WINDOWS, Settings, Text, Training


def main() -> None:
    """Run the trials of a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=3, help="processes")
    parser.add_argument("--streams", type=int, default=6, help="trainings at once in each")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without graphs")
    parser.add_argument("--val-windows", type=int, default=VAL_WINDOWS)
    parser.add_argument("--steps-at-most", type=int, help="for a test on a CPU")
    args = parser.parse_args()
    args.deadline = time.time() + args.seconds
    trials = read_trials(args)
    print(f"{len(trials)} trials", flush=True)
    context = multiprocessing.get_context("spawn")
    turn, lock = context.Value("i", 0), context.Lock()
    with tempfile.TemporaryDirectory() as work:
        workers = [
            context.Process(target=work_on, args=(trials, turn, lock, args, Path(work)))
            for _ in range(args.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        lines = ensembles(trials, Path(work))
    with args.out.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    for line in lines:
        print(line, flush=True)
    print(f"{turn.value} of {len(trials)} trials begun", flush=True)


def read_trials(args: argparse.Namespace) -> list[Settings]:
    """The trials that have no result yet."""
    done = set()
    if args.out.exists():
        done = {json.loads(line).get("name") for line in args.out.read_text("utf-8").splitlines()}
    trials = []
    for path in args.lists:
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            given = json.loads(line)
            unknown = given.keys() - DEFAULTS.keys()
            if unknown:
                raise SystemExit(f"{path}: unknown settings {sorted(unknown)} in {line}")
            trial = {**DEFAULTS, **given, "given": given}
            if args.steps_at_most:
                trial["at_most"] = args.steps_at_most
            if trial["name"] not in done:
                done.add(trial["name"])
                trials.append(trial)
    return trials


def work_on(
    trials: list[Settings], turn: Any, lock: Any, args: argparse.Namespace, work: Path
) -> None:
    """Take trials, several at once, until none is left or the time is up."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    worker = Worker(trials, turn, lock, args, work)
    idle_since = time.time()
    while time.time() < args.deadline and not worker.is_done():
        if len(worker.running) < args.streams:
            worker.begin()
        if worker.running:
            idle_since = time.time()
        elif time.time() - idle_since > 30:
            break  # the teachers will not come
        if not worker.advance():
            time.sleep(0.0003)
    worker.report_parts()


class Worker:
    """One process: several trainings, each in its stream."""

    def __init__(
        self,
        trials: list[Settings],
        turn: Any,
        lock: Any,
        args: argparse.Namespace,
        work: Path,
    ) -> None:
        self.trials, self.turn, self.lock, self.args, self.work = trials, turn, lock, args, work
        self.text = Text(args.data, torch.device(args.device), args.val_windows)
        self.graphs = not args.eager
        self.running: list[Training] = []
        self.held: list[Settings] = []  # until their teachers are trained
        self.is_empty = False
        self.rate = 0.0  # seconds per pass over 1 MB

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_empty and not self.held and not self.running

    def begin(self) -> None:
        """Begin the next trial whose teachers are there, if there is time for it."""
        trial = next((t for t in self.held if has_teachers(t, self.work)), None)
        if trial is not None:
            self.held.remove(trial)
        elif (trial := take(self.trials, self.turn)) is None:
            self.is_empty = True
            return
        elif not has_teachers(trial, self.work):
            self.held.append(trial)
            return
        if trial["combine"]:
            with self.lock:
                trial = combined(trial, self.args.out)
        if "at_most" in trial:
            most = trial["at_most"] * trial["batch"] / (trial["mb"] * 47 * 16)
            trial["passes"] = min(trial["passes"], most)
        needed = self.rate * trial["passes"] * trial["mb"]
        if time.time() + 0.8 * needed < self.args.deadline:
            self._build(trial)

    def _build(self, trial: Settings) -> None:
        try:
            self.running.append(Training(trial, self.text, self.work, self.graphs))
        except Exception as error:
            self._report({"name": f"{trial['name']} (graph)", "error": repr(error)[:800]})
            self.graphs = False
            with contextlib.suppress(Exception):
                self.running.append(Training(trial, self.text, self.work, self.graphs))

    def advance(self) -> bool:
        """Let every training do something; returns whether one did."""
        is_busy = False
        for training in list(self.running):
            try:
                is_busy |= training.advance()
            except Exception as error:
                self.running.remove(training)
                self._report({"name": training.s["name"], "error": repr(error)[:800]})
                continue
            if training.result is not None:
                self.running.remove(training)
                result = {**training.result, "settings": training.s["given"]}
                self._report(result)
                self.rate = result["seconds"] / (result["steps"] / 47)
        return is_busy

    def report_parts(self) -> None:
        """What the trainings that did not end have so far."""
        for training in self.running:
            part = {"name": f"{training.s['name']} (part)", "val": training.val}
            more = {"of": training.steps, "settings": training.s["given"], "error": "time is up"}
            self._report({**part, **more})

    def _report(self, result: Settings) -> None:
        with self.lock, self.args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = result.get("error") or (
            f"best {result['best']} at pass {result['best_pass']}, {result['averages']}, "
            f"{result['steps']} steps in {result['seconds']} s"
        )
        print(f"{result['name']}: {shown}", flush=True)


def has_teachers(trial: Settings, work: Path) -> bool:
    """Whether the weights of its teachers are there."""
    return all((work / f"{name}.pt").exists() for name in trial["teachers"] or [])


def combined(trial: Settings, out: Path) -> Settings:
    """The trial with the best changes that are known by now."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    results = [json.loads(line) for line in lines]
    done = [result for result in results if "best" in result]
    base = [result for result in done if result["name"].startswith("base ")]
    changes = sorted(
        (result for result in done if result["name"].startswith("c ")),
        key=lambda result: result["best"],
    )
    if not base:
        return trial
    common = base[0]["settings"]
    worst = sum(result["best"] for result in base) / len(base) - 0.004
    added: Settings = {}
    used = 0
    for change in changes:
        own = {k: v for k, v in change["settings"].items() if common.get(k, DEFAULTS[k]) != v}
        own.pop("name")
        if change["best"] > worst or own.keys() & added.keys() or used == trial["combine"]:
            continue
        added.update(own)
        used += 1
    given = {**common, **added, **trial["given"]}
    return {**trial, **given, "given": {**given, "used": used}}


def take(trials: list[Settings], turn: Any) -> Settings | None:
    """The next trial."""
    with turn.get_lock():
        number = turn.value
        if number >= len(trials):
            return None
        turn.value += 1
    return trials[number]


def ensembles(trials: list[Settings], work: Path) -> list[Settings]:
    """The loss of the mean probabilities of the first trials of each group."""
    groups: dict[str, list[np.ndarray]] = {}
    for trial in trials:
        path = work / f"{trial['name']}.npy"
        if trial["group"] and path.exists():
            groups.setdefault(trial["group"], []).append(np.exp(-np.load(path).astype(np.float64)))
    lines = []
    for name, members in groups.items():
        by_size = {
            size: round(float(-np.log(np.mean(members[:size], axis=0)).mean()), 4)
            for size in (1, 2, 3, 4, 6, 8, 12, 16)
            if size <= len(members)
        }
        lines.append({"name": f"ensemble {name}", "by_size": by_size})
    return lines


if __name__ == "__main__":
    main()
