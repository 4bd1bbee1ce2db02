"""Run many short trainings that share one GPU, to try changes of the recipe.

    python benchmarks/trials.py LIST.jsonl --data DATA --out RESULTS.jsonl --seconds 280 --workers 15

Each line of LIST is a JSON object: a trial, with the settings that differ from DEFAULTS, most
important trials first. `data` names a folder of prepared shards within --data. Without changes, a
trial trains what `python -m azllm_lightning.train model=tiny` does (kind "ours") or
`benchmarks/peer_recipe.py` (kind "peer"): same windows, weights, steps and validation, uncompiled.
A result is a line of RESULTS: the settings, val_loss at the end, its lowest value, and its values
by step. A trial whose `name` already is in RESULTS is skipped, so that the command can be repeated.

`run_trial(settings)` runs one trial in this process, and returns the result.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), "benchmarks"]  # also where this is a copy elsewhere

import torch
from gpt2 import GPT2, GPT2Config, configure_adamw
from torch import Tensor, nn
from trial_averages import Averages, LookAhead
from trial_model import build_model, loss_of
from trial_optimizer import TrialOptimizer, groups_of
from trial_search import propose

from azllm_lightning import compose
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.model.loss import token_nll
from azllm_lightning.training.causal_lm import derived_seed
from azllm_lightning.training.schedule import lr_factor

Settings = dict[str, Any]
Result = dict[str, Any]

DEFAULTS: Settings = {
    "name": None,
    "kind": "ours",  # or peer
    "data": "full",  # folder of shards within data_root
    "data_root": ".gpu/gpu_data",
    "device": "cuda",
    "precision": "tf32",  # fp32, or bf16 (autocast)
    "seed": 1234,
    "block": 256,
    "batch": 16,  # windows per step; the unit of `steps` and `warmup`, also if the batch grows
    "steps": 100,
    "passes": None,  # in place of `steps`: passes over the training windows
    "val_windows": 256,  # None: all
    "val_every": None,  # steps; None: at the end only
    "stop_above": None,  # stop when val_loss is this much above its lowest
    "keep_losses": False,  # all training losses in the result
    "hooks": None,  # module with functions that replace ours: windows(settings), batch(settings, step, x, y)
    # Sizes
    "layers": 4,
    "heads": 4,
    "kv_heads": None,
    "width": 256,
    "ffn": None,
    "dropout": 0.0,
    "tied": True,
    "rope_theta": 10_000.0,
    "norm_eps": 1e-6,
    # Initial weights
    "table_std": 0.02,
    "head_std": 0.02,
    "hidden_std": 0.02,
    "out_std": 0.0,  # o_proj and down_proj
    "final_gain": 1.0,  # of the last norm: the scale of the logits
    "branch_gain": 1.0,  # of the other norms of the residual stream
    "unigram": 0.0,  # untied: the head starts at this share of the log frequencies of the first windows
    # Optimizer
    "lr": 0.01,
    "attn_lr": None,  # of attention's matrices, None: lr
    "weight_decay": 0.1,
    "momentum": 0.9,
    "momentum_start": None,  # rises linearly to `momentum` ...
    "momentum_rise": 0.0,  # ... within this share of the steps
    "momentum_end": None,  # falls linearly from `momentum` to this ...
    "momentum_fall": 0.0,  # ... within this last share of the steps
    "nesterov": True,
    "ns_steps": 5,
    "normuon": None,  # beta of the rows' second moment
    "row_floor": None,  # smallest update / weight per row
    "soap": None,  # beta of SOAP's averages
    "soap_every": 5,
    "soap_side": 256,  # sides longer than this keep their basis
    "adam_lr": 0.03,
    "adam_weight_decay": 0.0,
    "beta1": 0.65,
    "beta2": 0.95,
    "eps": 1e-8,
    "table_rule": "adam",  # row: one second moment per row; muon
    "head_rule": None,  # head_*: of an untied head; None: as of the table
    "head_lr": None,
    "head_decay": None,
    "head_beta1": None,
    "head_beta2": None,
    "norm_lr": None,
    "norm_beta1": None,
    "norm_beta2": None,
    "last_norm_lr": None,
    "cautious": "",  # cautious decay of: muon, tables, all
    "decay_schedule": "lr",  # decay x lr; square: decay also falls with lr; constant
    "clip": 1.0,
    # Schedule
    "schedule": "linear",  # cosine, sqrt, constant, power
    "power": 1.0,  # of the schedule of that name: (1 - progress) ** power
    "warmup": None,  # steps; None: a twentieth, at least 10
    "decay_ratio": 1.0,
    "min_lr_ratio": 0.0,
    "batch_plan": None,  # [[share of the tokens, windows per step], ...]
    "lr_by_batch": 0.0,  # lr x (windows / batch) ** this, with a batch_plan
    "length_plan": None,  # [[share of the tokens, length], ...]: windows cut into pieces
    "document_start": False,  # a window starts at a document's start, if one is within half a window
    # Loss
    "z_loss": 0.0,
    "second_token": 0.0,  # weight of the loss on the token after the next, falling to 0 ...
    "second_until": 1.0,  # ... at this share of the tokens
    # Averages of the weights, validated too
    "ema": [],  # half-lives as shares of the steps
    "ema_mix": [],  # shares of the average mixed with the last weights, for each half-life
    "tail": [],  # means of the last share of the steps
    "look_ahead": 0.0,  # EMA-Nesterov: the gradient is taken this many average steps ahead
    "look_ahead_beta": 0.95,
    "look_ahead_from": 0.1,
    "look_ahead_until": 0.7,
}


class TimeUp(Exception):
    """The deadline passed before the end of the trial."""


def run_trial(settings: Settings, deadline: float = math.inf) -> Result:
    """Train as `settings` say; raises ValueError for an unknown setting, TimeUp when time.time()
    reaches `deadline`.
    """
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}")
    s = {**DEFAULTS, **settings}
    started = time.perf_counter()
    device = torch.device(s["device"])
    precision = "highest" if s["precision"] == "fp32" else "high"
    torch.set_float32_matmul_precision(precision)
    hooks = importlib.import_module(s["hooks"]) if s["hooks"] else None
    train, val, vocab_size = getattr(hooks, "windows", windows)(s)
    val = val.to(device)
    if s["passes"]:
        s["steps"] = max(1, s["passes"] * one_pass(s) // s["batch"])
    count = s["steps"] * s["batch"]
    assert len(train) >= count, f"{len(train)} windows, {count} are needed"
    train = train[:count].to(device)
    trainee = (Peer if s["kind"] == "peer" else Ours)(s, vocab_size, train, device)
    plan = batches_of(s)
    losses: list[Tensor] = []
    by_step: dict[str, dict[str, float]] = {}
    every = s["val_every"] or len(plan)
    best = math.inf
    changed = getattr(hooks, "batch", None)
    for step, (first, size) in enumerate(plan):
        length = last_of(s["length_plan"], first / count, s["block"])
        batch = train[first : first + size]
        x = batch[:, :-1].reshape(-1, length)
        y = batch[:, 1:].reshape(-1, length)
        if changed is not None:
            x, y = changed(s, step, x, y)
        losses.append(trainee.step(step, first / s["batch"], size, x, y))
        if step % 10 == 0 and time.time() > deadline:
            raise TimeUp
        if (step + 1) % every == 0 or step + 1 == len(plan):
            by_step[str(step + 1)] = {"": validate(trainee, val), **trainee.averaged(val)}
            best = min(best, by_step[str(step + 1)][""])
            if s["stop_above"] and by_step[str(step + 1)][""] > best + s["stop_above"]:
                break
    curve = torch.stack(losses).tolist()
    last = [*by_step.values()][-1]
    tenth = max(1, len(curve) // 10)
    names = [name for name in last if name]
    result: Result = {
        "name": s["name"],
        "val_loss": last[""],
        "best": best,
        "averages": {name: last[name] for name in names},
        "best_averages": {name: min(v[name] for v in by_step.values()) for name in names},
        "val": {step: values[""] for step, values in by_step.items()},
        "train_loss": round(sum(curve[-tenth:]) / tenth, 4),
        "steps": len(curve),
        "tokens": plan[len(curve) - 1][0] * s["block"] + plan[len(curve) - 1][1] * s["block"],
        "params": sum(p.numel() for p in trainee.net.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
        "settings": settings,
    }
    if s["keep_losses"]:
        result["losses"] = curve
    return result


class Ours:
    """A model of ours with the optimizer of a trial."""

    def __init__(self, s: Settings, vocab_size: int, train: Tensor, device: torch.device) -> None:
        self.s = s
        self.net, self.extra = build_model(s, vocab_size, train.cpu())
        self.net.to(device)
        modules = nn.ModuleList([self.net, *([self.extra.to(device)] if self.extra else [])])
        self.parameters = list(modules.parameters())
        dtype = torch.bfloat16 if s["precision"] == "bf16" else torch.float32
        self.optimizer = TrialOptimizer(groups_of(modules, s), dtype)
        self.schedule = ScheduleConfig(
            name="linear" if s["schedule"] == "power" else s["schedule"],
            warmup_steps=max(10, s["steps"] // 20) if s["warmup"] is None else s["warmup"],
            total_steps=s["steps"],
            decay_ratio=s["decay_ratio"],
            min_lr_ratio=s["min_lr_ratio"],
        )
        self.averages = Averages(s, self.net)
        self.look_ahead = LookAhead(s, self.parameters) if s["look_ahead"] else None

    def step(self, step: int, place: float, size: int, x: Tensor, y: Tensor) -> Tensor:
        """One update; `place` is the step of `batch` windows that this would be."""
        s = self.s
        progress = place / s["steps"]
        factor = self.factor(place) * (size / s["batch"]) ** s["lr_by_batch"]
        if self.look_ahead:
            self.look_ahead.before(progress, factor)
        if s["dropout"]:
            torch.manual_seed(derived_seed(s["seed"], step, 0, 0))
        with autocast(s):
            loss, plain = loss_of(self.net, self.extra, x, y, s, progress)
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, s["clip"], norm)
        decay = {"lr": factor, "square": factor * factor, "constant": 1.0}[s["decay_schedule"]]
        self.optimizer.step(factor, decay, self.momentum(progress))
        for p in self.parameters:
            p.grad = None
        if self.look_ahead:
            self.look_ahead.after()
        self.averages.update((place + size / s["batch"]) / s["steps"], size)
        return plain.detach()

    def factor(self, place: float) -> float:
        """The factor on all learning rates."""
        factor = lr_factor(place, self.schedule)  # type: ignore[arg-type]
        if self.s["schedule"] == "power" and place >= self.schedule.warmup_steps:
            low = self.s["min_lr_ratio"]
            factor = low + (1 - low) * ((factor - low) / (1 - low)) ** self.s["power"]
        return min(1.0, factor)

    def momentum(self, progress: float) -> float:
        """Muon's momentum at a share of the steps."""
        s = self.s
        high: float = s["momentum"]
        if s["momentum_start"] is not None and progress < s["momentum_rise"]:
            return float(
                s["momentum_start"] + (high - s["momentum_start"]) * progress / s["momentum_rise"]
            )
        if s["momentum_end"] is not None and progress > 1 - s["momentum_fall"]:
            late = 1 - (1 - progress) / s["momentum_fall"]
            return float(high + (s["momentum_end"] - high) * late)
        return high

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each token."""
        return token_nll(self.net.hidden(x).flatten(0, 1), self.net.lm_head.weight, y.flatten())

    def averaged(self, val: Tensor) -> dict[str, float]:
        """val_loss of each average of the weights."""
        results = {}
        for name, context in self.averages.swapped():
            with context:
                results[name] = validate(self, val)
        return results


class Peer:
    """GPT-2 with the recipe of the course and of nanoGPT, as in peer_recipe.py."""

    def __init__(self, s: Settings, vocab_size: int, train: Tensor, device: torch.device) -> None:
        self.s = s
        torch.manual_seed(s["seed"])
        sizes = (s["block"], s["layers"], s["heads"], s["width"], s["dropout"])
        self.net = GPT2(GPT2Config(vocab_size, *sizes)).to(device)
        decay = s["weight_decay"]
        self.optimizer = configure_adamw(self.net, s["lr"], decay)
        warmup = min(100, s["steps"] // 10) if s["warmup"] is None else s["warmup"]
        self.schedule = ScheduleConfig(
            name="cosine",
            warmup_steps=warmup,
            total_steps=s["steps"],
            decay_ratio=1.0,
            min_lr_ratio=0.1,
        )

    def step(self, step: int, place: float, size: int, x: Tensor, y: Tensor) -> Tensor:
        """One update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.s["lr"] * lr_factor(step, self.schedule)
        with autocast(self.s):
            loss: Tensor = self.net(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.s["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def nll(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each token."""
        logits = self.net(x).float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, y.flatten(), reduction="none")

    def averaged(self, val: Tensor) -> dict[str, float]:
        """No averages."""
        return {}


@torch.no_grad()
def validate(trainee: Ours | Peer, val: Tensor) -> float:
    """Mean loss per token on the windows `val`, in nats."""
    trainee.net.eval()
    total = torch.zeros((), dtype=torch.float64, device=val.device)
    for batch in val.split(32):
        with autocast(trainee.s):
            total += trainee.nll(batch[:, :-1], batch[:, 1:]).double().sum()
    trainee.net.train()
    return round(float(total) / (len(val) * (val.shape[1] - 1)), 4)


def autocast(s: Settings) -> torch.autocast:
    """The number type of the products."""
    return torch.autocast(s["device"], torch.bfloat16, enabled=s["precision"] == "bf16")


# Data


def windows(s: Settings) -> tuple[Tensor, Tensor, int]:
    """The training windows of all steps in their order (N, T + 1), those of validation, and the
    size of the vocabulary.
    """
    key = (str(Path(s["data_root"]) / s["data"]), s["block"], s["seed"], s["val_windows"])
    steps = max(s["steps"], math.ceil((s["passes"] or 0) * one_pass(s) / s["batch"]))
    return _windows(*key, steps * s["batch"], s["document_start"])


def one_pass(s: Settings) -> int:
    """The training windows in one pass."""
    return _data(str(Path(s["data_root"]) / s["data"]), s["block"], 0, 1).train_windows.num_windows


@cache
def _data(folder: str, block: int, seed: int, val_windows: int | None) -> TokenDataModule:
    config = compose(["data=text"]).data
    config = replace(config, dir=folder, block_size=block, val_windows=val_windows)
    data = TokenDataModule(config, 1, seed)
    data.setup()
    return data


@lru_cache(maxsize=64)
def _windows(
    folder: str, block: int, seed: int, val_windows: int | None, count: int, document_start: bool
) -> tuple[Tensor, Tensor, int]:
    data = _data(folder, block, seed, val_windows)
    train = data.train_windows
    val = data.val_windows.__getitems__(data.chosen_val_windows())
    if not document_start:
        return train.__getitems__(list(range(count))), val, data.tokenizer.vocab_size
    tokens = torch.from_numpy(train.shards.read(0, len(train.shards)).astype("int64"))
    ends = (tokens == data.tokenizer.eot_id).nonzero().flatten() + 1
    starts = torch.tensor([train.start(i) for i in range(count)])
    nearest = ends[(torch.searchsorted(ends, starts + block // 2) - 1).clamp_min(0)]
    near = ((nearest - starts).abs() <= block // 2) & (nearest + block < len(tokens))
    starts = torch.where(near, nearest, starts)
    rows = torch.stack([tokens[i : i + block + 1] for i in starts.tolist()])
    return rows, val, data.tokenizer.vocab_size


def batches_of(s: Settings) -> list[tuple[int, int]]:
    """The first window and the number of windows of each step."""
    total = s["steps"] * s["batch"]
    plan: list[tuple[int, int]] = []
    first = 0
    while first < total:
        size = min(total - first, int(last_of(s["batch_plan"], first / total, s["batch"])))
        plan.append((first, size))
        first += size
    return plan


def last_of(plan: list[list[float]] | None, share: float, default: int) -> int:
    """The value of the last entry [share, value] of `plan` that has begun."""
    begun = [int(value) for start, value in plan or [] if share >= start]
    return begun[-1] if begun else default


# Many trials


def main() -> None:
    """Run the trials of a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", nargs="+", type=Path, help="files of trials")
    parser.add_argument("--data", default=DEFAULTS["data_root"], help="folder of folders of shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--search", type=Path, help="when the lists are done: see trial_search.py")
    parser.add_argument("--search-at-most", type=int, default=1000)
    parser.add_argument("--steps-at-most", type=int, help="for a test of a list on a CPU")
    args = parser.parse_args()
    deadline = time.time() + args.seconds
    args.out.touch()
    trials = read_trials(args)
    print(f"{len(trials)} trials, {args.workers} workers", flush=True)
    for folder in {trial.get("data", DEFAULTS["data"]) for trial in trials}:
        with contextlib.suppress(ValueError):  # verified once, before all workers do
            _data(str(Path(args.data) / folder), 256, 0, 1)
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    turn = context.Value("i", 0)
    lock = context.Lock()
    workers = [
        context.Process(target=work, args=(args, trials, turn, lock, deadline))
        for _ in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = len(args.out.read_text(encoding="utf-8").splitlines())
    print(f"{turn.value} trials taken; {args.out} has {done} lines", flush=True)


def read_trials(args: argparse.Namespace) -> list[Settings]:
    """The trials of the lists that have no result yet, so ordered that each list gets an equal
    share of the time.
    """
    done = {json.loads(line)["name"] for line in args.out.read_text("utf-8").splitlines()}
    lists: list[list[Settings]] = []
    for path in args.lists:
        lists.append([])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            trial = settled(args, json.loads(line), f"{path.stem}:{number}")
            if trial["name"] not in done:
                done.add(trial["name"])
                lists[-1].append(trial)
    ends = [
        (end, number, trial)
        for trials in lists
        for number, (trial, end) in enumerate(
            zip(trials, accumulate(map(cost, trials)), strict=True)
        )
    ]
    return [trial for _, _, trial in sorted(ends, key=lambda entry: entry[:2])]


def settled(args: argparse.Namespace, trial: Settings, name: str) -> Settings:
    """A `trial` of a list with the command's settings; SystemExit for an unknown setting."""
    unknown = trial.keys() - DEFAULTS.keys()
    if unknown:
        raise SystemExit(f"{name}: unknown settings {sorted(unknown)}")
    trial = {"data_root": args.data, "device": args.device, **trial}
    trial["name"] = trial.get("name") or name
    if args.steps_at_most:
        trial.update(steps=min(args.steps_at_most, trial.get("steps", 100)), val_windows=8)
        trial.pop("passes", None)
    return trial


def work(
    args: argparse.Namespace, trials: list[Settings], turn: Any, lock: Any, deadline: float
) -> None:
    """Take one trial after the other, until none is left or the time is up."""
    torch.set_num_threads(1)
    search = json.loads(args.search.read_text("utf-8")) if args.search else None
    total = len(trials) + (args.search_at_most if search else 0)
    rate = 0.0  # seconds per unit of work, in this process
    while True:
        with turn.get_lock():
            number = turn.value
            turn.value += 1
        if number >= total or time.time() > deadline:
            return
        if number < len(trials):
            trial = trials[number]
        else:
            with lock:
                lines = args.out.read_text("utf-8").splitlines()
            trial = propose(search, map(json.loads, lines), DEFAULTS, number - len(trials))
            trial = settled(args, trial, trial["name"])
        if time.time() + 0.8 * rate * cost(trial) > deadline:
            continue
        started = time.perf_counter()
        try:
            result = run_trial(trial, deadline)
            rate = (time.perf_counter() - started) / cost(trial)
        except TimeUp:
            continue
        except Exception as error:
            result = {"name": trial["name"], "error": repr(error)[:500], "settings": trial}
            if "out of memory" in str(error):
                torch.cuda.empty_cache()
        line = json.dumps(result, ensure_ascii=False) + "\n"
        with lock, args.out.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        shown = result.get("error") or f"{result['val_loss']:.4f} in {result['seconds']:.1f} s"
        print(f"{result['name']}: {shown}", flush=True)


def cost(trial: Settings) -> float:
    """A rough measure of the work of a trial."""
    s = {**DEFAULTS, **trial}
    steps = s["steps"] if not s["passes"] else s["passes"] * one_pass(s) / s["batch"]
    windows_per_step = [size for _, size in batches_of({**s, "steps": max(1, int(steps))})]
    work_per_step = sum(0.5 + size / 32 for size in windows_per_step)
    return float(work_per_step * (s["layers"] * s["width"] ** 0.5 + 5))


if __name__ == "__main__":
    main()
