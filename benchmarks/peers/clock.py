"""What every tool in throughput.py measures in its own process; needs nothing but PyTorch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Race:
    """What is trained, the same for all: sizes, number type, the file of uint16 tokens, and where
    the measurements go.

    `compiled` is for nanoGPT's loop; hf and litgpt keep their defaults. `number_type` is "bf16"
    (mixed precision) or "fp32".
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
    number_type: str = "fp32"
    products: Sequence[int] = (1024, 2048, 3072)
    """Sizes of the square products that show what the machine can do."""

    @cached_property
    def _all_tokens(self) -> np.ndarray:
        return np.memmap(self.tokens, dtype="<u2", mode="r")

    @property
    def is_bf16(self) -> bool:
        """Whether the tools train in bf16 mixed precision."""
        return self.number_type == "bf16"

    @property
    def num_windows(self) -> int:
        """Windows of block_size tokens in the file, each with the token that follows it."""
        return (len(self._all_tokens) - 1) // self.block_size

    def window(self, index: int) -> torch.Tensor:
        """Window `index`, modulo their number: (block_size + 1,) as int64."""
        start = index % self.num_windows * self.block_size
        tokens = self._all_tokens[start : start + self.block_size + 1]
        return torch.from_numpy(tokens.astype(np.int64))

    def batch(self, step: int) -> torch.Tensor:
        """The batch of `step`: (batch_size, block_size + 1)."""
        first = step * self.batch_size
        return torch.stack([self.window(first + i) for i in range(self.batch_size)])


@dataclass
class Clock:
    """Records when each optimizer step ended, and reports it."""

    ends: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """Record the end of a step."""
        self.ends.append(time.perf_counter())

    def report(self, race: Race, number_type: str, **details: Any) -> None:
        """Write to `race.out`, as JSON: the ends of the steps in seconds, the rate of products on
        this machine, and the number type that the tool really trained in.
        """
        details = {"torch": torch.__version__, "threads": torch.get_num_threads(), **details}
        measured = {
            "ends": self.ends,
            "matmul": matmul_flops(race.products, race.is_bf16),
            "type": number_type,
            "details": details,
        }
        Path(race.out).write_text(json.dumps(measured), encoding="utf-8")


def matmul_flops(sizes: Sequence[int], is_bf16: bool) -> float:
    """FLOP/s of square products on the CPU, in bf16 or fp32: the best of five per size."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size).to(torch.bfloat16 if is_bf16 else torch.float32)
        for _ in range(5):
            started = time.perf_counter()
            a @ a
            best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best
