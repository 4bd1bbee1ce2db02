"""The whole way of 16-mixed on the CPU: autocast, loss scale, clipping, and Muon in fp16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from training_runs import curve

from azllm_lightning.training import hardware

Train = Callable[..., Path]
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu")


class TensorCores(TorchDispatchMode):
    """Products of fp16 matrices as a GPU computes them: the sum in fp32, the result in fp16.

    A CPU without fp16 arithmetic takes a hundred times as long. `shapes` are those of the batches
    of matrices that were multiplied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_backward")
        is_half = any(isinstance(arg, Tensor) and arg.dtype == torch.float16 for arg in args)
        if name not in PRODUCTS or not is_half:
            return func(*args, **kwargs)
        if name == "baddbmm":
            self.shapes.add(tuple(args[1].shape))
        out = func(*tree_map(_to_float, args), **kwargs)
        if isinstance(out, Tensor):
            return out.half()
        if func.overloadpacket.__name__ == name:  # attention, and the logarithms of its sums
            return out[0].half(), *out[1:]
        return tuple(grad.half() for grad in out)


def _to_float(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype == torch.float16
    return value.float() if is_half else value


def both(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]], TensorCores]:
    """The curves of a run in fp32 and of the same run in fp16, and what that multiplied."""
    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr(hardware, "peak_flops", lambda device, precision: 1e12)
    overrides = (*overrides, "callbacks.samples.max_new_tokens=0", "trainer.micro_batch_size=1")
    full = train_tiny(*overrides, "run_name=full", "trainer.precision=32-true")
    with TensorCores() as trace:
        half = train_tiny(*overrides, "run_name=half", "trainer.precision=16-mixed")
    return curve(full), curve(half), trace


def assert_learns_as_in_fp32(
    full: dict[str, dict[int, float]], half: dict[str, dict[int, float]], last: int
) -> None:
    for tag, steps in (("train_loss", 20), ("val_loss", 1)):  # a single step has two windows only
        assert mean_of_last(half[tag], steps) == pytest.approx(
            mean_of_last(full[tag], steps), rel=0.01
        )
        assert half[tag] != full[tag], "it was not fp16"
    assert half["loss_scale"][last] >= 2.0**9
    assert full["val_loss"][last] < 0.85 * full["val_loss"][0]


def mean_of_last(values: dict[int, float], steps: int) -> float:
    return fmean(list(values.values())[-steps:])


@pytest.mark.thorough
def test_fp16_learns_as_fp32_does(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [f"trainer.{key}=40" for key in ("max_steps", "val_every_steps")]
    full, half, trace = both(train_tiny, monkeypatch, "trainer.global_batch_size=2", *steps)
    assert_learns_as_in_fp32(full, half, 40)
    assert trace.shapes, "Muon orthogonalized nothing in fp16"


@pytest.mark.slow
def test_the_default_model_learns_in_fp16_as_in_fp32(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps of model=tiny."""
    steps = [f"trainer.{key}=200" for key in ("max_steps", "val_every_steps")]
    model = ["model=tiny", "model.n_layer=4", "model.n_head=4", "model.n_embd=256"]
    data = ["data.block_size=64", "data.vocab_size=512", "trainer.global_batch_size=2"]
    full, half, _ = both(train_tiny, monkeypatch, *model, *data, *steps, "schedule.warmup_steps=20")
    assert_learns_as_in_fp32(full, half, 200)
