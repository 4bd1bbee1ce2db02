"""Tokens, time and text to the final loss of the recipe of the course and of nanoGPT.

    python benchmarks/loss_per_token.py TEXT                         # 1.6 M tokens, three seeds
    python benchmarks/loss_per_token.py TEXT --part long --lr 2e-3   # 6.6 M tokens, one seed
    python benchmarks/loss_per_token.py TEXT --part passes           # 1 MB, read many times

TEXT is a file of documents (az_open.jsonl: fields `text` and `source`). The peer is GPT-2 with
AdamW (benchmarks/peer_recipe.py), its learning rate the best of 6e-4, 1e-3, 2e-3, 4e-3 on the first
seed (--lr skips that search). Ours is `python -m azllm_lightning.train model=tiny` with its
defaults: as much arithmetic per token, but 7.4 M parameters where the peer has 5.3 M, since its
head is a matrix of its own. Both read the same windows, are validated on the same windows, and use
the same number type: bf16 where the CPU has bf16 arithmetic, else fp32. Seconds are those of the
complete command, compiling included.

`passes` measures data efficiency: how many times the text the peer needs for the loss that
`experiment=small_text` reaches from 1 MB. The peer is trained on parts of the text of growing size,
with the best of three pairs of dropout and learning rate and of 4, 8, 16, 32 passes (more as long
as they help), until it reaches that loss; between two sizes its loss is read off a line over the
logarithm of the size. All sizes have the tokenizer of the complete text and the same validation
text. It takes many hours on a CPU; results are added to WORK/passes.jsonl, and the same command
again goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
from data_efficiency import text_for_loss, write_parts

from azllm_lightning.planning import rule

HERE = Path(__file__).parent
RATES = (6e-4, 1e-3, 2e-3, 4e-3)
SEEDS = (1234, 1, 2)
BATCH, BLOCK, VAL_WINDOWS = 16, 256, 256
STEPS = {"budget": 400, "long": 1600}
SHARES = {"budget": (0.07, 0.09, 0.13, 0.18), "long": (0.15, 0.20, 0.25, 0.40)}
"""Shares of the peer's tokens that our command gets, one run each, until its loss is reached."""
BARS = {"budget": (0.18, 0.30), "long": (0.20, None)}
"""Largest shares of the peer's tokens, and of its seconds, that are wanted."""
SIZES = (0.25, 0.5, 1, 2, 4, 8, 14)
"""MB of text of the peer."""
PASSES = 16
FEWEST_PASSES = 4
PEERS = ((0.1, 2e-3), (0.1, 1e-3), (0.2, 1e-3))
"""Dropout and learning rate of the peer, on little text."""
HELPS = 0.01
"""Twice the passes must lower the peer's val_loss by this much, or no more are tried."""
EFFICIENCY = 3.0
"""The bar of data efficiency."""
Result = dict[str, Any]


def main() -> None:
    """Run one part, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="file of documents")
    parser.add_argument("--part", choices=("budget", "long", "passes"), default="budget")
    parser.add_argument("--lr", type=float, help="the peer's learning rate, if known")
    parser.add_argument("--dropout", type=float, help="of the peer in `passes`, if known")
    parser.add_argument("--passes", type=int, default=32, help="at most, in `passes`")
    parser.add_argument("--ours", type=float, default=1.0, help="MB of text of ours in `passes`")
    parser.add_argument("--mb", type=float, nargs="+", default=SIZES, help="and of the peer")
    parser.add_argument("--seeds", type=int, help="how many of the three")
    parser.add_argument(
        "--work", type=Path, default=Path("loss_per_token"), help="folder for data and runs"
    )
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    machine.show(machine.describe(f"{machine.fast_type()}, the same for both"))
    (passes if args.part == "passes" else budget)(args)


def budget(args: argparse.Namespace) -> None:
    """Train with growing shares of the peer's tokens, until its final loss is reached."""
    steps = STEPS[args.part]
    data = prepared(args, args.work / "all")
    lr = args.lr or best_rate(data, steps)
    seeds = SEEDS[: args.seeds or (1 if args.part == "long" else 3)]
    reached = []
    for seed in seeds:
        peer = train_peer(data, lr, steps, seed)
        for share in SHARES[args.part]:
            ours = train_ours(args, data, round(share * steps), seed)
            print(comparison(seed, share, peer, ours), flush=True)
            if ours["val_loss"] <= peer["val_loss"]:
                reached.append((share, ours["seconds"] / peer["seconds"]))
                break
    if reached:
        tokens, seconds = (list(column) for column in zip(*reached, strict=True))
        bars = BARS[args.part]
        print(
            f"tokens: at most {max(tokens):.2f} of the peer's (bar {bars[0]}); "
            f"seconds: {statistics.median(seconds):.2f}, {min(seconds):.2f} to {max(seconds):.2f} "
            f"(bar {bars[1]}); reached with {len(reached)} of {len(seeds)} seeds"
        )


def passes(args: argparse.Namespace) -> None:
    """How many times the text the peer needs for the loss of ours."""
    sizes = write_parts(Path(args.text), args.work, sorted({*args.mb, args.ours}))
    if args.ours not in sizes:
        raise SystemExit(f"--ours {args.ours:g}: {args.text} has only {max(sizes):g} MB")
    val = args.work.absolute() / "val.jsonl"
    prepared(args, args.work / "all", f"data.val_path={val}")  # for its tokenizer
    count = min(PASSES, args.passes)
    losses = {}
    for seed in SEEDS[: args.seeds or 1]:
        losses[seed] = stored(args, who="ours", mb=args.ours, passes=count, seed=seed)["best"]
    curve: dict[float, float] = {}
    for mb in sizes:
        curve[mb] = best_peer(args, mb)
        if curve[mb] <= min(losses.values()):
            break
    for seed, loss in losses.items():
        mb = text_for_loss(curve, loss)
        needed = f"more than {max(curve):g} MB" if mb is None else f"{mb:.2f} MB"
        ratio = max(curve) / args.ours if mb is None else mb / args.ours
        print(
            f"seed {seed}: {loss:.4f} from {args.ours:g} MB; the peer needs {needed}: data "
            f"efficiency {'at least ' if mb is None else ''}{ratio:.2f} (bar {EFFICIENCY:g})"
        )


def best_peer(args: argparse.Namespace, mb: float) -> float:
    """The peer's lowest val_loss from `mb` MB."""
    pairs = PEERS
    if args.lr or args.dropout is not None:
        pairs = ((PEERS[0][0] if args.dropout is None else args.dropout, args.lr or PEERS[0][1]),)
    losses = []
    for dropout, lr in pairs:
        count = min(FEWEST_PASSES, args.passes)
        before = math.inf
        while count <= args.passes:
            settings = {"passes": count, "dropout": dropout, "lr": lr, "seed": SEEDS[0]}
            loss = stored(args, who="peer", mb=mb, **settings)["best"]
            losses.append(loss)
            if loss > before - HELPS:
                break
            before = loss
            count *= 2
    return min(losses)


def stored(args: argparse.Namespace, **settings: Any) -> Result:
    """The result of one run on little text, from the file of results if it is there."""
    path = args.work / "passes.jsonl"
    key = {**settings, "type": machine.fast_type()}
    if settings["who"] == "ours":
        key["branches"] = rule.BRANCHES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = (result for result in map(json.loads, lines) if key.items() <= result.items())
    result: Result = next(known, {})
    if not result:
        result = {**key, **little_text(args, **settings)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    print(", ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    return result


def little_text(
    args: argparse.Namespace,
    who: str,
    mb: float,
    passes: int,
    seed: int,
    dropout: float = 0.0,
    lr: float = 0.0,
) -> Result:
    """Train the peer or ours for so many passes over `mb` MB, validated after each."""
    folder = args.work.absolute()
    text = argparse.Namespace(**{**vars(args), "text": folder / f"train_{mb:g}.jsonl"})
    split = [f"data.val_path={folder / 'val.jsonl'}", f"data.tokenizer={folder / 'all'}"]
    data = prepared(text, args.work / f"mb_{mb:g}", *split)
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    every = max(1, manifest["splits"]["train"]["tokens"] // (BATCH * BLOCK))
    steps = passes * every
    if who == "peer":
        return train_peer(data, lr, steps, seed, every, dropout)
    # Its branches come on top.
    steps = rule.steps_with_branches(steps, rule.BRANCHES)
    return train_ours(text, data, steps, seed, every, *split, "experiment=small_text")


def prepared(args: argparse.Namespace, folder: Path, *changes: str) -> Path:
    """The text as shards with a tokenizer of 8,192, the same for both."""
    values = ["data=text", *text_settings(args, folder.absolute()), *changes]
    run([sys.executable, "-m", "azllm_lightning.prepare", *values])
    return folder.absolute()


def text_settings(args: argparse.Namespace, folder: Path) -> list[str]:
    """The overrides that name the text and the folder of its shards."""
    return [f"data.path={args.text}", "data.source_field=source", f"data.dir={folder}"]


def best_rate(data: Path, steps: int) -> float:
    """The learning rate with the lowest final loss of the peer."""
    ends = {lr: train_peer(data, lr, steps, SEEDS[0])["val_loss"] for lr in RATES}
    shown = ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in ends.items())
    print(f"peer by learning rate: {shown}", flush=True)
    return min(ends, key=lambda lr: ends[lr])


def train_peer(
    data: Path, lr: float, steps: int, seed: int, every: int | None = None, dropout: float = 0.0
) -> Result:
    """The peer's last and best val_loss, and the seconds of its command."""
    values = {
        "--lr": lr,
        "--steps": steps,
        "--seed": seed,
        "--val-every": every or steps,
        "--dropout": dropout,
        "--batch": BATCH,
        "--block": BLOCK,
        "--val-windows": VAL_WINDOWS,
        "--stop-above": 0.3,
    }
    command = [sys.executable, str(HERE / "peer_recipe.py"), str(data)]
    started = time.perf_counter()
    out = run([*command, *(str(part) for pair in values.items() for part in pair)])
    seconds = time.perf_counter() - started
    losses = [*json.loads(out)["val_loss"].values()]
    return {"val_loss": losses[-1], "best": min(losses), "seconds": seconds}


def train_ours(
    args: argparse.Namespace,
    data: Path,
    steps: int,
    seed: int,
    every: int | None = None,
    *changes: str,
) -> Result:
    """The same of our command."""
    logs = args.work.absolute() / "runs"
    logs.mkdir(exist_ok=True)
    values = [
        "data=text",
        *text_settings(args, data),
        f"data.block_size={BLOCK}",
        f"data.val_windows={VAL_WINDOWS}",
        "model=tiny",
        f"schedule.warmup_steps={max(10, steps // 20)}",
        f"trainer.global_batch_size={BATCH}",
        f"trainer.max_steps={steps}",
        f"trainer.val_every_steps={every or steps}",
        f"trainer.checkpoint_every_steps={steps}",
        f"seed={seed}",
        f"logs_dir={logs}",
        "run_name=ours",
    ]
    started = time.perf_counter()
    run([sys.executable, "-m", "azllm_lightning.train", *values, *changes])
    seconds = time.perf_counter() - started
    versions = (logs / "ours").glob("version_*")
    newest = max(versions, key=lambda folder: int(folder.name.partition("_")[2]))
    summary = json.loads((newest / "summary.json").read_text(encoding="utf-8"))
    return {"val_loss": summary["val_loss"], "best": summary["best_val_loss"], "seconds": seconds}


def comparison(seed: int, share: float, peer: Result, ours: Result) -> str:
    """One comparison in a line."""
    return (
        f"seed {seed}: peer {peer['val_loss']:.4f} in {peer['seconds']:.0f} s; ours with "
        f"{share:.2f} of the tokens {ours['val_loss']:.4f} in {ours['seconds']:.0f} s "
        f"({ours['seconds'] / peer['seconds']:.2f})"
    )


def run(command: list[str]) -> str:
    """What `command` prints; if it fails, exit with its message."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        output = done.stdout[-2000:] + done.stderr[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{output}")
    return done.stdout


if __name__ == "__main__":
    main()
