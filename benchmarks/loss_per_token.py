"""Tokens and time to the final loss of the recipe of the course and of nanoGPT, on the same text.

    python benchmarks/loss_per_token.py TEXT                         # 1.6 M tokens, three seeds
    python benchmarks/loss_per_token.py TEXT --part long --lr 2e-3   # 6.6 M tokens, one seed
    python benchmarks/loss_per_token.py TEXT --part passes           # sixteen passes over 1 MB

TEXT is a file of documents (az_open.jsonl: fields `text` and `source`). The peer is GPT-2 with
AdamW (benchmarks/peer_recipe.py), its learning rate the best of 6e-4, 1e-3, 2e-3, 4e-3 on the first
seed (--lr skips that search). Ours is `python -m azllm_lightning.train model=tiny` with its
defaults: as much arithmetic per token, but 7.4 M parameters where the peer has 5.3 M, since its
head is a matrix of its own. In `passes`, ours is `experiment=small_text`, and the peer has the best
of two learning rates and two dropouts, and stops where val_loss is 0.3 above its lowest. Both read
the same windows, are validated on the same windows, and use the same number type: bf16 where the
CPU has bf16 arithmetic, else fp32. Seconds are those of the complete command, compiling included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
RATES = (6e-4, 1e-3, 2e-3, 4e-3)
SEEDS = (1234, 1, 2)
BATCH, BLOCK, VAL_WINDOWS = 16, 256, 256
STEPS = {"budget": 400, "long": 1600}
SHARES = {"budget": (0.18, 0.25), "long": (0.20, 0.25, 0.40)}
"""Shares of the peer's tokens that our command gets, one run each."""
BARS = {"budget": (0.18, 0.30), "long": (0.20, None)}
"""Largest shares of the peer's tokens, and of its seconds, that are wanted."""
ONE_MB, PASSES = 1_000_000, 16
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
    """The best val_loss of both within sixteen passes over 1 MB of text."""
    data = prepared(args, args.work / "one_mb", f"data.max_bytes={ONE_MB}")
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    tokens = manifest["splits"]["train"]["tokens"]
    steps = PASSES * tokens // (BATCH * BLOCK)
    every = max(1, steps // PASSES)
    peers = {
        (lr, dropout): train_peer(data, lr, steps, SEEDS[0], every, dropout)
        for lr in ((args.lr,) if args.lr else RATES[1:3])
        for dropout in ((args.dropout,) if args.dropout is not None else (0.0, 0.2))
    }
    for (lr, dropout), result in peers.items():
        best = result["best"]
        print(f"peer  lr {lr:g}, dropout {dropout:g}: best val_loss {best:.4f}", flush=True)
    peer = min(peers.values(), key=lambda peer: peer["best"])
    ours = train_ours(args, data, steps, SEEDS[0], every, "experiment=small_text")
    print(f"ours  best val_loss {ours['best']:.4f}, last {ours['val_loss']:.4f}")
    print(f"lower by {peer['best'] - ours['best']:.3f} nats (bar 0.10)")


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
