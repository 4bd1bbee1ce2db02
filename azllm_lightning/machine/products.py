"""Matrix products in each number type: their speed, and whether they are right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from azllm_lightning.training.measuring import product_speed, relative_error


class NumberType(NamedTuple):
    """A number type of matrix products; `most_error` is the largest relative error of a sound
    product of random matrices, some ten times its rounding.
    """

    dtype: torch.dtype
    most_error: float
    tf32: bool = False


TYPES = {
    "fp32": NumberType(torch.float32, 1e-5),
    "tf32": NumberType(torch.float32, 5e-3, tf32=True),
    "bf16": NumberType(torch.bfloat16, 2e-2),
    "fp16": NumberType(torch.float16, 3e-3),
}

TYPE_OF_PRECISION = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
"""The type in which a run of each `trainer.precision` multiplies."""

LARGEST = {"cpu": 2048, "cuda": 8192}
LONG_ENOUGH = 0.02
"""Seconds of one product from which on its speed no longer depends on its size."""


def measure_products(device: str) -> dict[str, Any]:
    """For each number type that `device` has: FLOP/s, relative error, and the problem, if any."""
    has_tf32 = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    return {
        name: measure_product(device, kind)
        for name, kind in TYPES.items()
        if has_tf32 or not kind.tf32
    }


def measure_product(device: str, kind: NumberType, seconds: float = 0.4) -> dict[str, Any]:
    """Time products of square matrices for about `seconds`, and compare one with float64.

    `problem` is None, "wrong" (the relative error is above `most_error`, or not a number) or
    the reason why there is no such product.
    """
    with _tf32(kind.tf32):
        try:
            error = relative_error(device, kind.dtype)
            flops, size = product_speed(device, kind.dtype, LARGEST[device], LONG_ENOUGH, seconds)
        except RuntimeError as failure:
            reason = str(failure).strip().splitlines()[0]
            return {"flops_per_second": None, "relative_error": None, "problem": reason}
    wrong = not error <= kind.most_error  # a NaN is wrong too
    return {
        "flops_per_second": flops,
        "relative_error": error if error == error else None,
        "size": size,
        "problem": "wrong" if wrong else None,
    }


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
