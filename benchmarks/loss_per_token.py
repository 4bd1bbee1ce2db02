"""Tokens and time to the loss that the course's and nanoGPT's recipe ends at: ours beside it, on the same text.

    python benchmarks/loss_per_token.py TEXT --part budget              # 5 M parameters, 1.6 M tokens, three seeds
    python benchmarks/loss_per_token.py TEXT --part long --lr 2e-3      # four times the budget, one seed
    python benchmarks/loss_per_token.py TEXT --part passes              # sixteen passes over 1 MB

TEXT is a file of documents (az_open.jsonl: fields `text` and `source`). The peer is GPT-2 of equal parameter count with
AdamW (benchmarks/peer_recipe.py), its learning rate the best of 6e-4, 1e-3, 2e-3, 4e-3 on the first seed (--lr skips
that search). Ours is `python -m azllm_lightning.train model=tiny` with its defaults, for the passes
`+experiment=small_text`; there the peer has the best of two rates and two dropouts, and ends where val_loss is 0.3
above its lowest. Both read the same windows, bf16 where the CPU has it, and are validated on the same windows. Seconds
are those of the whole command, compiling included.
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

from machine import describe

HERE = Path(__file__).parent
RATES = (6e-4, 1e-3, 2e-3, 4e-3)
SEEDS = (1234, 1, 2)
BATCH, BLOCK, VAL_WINDOWS = 16, 256, 256
STEPS = {"budget": 400, "long": 1600}
SHARES = {"budget": (0.25, 0.30), "long": (0.25, 0.40, 0.50)}
"""Shares of the peer's tokens that ours is given, a run of its own for each."""
BARS = {"budget": (0.30, 0.40), "long": (0.50, None)}
"""Most of the peer's tokens, and of its seconds, that are asked for."""
ONE_MB, PASSES = 1_000_000, 16


def main() -> None:
    """Run one part, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="file of documents")
    parser.add_argument("--part", choices=("budget", "long", "passes"), default="budget")
    parser.add_argument("--lr", type=float, help="the peer's learning rate, found before")
    parser.add_argument("--dropout", type=float, help="of the peer in `passes`, found before")
    parser.add_argument("--seeds", type=int, help="how many of the three")
    parser.add_argument(
        "--work", type=Path, default=Path("loss_per_token"), help="folder for data and runs"
    )
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    print("\n".join(f"{key:<8}{value}" for key, value in describe().items()))
    (passes if args.part == "passes" else budget)(args)


def budget(args: argparse.Namespace) -> None:
    """Ours with shares of the peer's tokens, until it reaches the peer's last loss."""
    steps, data = STEPS[args.part], prepared(args, args.work / "all")
    lr = args.lr or best_rate(data, steps)
    rows = []
    for seed in SEEDS[: args.seeds or (1 if args.part == "long" else 3)]:
        peer = train_peer(data, lr, steps, seed)
        for share in SHARES[args.part]:
            ours = train_ours(args, data, round(share * steps), seed)
            rows.append((seed, share, peer, ours))
            print(told(rows[-1]), flush=True)
            if ours["val_loss"] <= peer["val_loss"]:
                break
    reached = [row for row in rows if row[3]["val_loss"] <= row[2]["val_loss"]]
    if reached:
        time_ratio = [ours["seconds"] / peer["seconds"] for _, _, peer, ours in reached]
        print(
            f"tokens: {max(share for _, share, _, _ in reached):.2f} of the peer's at most (bar {BARS[args.part][0]}); "
            f"seconds: {statistics.median(time_ratio):.2f}, {min(time_ratio):.2f} to {max(time_ratio):.2f} "
            f"(bar {BARS[args.part][1]}); reached with {len(reached)} of {len({row[0] for row in rows})} seeds"
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
    for (lr, dropout), peer in peers.items():
        print(f"peer  lr {lr:g}, dropout {dropout:g}: best val_loss {peer['best']:.4f}", flush=True)
    peer = min(peers.values(), key=lambda peer: peer["best"])
    ours = train_ours(args, data, steps, SEEDS[0], every, "+experiment=small_text")
    print(f"ours  best val_loss {ours['best']:.4f}, last {ours['val_loss']:.4f}")
    print(f"lower by {peer['best'] - ours['best']:.3f} nats (bar 0.10)")


def prepared(args: argparse.Namespace, folder: Path, *changes: str) -> Path:
    """The text as shards with a tokenizer of 8,192, the same for both."""
    values = [
        f"data.path={args.text}",
        "data.source_field=source",
        f"data.dir={folder.absolute()}",
        *changes,
    ]
    run([sys.executable, "-m", "azllm_lightning.prepare", "data=text", *values])
    return folder.absolute()


def best_rate(data: Path, steps: int) -> float:
    """The learning rate with which the peer ends lowest."""
    ends = {lr: train_peer(data, lr, steps, SEEDS[0])["val_loss"] for lr in RATES}
    print(
        "peer by learning rate: " + ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in ends.items()),
        flush=True,
    )
    return min(ends, key=lambda lr: ends[lr])


def train_peer(
    data: Path, lr: float, steps: int, seed: int, every: int | None = None, dropout: float = 0.0
) -> dict[str, Any]:
    """The peer's last and best val_loss, and the seconds of its command."""
    values = {
        "--lr": lr,
        "--steps": steps,
        "--seed": seed,
        "--val-every": every or steps,
        "--dropout": dropout,
    }
    values |= {
        "--batch": BATCH,
        "--block": BLOCK,
        "--val-windows": VAL_WINDOWS,
        "--stop-above": 0.3,
    }
    command = [sys.executable, str(HERE / "peer_recipe.py"), str(data)]
    started = time.perf_counter()
    out = run([*command, *(str(part) for pair in values.items() for part in pair)])
    curve = json.loads(out)["val_loss"]
    return {
        "val_loss": [*curve.values()][-1],
        "best": min(curve.values()),
        "seconds": time.perf_counter() - started,
    }


def train_ours(
    args: argparse.Namespace,
    data: Path,
    steps: int,
    seed: int,
    every: int | None = None,
    *changes: str,
) -> dict[str, Any]:
    """The same of our own command."""
    logs = args.work.absolute() / "runs"
    logs.mkdir(exist_ok=True)
    values = [
        *(
            "data=text",
            f"data.dir={data}",
            f"data.path={args.text}",
            "data.source_field=source",
            "model=tiny",
        ),
        *(
            f"data.batch_size={BATCH}",
            f"data.block_size={BLOCK}",
            f"data.val_windows={VAL_WINDOWS}",
            f"seed={seed}",
        ),
        *(
            f"trainer.max_steps={steps}",
            f"trainer.val_every_steps={every or steps}",
            f"logs_dir={logs}",
        ),
        *(
            "run_name=ours",
            f"trainer.checkpoint_every_steps={steps}",
            f"schedule.warmup_steps={max(10, steps // 20)}",
        ),
    ]
    started = time.perf_counter()
    run([sys.executable, "-m", "azllm_lightning.train", *values, *changes])
    seconds = time.perf_counter() - started
    newest = max(
        (logs / "ours").glob("version_*"), key=lambda folder: int(folder.name.partition("_")[2])
    )
    summary = json.loads((newest / "summary.json").read_text(encoding="utf-8"))
    return {"val_loss": summary["val_loss"], "best": summary["best_val_loss"], "seconds": seconds}


def told(row: tuple[int, float, dict[str, Any], dict[str, Any]]) -> str:
    """One comparison in a line."""
    seed, share, peer, ours = row
    return (
        f"seed {seed}: peer {peer['val_loss']:.4f} in {peer['seconds']:.0f} s; ours with {share:.2f} of the tokens "
        f"{ours['val_loss']:.4f} in {ours['seconds']:.0f} s ({ours['seconds'] / peer['seconds']:.2f})"
    )


def run(command: list[str]) -> str:
    """What a command prints; its own message where it fails."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
