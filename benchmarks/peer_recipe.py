"""Train GPT-2 by the course's and nanoGPT's recipe, on the very windows that our own run would read, in their order.

    python benchmarks/peer_recipe.py DATA_DIR --lr 2e-3 --steps 400

AdamW (0.9, 0.95), decay 0.1 on matrices, clipping at 1.0, linear warm-up over a tenth of the steps at most 100, cosine
to a tenth, bf16 where the CPU has it, compiled. Prints one JSON object: settings, val_loss by step, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice

import torch
import torch.nn.functional as F
from gpt2 import GPT2, GPT2Config, configure_adamw

from azllm_lightning.cli.entrance import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.training.hardware import resolve_precision
from azllm_lightning.training.schedule import lr_factor


def main() -> None:
    """Train, and print what came of it."""
    started = time.perf_counter()
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
    parser.add_argument("--batch", type=int, default=16, help="windows in a step")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument(
        "--stop-above", type=float, help="end where val_loss is so many nats above its lowest"
    )
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    changes = {
        "dir": args.data,
        "batch_size": args.batch,
        "block_size": args.block,
        "val_windows": args.val_windows,
    }
    data = TokenDataModule(
        from_mapping(DataConfig, {**compose(["data=text"])["data"], **changes}, "data"), args.seed
    )
    data.setup()
    torch.manual_seed(args.seed)
    sizes = GPT2Config(
        data.tokenizer.vocab_size, args.block, args.layers, args.heads, args.width, args.dropout
    )
    model = GPT2(sizes)
    optimizer = configure_adamw(model, args.lr)
    schedule = ScheduleConfig("cosine", min(100, args.steps // 10), args.steps, 1.0, 0.1)
    if not args.no_compile:
        model.compile()
    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        total = count = 0.0
        for batch in data.val_dataloader():
            with autocast():
                logits = model.forward(batch[:, :-1])
            total += float(
                F.cross_entropy(
                    logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                )
            )
            count += batch[:, 1:].numel()
        model.train()
        return total / count

    curve, seconds, first = {}, 0.0, 0.0
    for step, batch in enumerate(islice(data.train_dataloader(), args.steps)):
        mark = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * lr_factor(step, schedule)
        with autocast():
            loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        passed = time.perf_counter() - mark
        if step == 0:
            first = passed
        else:
            seconds += passed
        if (step + 1) % args.val_every == 0 or step + 1 == args.steps:
            curve[step + 1] = round(validate(), 4)
            if args.stop_above and curve[step + 1] > min(curve.values()) + args.stop_above:
                break
    tokens = step * args.batch * args.block
    told = {
        "settings": vars(args),
        "num_params": model.num_params(),
        "val_loss": curve,
        "tokens_per_sec": round(tokens / seconds),
        "first_step_seconds": round(first, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
