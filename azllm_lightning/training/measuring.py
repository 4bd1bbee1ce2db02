"""Short measurements of a device: the speed of its matrix products, and whether torch.compile works
on it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from azllm_lightning.cli.messages import tr

ENOUGH_SECONDS = 0.05
"""A product that takes this long is large enough to be timed."""

LARGEST = {"cpu": 1024, "cuda": 4096}
"""The largest matrices that are multiplied to measure a device of each type."""

COMPILE_SECONDS = 240.0
"""Time limit of `compile_failure`. A slow CPU needs about 40 seconds."""

COMPILE_TRIAL = """
import sys
import torch
def loss(x, weight):
    return torch.nn.functional.silu(x @ weight).square().mean()
x = torch.linspace(-1, 1, 4096, device=sys.argv[1]).view(64, 64)
eager, compiled = (x.clone().requires_grad_() for _ in range(2))
loss(eager, x).backward()
torch.compile(loss)(compiled, x).backward()
torch.testing.assert_close(compiled.grad, eager.grad, rtol=1e-3, atol=1e-5)
"""
"""A program that compiles a function with its backward pass for a device, and checks the result."""


@dataclass(frozen=True)
class Products:
    """Matrix products of one type on one device."""

    flops: float
    """FLOP per second."""
    error: float
    """Distance from the product in fp32, relative to its norm; NaN if a value is not finite."""


@cache
def measure_products(device: str, dtype: torch.dtype) -> Products:
    """Time products in `dtype` on `device` ("cpu", "cuda") for a fraction of a second.

    Matrices grow until a product takes ENOUGH_SECONDS, because in a type that a device lacks it may
    be a hundred times slower than expected. The measurement is made once per process.
    """
    size = 256
    error = _error(_random_matrix(size, device), dtype)
    while True:
        seconds = _best_seconds(_random_matrix(size, device).to(dtype))
        if seconds >= ENOUGH_SECONDS or size == LARGEST[device]:
            return Products(2.0 * size**3 / seconds, error)
        size *= 2


@cache
def compile_failure(device: str) -> str:
    """Why torch.compile does not work on `device`, as the last line of its error; "" if it does.

    Tried out in another process, which may crash or hang; once per process.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE_TRIAL, device],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return tr("a small function was not compiled in {seconds:g} s", seconds=COMPILE_SECONDS)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if "Error" in line and line[0].isalpha()]
    return (errors or [tr("exit code {code}", code=done.returncode)])[-1][:300]


def _random_matrix(size: int, device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(size, size, device=device, generator=generator)


def _error(matrix: Tensor, dtype: torch.dtype) -> float:
    expected = matrix @ matrix
    half = matrix.to(dtype)
    distance = (half @ half).float() - expected
    return float(distance.norm() / expected.norm())


def _best_seconds(matrix: Tensor) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        if matrix.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
