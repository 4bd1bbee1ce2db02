"""trainer.deterministic=true: set before the first product, and no operation that refuses it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.inference.sampling import generate_ids
from azllm_lightning.model.gpt import GPT
from azllm_lightning.model.loss import next_token_loss, token_nll
from azllm_lightning.session import resolve
from azllm_lightning.training import batch, hardware

REFUSED = """
    avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward
    adaptive_max_pool2d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
    max_unpool2d max_unpool3d upsample_linear1d_backward upsample_bilinear2d_backward
    upsample_bicubic2d_backward upsample_trilinear3d_backward reflection_pad1d_backward
    reflection_pad2d_backward reflection_pad3d_backward nll_loss2d_forward nll_loss2d_backward
    _ctc_loss_backward _embedding_bag _embedding_bag_dense_backward put put_ histc bincount median
    nanmedian kthvalue grid_sampler_2d_backward grid_sampler_3d_backward cumsum cumsum_
""".split()
"""What raises on CUDA under `torch.use_deterministic_algorithms`, by that function's documentation
in torch 2.6 to 2.13; cumsum only of floating-point numbers.
"""


class Refused(TorchDispatchMode):
    """Records the dispatched operations that CUDA would refuse in deterministic mode."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seen.add(name)
        is_sum_of_integers = name.startswith("cumsum") and not out.is_floating_point()
        is_product = name.startswith("scatter_reduce") and "prod" in args
        if (name in REFUSED and not is_sum_of_integers) or is_product:
            self.found.add(name)
        return out


def test_the_trace_finds_what_is_refused() -> None:
    """The negative control."""
    numbers = torch.rand(4, 5, requires_grad=True)
    indices = torch.zeros(4, dtype=torch.int64)
    for name in REFUSED:
        assert hasattr(torch.ops.aten, name), f"torch has no operation {name} any more"
    with Refused() as trace:
        numbers.detach().long().cumsum(dim=-1)
        numbers.detach().scatter_add(1, indices[:, None], numbers.detach())
        torch.nn.functional.cross_entropy(numbers, indices).backward()
    assert trace.found == set()
    with Refused() as trace:
        numbers.detach().cumsum(dim=-1)
        torch.histc(numbers.detach())
        torch.nn.functional.cross_entropy(numbers[..., None], indices[:, None]).backward()
        numbers.detach().clone().put_(indices, numbers.detach()[0, :4])
        numbers.detach().scatter_reduce(1, indices[:, None], numbers.detach(), "prod")
    assert {"cumsum", "histc", "nll_loss2d_forward", "put_", "scatter_reduce"} <= trace.found


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_with_validations_and_samples_reaches_nothing_that_is_refused(
    optimizer: str,
    precision: str,
    train_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr(hardware, "peak_flops", lambda device, precision: 1e12)
    settings = ["trainer.max_steps=2", "model.dropout=0.1", "callbacks.samples.max_new_tokens=3"]
    with Refused() as trace:
        train_tiny(f"optimizer={optimizer}", f"trainer.precision={precision}", *settings)
    assert trace.found == set()
    assert {"embedding_dense_backward", "cumsum", "scatter_"} <= trace.seen


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    ],
)
def test_no_way_of_sampling_is_refused(settings: dict[str, Any], model: GPT) -> None:
    config = SamplingConfig(max_new_tokens=40, seed=0, **settings)
    with Refused() as trace:
        list(generate_ids(model, [[0, 5, 7], [0]], config, 2))
    assert trace.found == set()


def test_no_loss_in_chunks_is_refused() -> None:
    hidden = torch.randn(1300, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (1300,))
    with Refused() as trace:
        next_token_loss(hidden, weight, labels).backward()
        token_nll(hidden, weight, labels).sum().backward()
    assert trace.found == set()


def test_the_mode_is_set_before_the_first_product_and_ends_with_the_session(
    train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak for MFU and the micro-batch are measured before Lightning sets it."""
    monkeypatch.delenv(hardware.CUBLAS_WORKSPACE, raising=False)
    seen: dict[str, tuple[bool, str | None]] = {}

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*args: Any, **settings: Any) -> Any:
            enabled = torch.are_deterministic_algorithms_enabled()
            seen[name] = (enabled, os.environ.get(hardware.CUBLAS_WORKSPACE))
            return original(*args, **settings)

        monkeypatch.setattr(module, name, watched)

    watch(hardware, "resolve_precision")
    watch(hardware, "peak_flops")
    watch(batch, "largest_micro_batch")
    assert resolve.batch is batch
    train_tiny("trainer.deterministic=true", "trainer.max_steps=1")
    assert seen.keys() == {"resolve_precision", "peak_flops", "largest_micro_batch"}
    assert set(seen.values()) == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    seen.clear()
    train_tiny("trainer.max_steps=1", "run_name=another")
    assert {enabled for enabled, _ in seen.values()} == {False}


def test_a_gpu_that_was_used_before_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS reads its workspace once per process."""

    def refused(self: Tensor, other: Tensor) -> Tensor:
        raise RuntimeError(
            "Deterministic behavior was enabled ... set CUBLAS_WORKSPACE_CONFIG=:16:8"
        )

    ones = torch.ones
    monkeypatch.delenv(hardware.CUBLAS_WORKSPACE, raising=False)
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    monkeypatch.setattr(Tensor, "__matmul__", refused)
    with (
        hardware.determinism_restored(),
        pytest.raises(ValueError, match=r"trainer\.deterministic=true: .*Restart it .*CUBLAS"),
    ):
        hardware.be_deterministic("cuda")
