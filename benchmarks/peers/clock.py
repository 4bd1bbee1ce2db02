"""What every contestant of throughput.py measures by itself, in its own process; needs nothing but PyTorch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Race:
    """What is trained, the same for all: sizes, the file of uint16 tokens, and where the measurements go.

    `compiled` is for the loops by hand and for ours, `bf16` for transformers' Trainer: the rest is as it comes.
    """

    tokens: str
    out: str
    steps: int
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    batch_size: int
    compiled: bool = True
    bf16: bool = False

    @cached_property
    def _all_tokens(self) -> np.ndarray:
        return np.memmap(self.tokens, dtype="<u2", mode="r")

    @property
    def num_windows(self) -> int:
        """Windows of block_size tokens in the file, each with the token that follows it."""
        return (len(self._all_tokens) - 1) // self.block_size

    def window(self, index: int) -> torch.Tensor:
        """Window `index`, counted around the end of the file: (block_size + 1,) as int64."""
        start = index % self.num_windows * self.block_size
        return torch.from_numpy(
            self._all_tokens[start : start + self.block_size + 1].astype(np.int64)
        )

    def batch(self, step: int) -> torch.Tensor:
        """The batch of `step`: (batch_size, block_size + 1)."""
        return torch.stack(
            [self.window(step * self.batch_size + i) for i in range(self.batch_size)]
        )


@dataclass
class Clock:
    """Notes when each optimizer step was over, and reports it."""

    ends: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step is over."""
        self.ends.append(time.perf_counter())

    def report(self, out: str, **told: Any) -> None:
        """Write when the steps ended, in seconds, and what the cores can do, as JSON to `out`."""
        told = {"torch": torch.__version__, "threads": torch.get_num_threads(), **told}
        Path(out).write_text(
            json.dumps({"ends": self.ends, "matmul": matmul_flops(), "told": told}),
            encoding="utf-8",
        )


def matmul_flops() -> float:
    """FLOP/s of a large bf16 product on the CPU: the largest rate of some sizes, each tried five times."""
    best = 0.0
    for size in (1024, 2048, 3072):
        a = torch.randn(size, size).bfloat16()
        for _ in range(5):
            started = time.perf_counter()
            a @ a
            best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best
