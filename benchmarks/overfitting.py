"""How soon the overfitting rule warns, and whether it warns of healthy runs: many tiny runs,
replayed.

    python benchmarks/overfitting.py train --text TEXT  # 56 seeds, 3 kinds, 2 CPUs: half an hour
    python benchmarks/overfitting.py judge              # the table, from the recorded runs: seconds

`train` appends each run's validations (step, mean train_loss since the one before, val_loss) to a
file of JSON lines, and skips the runs that are in it. The settings of a run are drawn from its kind
and seed: 10,000 to 100,000 parameters, AdamW or Muon, learning rates up to far too high, dropout,
weight decay, four schedules, batches of 1 to 8 windows, 4 to 64 validation windows of 32 tokens, 12
to 50 validations. The kinds are a short text read 15 to 60 times (`short`), more text than is read
(`plenty`), and one read 3 to 20 times (`between`). Odd seeds read TEXT (JSON lines with a field
`text`), even ones the built-in tales; without --text all read tales. The CPU kinds are emulated:
they sum in another order. Everything is in fp32.

`judge` replays each run, one validation after the other. What a run was is decided by its outcome,
which is known only at its end, and not by the rule: see `outcome`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.callbacks.history import Validation
from azllm_lightning.callbacks.rules import overfitting
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.sampler import window_order
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.schedule import lr_factor

CPU_KINDS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "compatible": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
}
"""Environment of a process that emulates each; read when torch is imported."""

KINDS = ("short", "plenty", "between")
VOCAB, BLOCK = 300, 32
PLENTY_BYTES, VAL_BYTES = 1_500_000, 60_000

MARGIN = 0.02
"""Rise of val_loss to the end of a run, as a share of its lowest level, that nobody would call
noise."""

ERRORS = 3.0
"""Standard errors that such a rise must have too."""

TUNED_ON = 42
"""The rule was chosen on the seeds below; those from here on were only judged."""


@dataclass(frozen=True)
class Settings:
    """One run; rates are peaks, sizes of text in UTF-8 bytes."""

    kind: str
    seed: int
    natural: bool
    text_bytes: int
    n_layer: int
    n_embd: int
    dropout: float
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    batch: int
    val_windows: int
    val_every_steps: int
    max_steps: int


def draw(kind: str, seed: int, natural: bool) -> Settings:
    """The settings of a run, a pure function of the arguments."""
    dice = random.Random(f"{kind}/{seed}")
    low, high = {
        "short": (1_500, 10_000),
        "plenty": (PLENTY_BYTES, PLENTY_BYTES),
        "between": (15_000, 60_000),
    }[kind]
    text_bytes = round(math.exp(dice.uniform(math.log(low), math.log(high))))
    optimizer = dice.choice(("adamw", "muon"))
    batch = dice.choice((1, 2, 4, 8) if kind == "plenty" else (4, 8))
    validations = dice.randint(12, 24 if kind == "short" else 50)
    val_every = dice.choice((3, 5, 10))
    if kind != "plenty":
        windows = text_bytes / 2 / BLOCK  # about two bytes per token
        passes = dice.uniform(15, 60) if kind == "short" else dice.uniform(3, 20)
        val_every = max(3, round(min(400, passes * windows / batch) / validations))
    return Settings(
        kind=kind,
        seed=seed,
        natural=natural,
        text_bytes=text_bytes,
        n_layer=dice.choice((1, 2)),
        n_embd=dice.choice((32, 64) if kind == "short" else (16, 32, 64)),
        dropout=dice.choice((0.0, 0.0, 0.1, 0.3)),
        optimizer=optimizer,
        lr=dice.choice((1e-3, 3e-3, 1e-2, 3e-2) if optimizer == "adamw" else (5e-3, 1e-2, 3e-2)),
        weight_decay=dice.choice((0.1, 0.1, 3.0)),
        schedule=dice.choice(("constant", "cosine", "linear", "sqrt")),
        batch=batch,
        val_windows=dice.choice((4, 8, 16, 64)),
        val_every_steps=val_every,
        max_steps=validations * val_every,
    )


# --- train --------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train what is missing, in one process per CPU kind."""
    command = [sys.executable, __file__, "worker"]
    command += ["--runs", str(args.runs), "--seeds", str(args.seeds)]
    command += [] if args.text is None else ["--text", str(args.text)]
    workers = [
        subprocess.Popen(
            [*command, "--cpu", cpu], env={**os.environ, "OMP_NUM_THREADS": "1", **kind}
        )
        for cpu, kind in CPU_KINDS.items()
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SystemExit("a worker failed: see above")


def work(args: argparse.Namespace) -> None:
    """The runs of one CPU kind, appended to the file as they end."""
    if hasattr(os, "nice"):
        os.nice(10)
    done = {
        (run["settings"]["kind"], run["settings"]["seed"])
        for run in stored(args.runs)
        if run["cpu"] == args.cpu
    }
    texts = Texts(args.text)
    for seed in range(args.seeds):
        for kind in KINDS:
            if (kind, seed) not in done:
                settings = draw(kind, seed, natural=args.text is not None and seed % 2 == 1)
                started = time.perf_counter()
                history = train_one(settings, texts)
                run = {"cpu": args.cpu, "settings": asdict(settings), "history": history}
                with args.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                seconds = time.perf_counter() - started
                print(f"{args.cpu} {kind} {seed}: {seconds:.1f} s", flush=True)


class Texts:
    """Tokens to train on and to validate on, of tales and of the natural text."""

    def __init__(self, natural: Path | None) -> None:
        documents = {False: list(write_tales(PLENTY_BYTES + VAL_BYTES, 0))}
        if natural is not None:
            with natural.open(encoding="utf-8") as file:
                documents[True] = [json.loads(line)["text"] for line in file]
            random.Random(0).shuffle(documents[True])
        self.train: dict[bool, list[tuple[int, list[int]]]] = {}
        self.val: dict[bool, list[int]] = {}
        for key, texts in documents.items():
            tokenizer = Tokenizer.train(first_bytes(texts, 200_000), VOCAB)
            held_out = list(first_bytes(texts, VAL_BYTES))
            self.val[key] = [
                token for text in held_out for token in (tokenizer.eot_id, *tokenizer.encode(text))
            ]
            read = first_bytes(texts[len(held_out) :], PLENTY_BYTES)
            self.train[key] = [
                (len(text.encode()), [tokenizer.eot_id, *tokenizer.encode(text)]) for text in read
            ]

    def train_tokens(self, natural: bool, seed: int, num_bytes: int) -> list[int]:
        """Documents chosen by the seed, the last one cut at about `num_bytes` bytes in all."""
        documents = self.train[natural][:]
        random.Random(seed).shuffle(documents)
        tokens: list[int] = []
        size = 0
        for length, ids in documents:
            if size >= num_bytes:
                break
            tokens += ids[: max(2, round(len(ids) * (num_bytes - size) / length))]
            size += length
        return tokens


def first_bytes(texts: Iterable[str], num_bytes: int) -> Iterator[str]:
    """The first texts, until they have so many UTF-8 bytes."""
    size = 0
    for text in texts:
        if size >= num_bytes:
            return
        size += len(text.encode())
        yield text


def train_one(settings: Settings, texts: Texts) -> list[tuple[int, float | None, float]]:
    """The validations of a run, including step 0, as the package's loop would record them."""
    torch.manual_seed(settings.seed)
    model = GPTConfig(
        vocab_size=VOCAB,
        block_size=BLOCK,
        n_layer=settings.n_layer,
        n_head=2,
        n_embd=settings.n_embd,
        intermediate_size=settings.n_embd,
        dropout=settings.dropout,
    )
    net = GPT(model)
    optimizer = build_optimizer(net, optimizer_config(settings))
    warmup = min(20, settings.max_steps // 10)
    decay_ratio = 0.4 if settings.schedule == "sqrt" else 1.0
    schedule = ScheduleConfig(
        name=settings.schedule,
        warmup_steps=warmup,
        total_steps=settings.max_steps,
        decay_ratio=decay_ratio,
        min_lr_ratio=0.0,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, schedule))
    windows = cut(texts.train_tokens(settings.natural, settings.seed, settings.text_bytes))
    val_windows = cut(texts.val[settings.natural])[: settings.val_windows]

    def val_loss() -> float:
        net.eval()
        with torch.no_grad():
            loss = float(net(val_windows[:, :-1], val_windows[:, 1:]))
        net.train()
        return loss

    history: list[tuple[int, float | None, float]] = [(0, None, val_loss())]
    losses: list[float] = []
    for step in range(settings.max_steps):
        positions = range(step * settings.batch, (step + 1) * settings.batch)
        batch = windows[window_order(positions, len(windows), settings.seed)]
        loss = net(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(float(loss.detach()))
        if (step + 1) % settings.val_every_steps == 0:
            history.append((step + 1, statistics.fmean(losses), val_loss()))
            losses = []
    return history


def optimizer_config(settings: Settings) -> OptimizerConfig:
    """AdamW, or Muon with the package's ratio of rates; decay of token tables only where there is
    much of it."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "adamw":
        return AdamWConfig(name="adamw", lr=lr, weight_decay=decay, betas=(0.9, 0.95), eps=1e-8)
    return MuonConfig(
        name="muon",
        lr=lr,
        weight_decay=decay,
        betas=(0.65, 0.95),
        eps=1e-8,
        momentum=0.9,
        adam_lr=3 * lr,
        adam_weight_decay=decay if decay > 1 else 0.0,
    )


def cut(tokens: list[int]) -> Tensor:
    """Windows of BLOCK + 1 tokens (W, T + 1), the last label of one being the first token of the
    next."""
    count = (len(tokens) - 1) // BLOCK
    flat = torch.tensor(tokens)
    return torch.stack([flat[i * BLOCK : (i + 1) * BLOCK + 1] for i in range(count)])


def stored(path: Path) -> list[dict[str, Any]]:
    """The runs in the file, none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- judge --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A run's outcome, and where the rule warned of it; `best` and `warned` count validations, 0
    being the first."""

    outcome: str
    best: int
    warned: list[int]

    @property
    def delay(self) -> int | None:
        """Validations from the best to the warning; None: none came after it."""
        return next((place - self.best for place in self.warned if place > self.best), None)


def outcome(kind: str, history: Sequence[tuple[int, float | None, float]]) -> str:
    """What a run was, seen from its end: overfit, healthy (plenty of text), flat, or unclear.

    Healthy is any run on more text than it read, whatever its curve. For the others, the mean of
    the last three validations is compared with the lowest such mean. Overfit: higher by more than
    MARGIN and by ERRORS standard errors, while train_loss fell. Flat: higher by less than a quarter
    of MARGIN, or by less than one standard error. Unclear: in between.
    """
    if kind == "plenty":
        return "healthy"
    val_losses = [val for _, _, val in history[1:]]
    train_losses = [train or math.nan for _, train, _ in history[1:]]
    means = [statistics.fmean(val_losses[i : i + 3]) for i in range(len(val_losses) - 2)]
    lowest = min(range(len(means)), key=means.__getitem__)
    late = val_losses[len(val_losses) // 3 :]
    bends = [a - 2 * b + c for a, b, c in zip(late, late[1:], late[2:], strict=False)]
    error = math.sqrt(statistics.fmean(bend**2 for bend in bends) / 6 * 2 / 3)
    rise = means[-1] - means[lowest]
    train_fell = statistics.fmean(train_losses[-3:]) < statistics.fmean(
        train_losses[lowest : lowest + 3]
    )
    if train_fell and rise > max(MARGIN * means[lowest], ERRORS * error):
        return "overfit"
    return "flat" if rise < max(MARGIN / 4 * means[lowest], error) else "unclear"


def verdict(run: dict[str, Any], share: float) -> Verdict:
    """Replay a run: one episode lasts until val_loss is at a new best."""
    history = run["history"]
    rows = [Validation(step, train, val, math.exp(val), val / 3) for step, train, val in history]
    best = 1
    warned: list[int] = []
    open_episode = False
    for i in range(1, len(rows)):
        if rows[i].val_loss < rows[best].val_loss:
            best, open_episode = i, False
        if not open_episode and overfitting(rows[: i + 1], share) >= 1:
            open_episode = True
            warned.append(i)
    return Verdict(outcome(run["settings"]["kind"], history), best, warned)


def judge(args: argparse.Namespace) -> None:
    """Print the table: how soon and how often the rule warned, per outcome, half of the seeds, and
    CPU kind."""
    runs = stored(args.runs)
    if not runs:
        raise SystemExit(f"no runs in {args.runs}: train some first")
    for run in runs:
        run["history"] = [(step, train, val + args.offset) for step, train, val in run["history"]]
    machine.show(machine.describe("fp32"))
    print(f"{len(runs)} runs; {differing(runs)}")
    verdicts = [(run["cpu"], run["settings"]["seed"], verdict(run, args.share)) for run in runs]
    groups = {"all": verdicts}
    for cpu in CPU_KINDS:
        groups[cpu] = [row for row in verdicts if row[0] == cpu]
    groups[f"seeds below {TUNED_ON}"] = [row for row in verdicts if row[1] < TUNED_ON]
    groups[f"seeds from {TUNED_ON}"] = [row for row in verdicts if row[1] >= TUNED_ON]
    head = "runs | outcome | number | warned | twice | before the best | after: quartiles | most"
    print(f"\n| {head} |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in groups.items():
        for kind in ("overfit", "healthy", "flat", "unclear"):
            print(line(name, kind, [row for _, _, row in rows if row.outcome == kind]))


def line(name: str, kind: str, verdicts: Sequence[Verdict]) -> str:
    """A row of the table; the delays are those of overfitting, a missing warning counting as later
    than any other."""
    warned = [row for row in verdicts if row.warned]
    twice = sum(len(row.warned) > 1 for row in warned)
    before = sum(row.warned[0] < row.best for row in warned)
    cells = [name, kind, str(len(verdicts)), str(len(warned)), str(twice), str(before), "", ""]
    if kind == "overfit" and len(verdicts) > 1:
        delays = [math.inf if row.delay is None else row.delay for row in verdicts]
        quartiles = statistics.quantiles(delays, n=4, method="inclusive")
        cells[6] = ", ".join(f"{delay:g}" for delay in quartiles)
        cells[7] = f"{max(row.delay or 0 for row in verdicts)}"
    return f"| {' | '.join(cells)} |"


def differing(runs: Sequence[dict[str, Any]]) -> str:
    """How far the CPU kinds went apart, in words."""
    ends: dict[tuple[str, int], dict[str, float]] = {}
    for run in runs:
        key = (run["settings"]["kind"], run["settings"]["seed"])
        ends.setdefault(key, {})[run["cpu"]] = run["history"][-1][2]
    gaps = [max(pair.values()) - min(pair.values()) for pair in ends.values() if len(pair) > 1]
    if not gaps:
        return "one CPU kind only"
    return (
        "the last val_loss differs between the CPU kinds in "
        f"{sum(gap > 0 for gap in gaps)} of {len(gaps)} pairs, "
        f"by more than 0.01 in {sum(gap > 0.01 for gap in gaps)}, at most by {max(gaps):.3f}"
    )


def main() -> None:
    """Train or judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", choices=("train", "judge", "worker"), help="worker: what train starts"
    )
    parser.add_argument("--runs", type=Path, default=Path("overfitting.jsonl"), help="file of runs")
    parser.add_argument("--text", type=Path, help="natural text, JSON lines with a field `text`")
    parser.add_argument("--seeds", type=int, default=56, help="runs of each kind")
    parser.add_argument("--share", type=float, default=0.01, help="callbacks.health.overfit_rise")
    parser.add_argument(
        "--offset",
        type=float,
        default=0.0,
        help="nats added to val_loss: harder text for validation",
    )
    parser.add_argument("--cpu", choices=tuple(CPU_KINDS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    {"train": train, "worker": work, "judge": judge}[args.stage](args)


if __name__ == "__main__":
    main()
