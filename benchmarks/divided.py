"""What a CPU gains when threads divide a micro-batch: steps with it and without it, in turn.

    python benchmarks/divided.py [nano tiny 6x384] [--rounds 15]

A step is a forward and a backward pass over random tokens, clipping, and the optimizer (Muon; AdamW
for 6x384). "Without" all threads work on each operation, as PyTorch does by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

# isort: off
import azllm_lightning  # noqa: F401  how threads wait: PyTorch's OpenMP reads it when imported

# isort: on
import machine
import torch
from torch import Tensor

from azllm_lightning import compose
from azllm_lightning.config.model import GPTConfig, ModelConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.threads import mean_loss

BATCHES = {"nano": (2048, 16, 128), "tiny": (8192, 16, 256), "6x384": (8192, 8, 256)}
"""Vocabulary, texts, context."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", help=f"from {', '.join(BATCHES)}; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    machine.show(machine.describe(machine.fast_type()))
    print(f"{'':8}{'divided':>10}{'without':>10}{'ratio: lowest, median, highest':>34}")
    for size in args.sizes or BATCHES:
        divided, without = seconds(size, args.rounds)
        ratios = sorted(a / b for a, b in zip(divided, without, strict=True))
        figures = f"{ratios[0]:.2f}  {statistics.median(ratios):.2f}  {ratios[-1]:.2f}"
        medians = [statistics.median(times) for times in (divided, without)]
        print(f"{size:8}{medians[0]:8.3f} s{medians[1]:8.3f} s{figures:>34}", flush=True)


def seconds(size: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, divided and without."""
    vocab_size, texts, block_size = BATCHES[size]
    config = shape(size, vocab_size, block_size)
    settings = compose(["optimizer=adamw"] if size == "6x384" else []).optimizer
    dtype = machine.DTYPES[machine.fast_type()]
    net = GPT(config)
    optimizer = build_optimizer(net, settings, dtype)
    windows = torch.randint(vocab_size, (texts, block_size + 1))

    def step(loss_of: Callable[[Tensor, Tensor], Tensor]) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_of(windows[:, :-1], windows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    turns = [
        (step(lambda x, y: mean_loss(net, x, y)), step(net))
        for _ in range(rounds + 2)  # two to warm up
    ]
    divided, without = zip(*turns[2:], strict=True)
    return list(divided), list(without)


def shape(size: str, vocab_size: int, block_size: int) -> GPTConfig:
    """The sizes of a model."""
    if size == "6x384":
        sizes = ModelConfig(n_layer=6, n_head=6, n_embd=384, tie_embeddings=True)
    else:
        sizes = compose([f"model={size}"]).model
    return sizes.for_data(vocab_size, block_size, eos_id=0)


if __name__ == "__main__":
    main()
