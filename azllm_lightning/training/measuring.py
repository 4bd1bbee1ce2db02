"""Short measurements of a device: the speed of its matrix products, and whether torch.compile works
on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

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
from azllm_lightning.training.measuring import check_compiled
check_compiled(sys.argv[1])
"""


@dataclass(frozen=True)
class Products:
    """Matrix products of one type on one device."""

    flops: float
    """FLOP per second."""
    error: float
    """Distance from the exact product, relative to its norm; NaN if a value is not finite."""


@cache
def measure_products(device: str, dtype: torch.dtype) -> Products:
    """Time products in `dtype` on `device` ("cpu", "cuda") for a fraction of a second, once per
    process.
    """
    flops, _ = product_speed(device, dtype, LARGEST[device], ENOUGH_SECONDS, seconds=0.2)
    return Products(flops, relative_error(device, dtype))


def product_speed(
    device: str, dtype: torch.dtype, largest: int, enough: float, seconds: float
) -> tuple[float, int]:
    """(FLOP/s of the fastest product, its size), of those that are tried for about `seconds`.

    Matrices grow to the size `largest`, or until a product takes `enough` seconds, because in a
    type that a device lacks it may be a hundred times slower than expected.
    """
    size = 128
    while True:
        factors = [_random(size, seed).to(device, dtype) for seed in (0, 1)]
        _time(factors)  # the first one of a size is slower
        fastest = _time(factors)
        if fastest >= enough or size >= largest:
            break
        size *= 2
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        fastest = min(fastest, _time(factors))
    return 2.0 * size**3 / fastest, size


def relative_error(device: str, dtype: torch.dtype) -> float:
    """|product - exact| / |exact| (Frobenius) of random matrices, exact for the rounded factors."""
    size = 1024 if device == "cuda" else 256
    a, b = (_random(size, seed).to(dtype) for seed in (0, 1))
    exact = a.double() @ b.double()
    product = (a.to(device) @ b.to(device)).cpu().double()
    return float((product - exact).norm() / exact.norm())


def check_compiled(device: str) -> float:
    """Compile a small function, run it forward and backward, and compare with eager mode.

    Returns the seconds that compiling took. Raises ValueError if the results differ, and whatever
    torch.compile raises where it does not work.
    """
    started = time.perf_counter()
    compiled = _loss_and_gradient(torch.compile(_small_function), device)
    seconds = time.perf_counter() - started
    eager = _loss_and_gradient(_small_function, device)
    for ours, theirs in zip(compiled, eager, strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
            raise ValueError(tr("the compiled function computes something else than in eager mode"))
    return seconds


@cache
def compile_failure(device: str) -> str:
    """Why torch.compile does not work on `device`, as the last line of its error; "" if it does.

    Tried out in another process, which may crash or hang; once per process.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE_TRIAL, device],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
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


def _random(size: int, seed: int) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


def _time(factors: list[Tensor]) -> float:
    is_cuda = factors[0].device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    factors[0] @ factors[1]
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _small_function(x: Tensor, weight: Tensor) -> Tensor:
    """A norm, a product and an activation, as in the model."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    return torch.nn.functional.silu(normed @ weight).square().mean()


def _loss_and_gradient(function: Any, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 96, generator=generator).to(device)
    weight = torch.randn(96, 128, generator=generator).to(device).requires_grad_()
    loss = function(x, weight)
    loss.backward()
    assert weight.grad is not None
    return loss.detach(), weight.grad
