"""Run stacks of trials (trial_stack.py) on one GPU.

    python benchmarks/trial_stacks.py LIST --data DATA --out RESULTS.jsonl --seconds 140

Each line of LIST is a JSON object: `stack`, a name; `common`, settings of all members; `members`,
names and their settings; `seeds`, with which each is trained. `after` names a stack of the same
process that must have ended (teachers). A stack whose members all have results is skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from trial_stack import Settings, Stack, Text, run


def main() -> None:
    """Run the stacks of a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps-at-most", type=int, help="for a test of a list on a CPU")
    parser.add_argument("--members-at-most", type=int)
    parser.add_argument("--only", help="stacks whose names start so")
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.touch()
    done = {json.loads(line)["name"] for line in args.out.read_text("utf-8").splitlines()}
    jobs = []
    for line in filter(None, args.list.read_text("utf-8").splitlines()):
        job = expanded(json.loads(line))
        if args.only and not job["stack"].startswith(args.only):
            continue
        job["members"] = {n: m for n, m in job["members"].items() if n not in done}
        if args.members_at_most:
            job["members"] = dict(list(job["members"].items())[: args.members_at_most])
        if job["members"]:
            jobs.append(job)
    count = sum(len(job["members"]) for job in jobs)
    print(f"{len(jobs)} stacks, {count} trials, {args.workers} workers", flush=True)
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    turn, lock = context.Value("i", 0), context.Lock()
    workers = [
        context.Process(target=work, args=(args, jobs, turn, lock, deadline))
        for _ in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def expanded(job: Settings) -> Settings:
    """The job with one member for each seed."""
    members = {
        f"{job['stack']}/{name}/{seed}": {**member, "seed": seed}
        for name, member in job["members"].items()
        for seed in job.get("seeds", [1, 2])
    }
    return {**job, "members": members}


def work(args: argparse.Namespace, jobs: list[Settings], turn: Any, lock: Any, end: float) -> None:
    """Take one stack after the other, until none is left or the time is up."""
    torch.set_num_threads(1 if args.device == "cuda" else 2)
    torch.set_float32_matmul_precision("high")
    texts: dict[str, Text] = {}
    kept: dict[str, Stack] = {}
    while time.time() < end:
        with turn.get_lock():
            number = turn.value
            turn.value += 1
        if number >= len(jobs):
            return
        chain = [jobs[number], *jobs[number].get("then", [])]
        for job in chain:
            try:
                lines = trained(args, expanded(job) if job is not chain[0] else job, texts, kept, end)
            except Exception as error:
                trace = traceback.format_exc()[-600:]
                lines = [{"name": f"{job['stack']} failed", "error": repr(error)[:300], "at": trace}]
                if args.device == "cuda":
                    torch.cuda.empty_cache()
            with lock, args.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            shown = {line["name"]: line.get("val_loss", line.get("error")) for line in lines}
            print(job["stack"], lines[0].get("seconds"), shown, flush=True)
        kept.clear()


def trained(
    args: argparse.Namespace,
    job: Settings,
    texts: dict[str, Text],
    kept: dict[str, Stack],
    deadline: float,
) -> list[Settings]:
    """The results of a stack."""
    common = dict(job.get("common", {}))
    folder = common.get("data", "full")
    if folder not in texts:
        texts[folder] = Text(args.data / folder)
    if args.steps_at_most:
        common.update(steps=args.steps_at_most, passes=None, val_windows=4)
    teachers = kept[common["teachers"]] if common.get("teachers") else None
    stack = Stack(common, job["members"], texts[folder], torch.device(args.device), teachers)
    lines = run(stack, deadline)
    if common.get("keep"):
        kept[job["stack"]] = stack
    del stack, teachers
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return lines


if __name__ == "__main__":
    main()
