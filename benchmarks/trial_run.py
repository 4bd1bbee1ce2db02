"""One training of a trial: `run_trial(settings)`."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from gpt2 import GPT2, GPT2Config, configure_adamw
from torch import Tensor, nn
from trial_averages import Averages, LookAhead, TrialBranches
from trial_graph import RecordedUpdate, Update, can_record
from trial_model import build_model, loss_of, read_weights, taught_loss, write_weights
from trial_optimizer import Number, TrialOptimizer, groups_of
from trial_settings import DEFAULTS, Settings

from azllm_lightning import compose
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.model.loss import token_nll
from azllm_lightning.training.affixes import Affixes
from azllm_lightning.training.causal_lm import derived_seed, seed_device
from azllm_lightning.training.induction import induction_heads
from azllm_lightning.training.neighbors import SCALE, TIED_SCALE, counted, neighbor_embeddings
from azllm_lightning.training.schedule import lr_factor

Result = dict[str, Any]


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
    if s["device"] != "cuda":
        return trained(s, settings, deadline)
    with torch.cuda.stream(own_stream()):
        return trained(s, settings, deadline)


@cache
def own_stream() -> torch.cuda.Stream:
    """The stream of all trials of this process, since the default one cannot be recorded; each has
    memory of its own, which others cannot use.
    """
    return torch.cuda.Stream()


def trained(s: Settings, settings: Settings, deadline: float) -> Result:
    """As `run_trial`, with all settings `s`."""
    started = time.perf_counter()
    device = torch.device(s["device"])
    precision = "highest" if s["precision"] == "fp32" else "high"
    torch.set_float32_matmul_precision(precision)
    train, val, vocab_size = windows(s)
    val = val.to(device)
    count = len(train)
    train = train.to(device)
    trainee = (Peer if s["kind"] == "peer" else Ours)(s, vocab_size, train, device)
    plan = batches_of(s)
    losses: list[Tensor] = []
    by_step: dict[str, dict[str, float]] = {}
    every = s["val_every"] or len(plan)
    for step, (first, size) in enumerate(plan):
        length = last_of(s["length_plan"], first / count, s["block"])
        batch = train[first : first + size]
        x = batch[:, :-1].reshape(-1, length)
        y = batch[:, 1:].reshape(-1, length)
        if s["replace"]:
            x = replaced(x, s, step, first / count, vocab_size)
        losses.append(trainee.step(step, first / s["batch"], size, x, y))
        if step % 10 == 0 and time.time() > deadline:
            raise TimeUp
        if (step + 1) % every == 0 or step + 1 == len(plan):
            with trainee.shown():
                by_step[str(step + 1)] = {"": validate(trainee, val)}
            by_step[str(step + 1)] |= trainee.averaged(val)
    curve = torch.stack(losses).tolist()
    last = [*by_step.values()][-1]
    tenth = max(1, len(curve) // 10)
    names = [name for name in last if name]
    result: Result = {
        "name": s["name"],
        "val_loss": last[""],
        "best": min(values[""] for values in by_step.values()),
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
    if s["keep_weights"]:
        with trainee.shown():
            write_weights(s, trainee.net)
    if s["keep_losses"]:
        result["losses"] = curve
    return result


class Ours:
    """A model of ours with the optimizer of a trial."""

    def __init__(self, s: Settings, vocab_size: int, train: Tensor, device: torch.device) -> None:
        self.s = s
        self.net, self.extra = build_model(s, vocab_size, train.cpu())
        if s["embeddings"] == "neighbors":
            start_from_neighbors(self.net, train.cpu(), s)
        if s["attention"] == "induction":
            generator = torch.Generator().manual_seed(derived_seed(s["seed"], "attention"))
            induction_heads(self.net, generator)
        self.net.to(device)
        modules = nn.ModuleList([self.net, *([self.extra.to(device)] if self.extra else [])])
        self.parameters = list(modules.parameters())
        dtype = torch.bfloat16 if s["precision"] == "bf16" else torch.float32
        affixes = affixes_in(str(Path(s["data_root"]) / s["data"])) if s["affix_rate"] else None
        self.optimizer = TrialOptimizer(groups_of(modules, s), dtype, affixes)
        self.schedule = ScheduleConfig(
            name="linear" if s["schedule"] == "power" else s["schedule"],
            warmup_steps=max(10, s["steps"] // 20) if s["warmup"] is None else s["warmup"],
            total_steps=s["steps"],
            decay_ratio=s["decay_ratio"],
            min_lr_ratio=s["min_lr_ratio"],
            branches=s["branches"],
        )
        self.averages = Averages(s, self.net)
        self.branches = TrialBranches(s, self.parameters, self.optimizer)
        self.teachers = [read_weights(s, name) for name in s["teachers"]]
        self.look_ahead = LookAhead(s, self.parameters) if s["look_ahead"] else None
        self.recorded = recorded(s, self.update_by_tensor)
        if self.recorded:
            self.optimizer.steps = torch.zeros((), device=device)

    def step(self, step: int, place: float, size: int, x: Tensor, y: Tensor) -> Tensor:
        """One update; `place` is the step of `batch` windows that this would be."""
        s = self.s
        self.branches.before(step)
        progress = place / s["steps"]
        factor = self.factor(place) * (size / s["batch"]) ** s["lr_by_batch"]
        if self.look_ahead:
            self.look_ahead.before(progress, factor)
        if s["dropout"]:
            seed_device(x.device, derived_seed(s["seed"], step, 0, 0))
        if self.recorded:
            plain = self.recorded(x, y, factor)
        else:
            plain = self.update(x, y, factor, progress)
        if self.look_ahead:
            self.look_ahead.after()
        self.averages.update((place + size / s["batch"]) / s["steps"], size)
        return plain

    def update_by_tensor(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
        """`update` of a trial in which all steps do the same."""
        return self.update(x, y, factor, 0.0)

    def update(self, x: Tensor, y: Tensor, factor: Number, progress: float) -> Tensor:
        """Train on tokens x and the next y (B, T); returns the loss."""
        s = self.s
        with autocast(s):
            if self.teachers:
                loss, plain = taught_loss(self.net, self.teachers, x, y, s)
            else:
                loss, plain = loss_of(self.net, self.extra, x, y, s, progress)
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, s["clip"], norm)
        decay = {"lr": factor, "square": factor * factor, "constant": 1.0}[s["decay_schedule"]]
        self.optimizer.step(factor, decay, self.momentum(progress))
        for p in self.parameters:
            p.grad = None
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

    def shown(self) -> contextlib.AbstractContextManager[None]:
        """The model has the weights that are validated and kept."""
        return self.branches.shown()

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
        sizes = (s["block"], s["layers"], s["heads"] or 4, s["width"], s["dropout"])
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
        self.recorded = recorded(s, self.update)
        for group in self.optimizer.param_groups:
            group["capturable"] = self.recorded is not None

    def step(self, step: int, place: float, size: int, x: Tensor, y: Tensor) -> Tensor:
        """One update."""
        return (self.recorded or self.update)(x, y, lr_factor(step, self.schedule))

    def update(self, x: Tensor, y: Tensor, factor: Number) -> Tensor:
        """As that of `Ours`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.s["lr"] * factor
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

    def shown(self) -> contextlib.AbstractContextManager[None]:
        """The model has them always."""
        return contextlib.nullcontext()

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


def recorded(s: Settings, update: Update) -> RecordedUpdate | None:
    """`update` as a CUDA graph if `s` ask for one and it can be."""
    if not (s["graphs"] and can_record(s)):
        return None
    stream = torch.cuda.current_stream() if s["device"] == "cuda" else None
    return RecordedUpdate(update, stream)


def autocast(s: Settings) -> torch.autocast:
    """The number type of the products."""
    return torch.autocast(s["device"], torch.bfloat16, enabled=s["precision"] == "bf16")


# Data


def windows(s: Settings) -> tuple[Tensor, Tensor, int]:
    """The training windows of all steps in their order (N, T + 1), those of validation, and the
    size of the vocabulary.
    """
    key = (str(Path(s["data_root"]) / s["data"]), s["block"], s["seed"], s["val_windows"])
    return _windows(*key, s["steps"] * s["batch"], s["document_start"])


def replaced(x: Tensor, s: Settings, step: int, progress: float, vocab_size: int) -> Tensor:
    """The tokens of a step at `progress`, in [0, 1), a share of them random."""
    share = s["replace"]
    if s["replace_end"] is not None:
        share += (s["replace_end"] - share) * progress
    generator = torch.Generator().manual_seed(derived_seed(s["seed"], step, 0, 1))
    others = torch.randint(vocab_size, x.shape, generator=generator).to(x.device)
    chosen = torch.rand(x.shape, generator=generator).to(x.device) < share
    return torch.where(chosen, others, x)


def start_from_neighbors(net: GPT, train: Tensor, s: Settings) -> None:
    """Initialize the embeddings as the package does, or from the windows of the trial alone."""
    if s["counted"] == "text":
        folder = str(Path(s["data_root"]) / s["data"])
        train = counted(opened(folder, s["block"], s["seed"], s["val_windows"]).train_windows)
    scale = s["neighbor_scale"] or (TIED_SCALE if s["tied"] else SCALE)
    generator = torch.Generator().manual_seed(derived_seed(s["seed"], "embeddings"))
    table = net.model.embed_tokens.weight
    with torch.no_grad():
        table.copy_(neighbor_embeddings(train, *table.shape, scale, generator))


@cache
def opened(folder: str, block: int, seed: int, val_windows: int | None) -> TokenDataModule:
    """The data of a folder."""
    config = compose(["data=text"]).data
    config = replace(config, dir=folder, block_size=block, val_windows=val_windows)
    data = TokenDataModule(config, 1, seed)
    data.setup()
    return data


@cache
def affixes_in(folder: str) -> Affixes:
    """Those of the tokens of the data of a folder."""
    return Affixes.of(Tokenizer.from_file(folder))


@lru_cache(maxsize=64)
def _windows(
    folder: str, block: int, seed: int, val_windows: int | None, count: int, document_start: bool
) -> tuple[Tensor, Tensor, int]:
    data = opened(folder, block, seed, val_windows)
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
