"""What this machine can do: device, precision, compilation, and the peak FLOP/s for MFU."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch.plugins import precision as plugins
from lightning.pytorch.plugins.precision import Precision

from azllm_lightning.cli.messages import tr

log = logging.getLogger(__name__)

FP16_INIT_SCALE = 2.0**13
"""Below PyTorch's 2**16, with which the first steps of a small fp16 run overflow and are skipped.
"""

COMPILE_PAYS_AFTER = 300.0
"""Seconds of eager training above which compiling, which takes 30 to 60 seconds, is worth it."""

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_accelerator(accelerator: str) -> str:
    """The device type for trainer.accelerator: "cpu" or "cuda".

    Raises ValueError if a GPU is requested and there is none.
    """
    if torch.cuda.is_available():
        return "cpu" if accelerator == "cpu" else "cuda"
    if accelerator in ("gpu", "cuda"):
        raise ValueError(
            tr(
                "trainer.accelerator={accelerator}, but PyTorch {version} finds no GPU on this "
                "machine. On Colab choose Runtime > Change runtime type > T4 GPU; to try it on "
                "the CPU add trainer.accelerator=cpu (slow: reduce the batch and max_steps)",
                accelerator=accelerator,
                version=torch.__version__,
            )
        )
    return "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """The precision to use on `device` for trainer.precision; `auto` is the best one that is fast.

    `torch.cuda.is_bf16_supported()` is True on a T4, where bf16 is emulated and slow, so the
    compute capability decides. On CPUs, bf16 pays only with bf16 arithmetic (AMX or AVX512-BF16).

    Raises ValueError for bf16 on a GPU without it.
    """
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if precision == "auto":
            return "bf16-mixed" if major >= 8 else "16-mixed"
        if precision == "bf16-mixed" and major < 8:
            raise ValueError(
                tr(
                    "trainer.precision=bf16-mixed: {name} (sm_{major}{minor}) has no bf16 "
                    "arithmetic, only a slow emulation; use trainer.precision=16-mixed or auto",
                    name=torch.cuda.get_device_name(),
                    major=major,
                    minor=minor,
                )
            )
        return precision
    best = "bf16-mixed" if _cpu_has_bf16() else "32-true"
    if precision == "16-mixed":
        log.warning(
            tr(
                "trainer.precision=16-mixed needs an NVIDIA GPU; on this CPU the run uses "
                "{precision}",
                precision=best,
            )
        )
        return best
    return best if precision == "auto" else precision


def fast_half(device: torch.device) -> torch.dtype:
    """The 16-bit type in which `device` multiplies matrices fastest; fp32 on CPUs without one."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def muon_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type in which Muon orthogonalizes: `fast_half`, but fp32 in an fp32 run.

    In fp32, losses must not depend on the micro-batch, and half precision would amplify rounding.
    """
    return torch.float32 if precision == "32-true" else fast_half(device)


def num_devices(devices: int | str, device: str) -> int:
    """The number of processes for trainer.devices: a number, a list like "0,1", or auto."""
    if devices == "auto":
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    if isinstance(devices, str) and "," in devices:
        return len(devices.split(","))
    return int(devices)


class MixedPrecision(plugins.MixedPrecision):
    """Lightning's plugin (2.6), without the synchronization of its scaler with the device.

    `GradScaler.step` asks the device whether a gradient overflowed.
    `CausalLM.configure_gradient_clipping` has done so already: after an overflow the norm is not
    finite, and it has removed the gradients. The class has Lightning's name because checkpoints
    store the scaler's state under it.
    """

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Forward and backward passes, unscaling, clipping, and the optimizer's step."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        closure()
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        optimizer.step(**kwargs)
        self.scaler.update()
        return None


def precision_plugin(precision: str, device: str) -> Precision:
    """Lightning's plugin for `precision`; in fp16 with an initial loss scale that suits small
    models.
    """
    if precision == "32-true":
        return Precision()
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler(device, init_scale=FP16_INIT_SCALE)
        return MixedPrecision("16-mixed", device, scaler)
    return MixedPrecision("bf16-mixed", device)


def resolve_compile(setting: bool | str, device: str, eager_seconds: float) -> bool:
    """Whether to compile the network, given trainer.compile and the duration of the run in eager
    mode.

    Raises ValueError if it is requested and something that it needs is missing.
    """
    if setting is False or (setting == "auto" and eager_seconds < COMPILE_PAYS_AFTER):
        return False
    missing = missing_for_compile(device)
    if missing and setting != "auto":
        raise ValueError(
            tr(
                "trainer.compile=true needs {missing}; use trainer.compile=auto or false",
                missing=missing,
            )
        )
    return not missing


def missing_for_compile(device: str) -> str:
    """What torch.compile needs on `device` and is not installed; "" if nothing is missing."""
    if device == "cuda":
        if torch.cuda.get_device_capability() < (7, 0):
            return tr("a GPU of compute capability 7.0 or newer")
        has_triton = importlib.util.find_spec("triton") is not None
        return "" if has_triton else tr("Triton, which this PyTorch does not include")
    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    return "" if has_compiler else tr("a C++ compiler")


def expected_flops(device: str) -> float:
    """A rough FLOP/s of eager training, to decide whether compiling is worth it; a timing would
    vary.
    """
    return 1e13 if device == "cuda" else 5e10 * torch.get_num_threads()


@cache
def matmul_flops(device: str, precision: str) -> float:
    """FLOP/s of large matrix products on `device`, timed for a fraction of a second."""
    size = 1024 if device == "cpu" else 4096
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(DTYPES[precision])
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def peak_flops(device: str, precision: str) -> float:
    """The FLOP/s that MFU is relative to: the vendor's figure if Lightning knows it, else
    `matmul_flops`.
    """
    if device == "cuda":
        import warnings

        from lightning.fabric.utilities.throughput import get_available_flops

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = get_available_flops(torch.device("cuda"), DTYPES[precision])
        if known:
            return float(known)
    return matmul_flops(device, precision)


def _cpu_has_bf16() -> bool:
    supports = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in supports)
