"""Whether torch.compile works here: it compiles a small function, forward and backward."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.training.hardware import missing_for_compile


def compile_small_function(device: str) -> dict[str, Any]:
    """Compile with an empty cache, run forward and backward, and compare with eager mode.

    Called in a process of its own (`isolated`). Returns the seconds that it took. Raises ValueError
    with the reason if torch.compile does not work.
    """
    if missing := missing_for_compile(device):
        raise ValueError(tr("torch.compile needs {missing}", missing=missing))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TRITON_CACHE_DIR"] = cache
        started = time.perf_counter()
        compiled = _loss_and_gradient(torch.compile(_small_function), device)
        seconds = time.perf_counter() - started
    eager = _loss_and_gradient(_small_function, device)
    for ours, theirs in zip(compiled, eager, strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
            raise ValueError(tr("the compiled function computes something else than in eager mode"))
    return {"compile_seconds": seconds}


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
