"""Run many short trainings that share one GPU, to try changes of the recipe.

    python benchmarks/trials.py benchmarks/trials.jsonl --data DATA --out RESULTS.jsonl \\
        --seconds 280 --workers 15

Each line of LIST is a JSON object: a trial, with the settings that differ from
trial_settings.DEFAULTS, most important trials first; trials.jsonl has those that LOG.md names as
not run yet. `data` names a folder of prepared shards within --data; those of the list are `full`
and `full32k` (az_open.jsonl with a vocabulary of 8,192 and of 32,000) and `mb1`, `mb2`, ... (parts
in MB by `data_efficiency.write_parts`, with the tokenizer of `full`). A student waits for those of
its teachers that are in the list, and finds their weights in its `keep_weights`. Without changes, a
trial trains what `python -m azllm_lightning.train model=tiny` does (kind "ours") or
`benchmarks/peer_recipe.py` (kind "peer"): same windows, weights, steps and validation, uncompiled.
With --graphs, steps are CUDA graphs where all of them do the same, and take a fraction of the time.
A result is a line of RESULTS: the settings, val_loss at the end, its lowest value, and its values
by step. A trial whose `name` already is in RESULTS is skipped, so that the command can be repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch
from trial_run import Result, TimeUp, batches_of, opened, run_trial
from trial_settings import DEFAULTS, Settings

OPEN, TAKEN, ENDED = range(3)


def main() -> None:
    """Run the trials of a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", type=Path, help="file of trials")
    parser.add_argument("--data", default=".", help="folder of folders of shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--graphs", action="store_true", help="record steps as CUDA graphs")
    parser.add_argument("--steps-at-most", type=int, help="for a test of a list on a CPU")
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    args.out.touch()
    trials = read_trials(args)
    print(f"{len(trials)} trials, {args.workers} workers", flush=True)
    for folder in {trial.get("data", DEFAULTS["data"]) for trial in trials}:
        with contextlib.suppress(ValueError):  # verified once, before all workers do
            opened(str(Path(args.data) / folder), 256, 0, 1)
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    states = context.Array("i", len(trials))
    workers = [
        context.Process(target=work, args=(args, trials, states, deadline))
        for _ in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = len(args.out.read_text(encoding="utf-8").splitlines())
    print(f"{len(trials) - [*states].count(OPEN)} trials taken; {args.out} has {done} lines")


def read_trials(args: argparse.Namespace) -> list[Settings]:
    """The trials of the list that have no result yet."""
    results = map(json.loads, args.out.read_text("utf-8").splitlines())
    done = {result["name"] for result in results if "val_loss" in result}
    lines = filter(None, args.list.read_text("utf-8").splitlines())
    trials = [
        settled(args, json.loads(line), f"{args.list.stem}:{number}")
        for number, line in enumerate(lines, start=1)
    ]
    return [trial for trial in trials if trial["name"] not in done]


def settled(args: argparse.Namespace, trial: Settings, name: str) -> Settings:
    """A `trial` of a list with the command's settings; SystemExit for an unknown setting."""
    unknown = trial.keys() - DEFAULTS.keys()
    if unknown:
        raise SystemExit(f"{name}: unknown settings {sorted(unknown)}")
    trial = {"data_root": args.data, "device": args.device, "graphs": args.graphs, **trial}
    trial["name"] = trial.get("name") or name
    if args.steps_at_most:
        trial.update(steps=min(args.steps_at_most, trial.get("steps", 100)), val_windows=8)
    return trial


def work(args: argparse.Namespace, trials: list[Settings], states: Any, deadline: float) -> None:
    """Run one trial after the other, until none is left or the time is up.

    `states` are those of all trials, shared by the processes.
    """
    torch.set_num_threads(1)
    rate = 0.0  # seconds per unit of work, in this process
    while (number := take(trials, states, deadline)) is not None:
        trial = trials[number]
        started = time.perf_counter()
        if time.time() + 0.8 * rate * cost(trial) < deadline:
            with contextlib.suppress(TimeUp):
                result = tried(trial, deadline)
                rate = (time.perf_counter() - started) / cost(trial)
                with states.get_lock():
                    write(args.out, result)
                    states[number] = ENDED  # students of one that did not end cannot run


def take(trials: list[Settings], states: Any, deadline: float) -> int | None:
    """The number of the first trial that is open, and whose teachers have ended; waits for them.

    None if there is none left, or the time is up.
    """
    while time.time() < deadline:
        with states.get_lock():
            names = {
                trial["name"] for trial, state in zip(trials, states, strict=True) if state != ENDED
            }
            open_ones = [number for number, state in enumerate(states) if state == OPEN]
            for number in open_ones:
                if names.isdisjoint(trials[number].get("teachers", [])):
                    states[number] = TAKEN
                    return number
        if not open_ones:
            return None
        time.sleep(0.5)
    return None


def tried(trial: Settings, deadline: float) -> Result:
    """The result of a trial, or its error; raises TimeUp at `deadline`."""
    try:
        return run_trial(trial, deadline)
    except TimeUp:
        raise
    except Exception as error:
        return {"name": trial["name"], "error": repr(error)[:500], "settings": trial}
    finally:
        if trial["device"] == "cuda":  # other processes need the memory that this trial had
            gc.collect()
            torch.cuda.empty_cache()


def write(path: Path, result: Result) -> None:
    """Add a line to the results, and show it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    shown = result.get("error") or f"{result['val_loss']:.4f} in {result['seconds']:.1f} s"
    print(f"{result['name']}: {shown}", flush=True)


def cost(trial: Settings) -> float:
    """A rough measure of the work of a trial."""
    s = {**DEFAULTS, **trial}
    plan = batches_of(s)
    validations = 1 + (len(plan) // s["val_every"] if s["val_every"] else 0)
    work_of_steps = sum(0.5 + size / 32 for _, size in plan)
    work_of_validations = validations * (s["val_windows"] or 256) / 96
    return float((work_of_steps + work_of_validations) * (s["layers"] * s["width"] ** 0.5 + 5))


if __name__ == "__main__":
    main()
