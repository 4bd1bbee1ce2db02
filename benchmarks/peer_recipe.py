"""Train GPT-2 by the recipe of the course and of nanoGPT, on exactly the windows that our own run
would read, in their order.

    python benchmarks/peer_recipe.py DATA_DIR --lr 2e-3 --steps 400

AdamW (0.9, 0.95), decay 0.1 on matrices, clipping at 1.0, linear warm-up over a tenth of the steps
(at most 100), cosine to a tenth, bf16 where the device is fast in it (else fp32, as our own run),
compiled. Prints one JSON object: machine, number type, settings, val_loss by step, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import machine
import torch
import torch.nn.functional as F
from gpt2 import GPT2, GPT2Config, configure_adamw, save_hf
from torch import Tensor

from azllm_lightning import compose
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.training.schedule import lr_factor


def main() -> None:
    """Train, and print the result."""
    print(json.dumps(train(arguments())))


def arguments(typed: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of prepared shards")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--val-every", type=int, default=100)
    parser.add_argument("--val-windows", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument(
        "--stop-above", type=float, help="stop when val_loss is this many nats above its lowest"
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--type",
        choices=["bf16", "fp32"],
        help="number type; by default that of a run of ours with trainer.precision=auto",
    )
    parser.add_argument(
        "--save", help="folder for the weights of the lowest val_loss, as a model of transformers"
    )
    return parser.parse_args(typed)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train with the settings `args`; returns what is printed."""
    started = time.perf_counter()
    settings = replace(
        compose(["data=text"]).data,
        dir=args.data,
        block_size=args.block,
        val_windows=args.val_windows,
    )
    data = TokenDataModule(settings, args.batch, args.seed)
    data.setup()
    torch.manual_seed(args.seed)
    sizes = (args.block, args.layers, args.heads, args.width, args.dropout)
    device = torch.device(args.device)
    number_type = args.type or machine.fast_type(device)
    model = GPT2(GPT2Config(data.tokenizer.vocab_size, *sizes)).to(device)
    optimizer = configure_adamw(model, args.lr)
    schedule = ScheduleConfig(
        name="cosine",
        warmup_steps=min(100, args.steps // 10),
        total_steps=args.steps,
        decay_ratio=1.0,
        min_lr_ratio=0.1,
    )
    if not args.no_compile:
        model.compile()
    losses: dict[int, float] = {}
    best: Mapping[str, Tensor] = {}
    seconds: list[float] = []
    for step, batch in enumerate(islice(data.train_dataloader(), args.steps), start=1):
        mark = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * lr_factor(step - 1, schedule)
        tokens = batch.to(device)
        with autocast(device, number_type):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - mark)
        if step % args.val_every == 0 or step == args.steps:
            losses[step] = round(validate(model, data, number_type), 4)
            if args.save and losses[step] == min(losses.values()):
                best = {name: weight.clone() for name, weight in model.state_dict().items()}
            if args.stop_above and losses[step] > min(losses.values()) + args.stop_above:
                break
    if args.save:
        model.load_state_dict(best)
        save_hf(model.cpu(), data.tokenizer, args.save)
    counted = seconds[1:]  # the first step compiles
    num_tokens = len(counted) * args.batch * args.block
    return {
        "machine": machine.describe(number_type, device),
        "settings": vars(args),
        "num_params": model.num_params(),
        "val_loss": losses,
        "tokens_per_sec": round(num_tokens / sum(counted)),
        "first_step_seconds": round(seconds[0], 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


@torch.no_grad()
def validate(model: GPT2, data: TokenDataModule, number_type: str) -> float:
    """Mean loss per token on the validation windows, in nats."""
    model.eval()
    device = model.lm_head.weight.device
    total = 0.0
    count = 0
    for batch in data.val_dataloader():
        tokens = batch.to(device)
        labels = tokens[:, 1:].flatten()
        with autocast(device, number_type):
            logits = model.forward(tokens[:, :-1])
        total += float(F.cross_entropy(logits.float().flatten(0, 1), labels, reduction="sum"))
        count += labels.numel()
    model.train()
    return total / count


def autocast(device: torch.device, number_type: str) -> torch.autocast:
    """The number type of the products."""
    return torch.autocast(device.type, torch.bfloat16, enabled=number_type == "bf16")


if __name__ == "__main__":
    main()
