"""What the hardware at hand can really do: device, precision, compilation, and the FLOP/s that MFU is a share of."""

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

log = logging.getLogger(__name__)

FP16_INIT_SCALE = 2.0**13
"""Below PyTorch's 2**16, which makes the first steps of a small fp16 run overflow and be skipped."""

COMPILE_PAYS_AFTER = 300.0
"""Seconds of eager training from which the 30 to 60 seconds of compiling come back."""

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_accelerator(accelerator: str) -> str:
    """ "cpu" or "cuda" for the configured name; ValueError if a GPU is asked for that is not there."""
    if torch.cuda.is_available():
        return "cpu" if accelerator == "cpu" else "cuda"
    if accelerator in ("gpu", "cuda"):
        raise ValueError(
            f"this run asks for a GPU (trainer.accelerator={accelerator}) and this machine has none that PyTorch "
            f"{torch.__version__} can use. On Colab choose Runtime > Change runtime type > T4 GPU; "
            "to try the same run on the CPU add trainer.accelerator=cpu (slow: make the batch and max_steps small)"
        )
    return "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """The precision that `auto` stands for on `device`, or the asked one if the hardware has it.

    `torch.cuda.is_bf16_supported()` says True on a T4, where bf16 is emulated and slow; the compute capability decides
    instead. On CPUs bf16 pays only where the cores have bf16 arithmetic (AMX or AVX512-BF16).
    """
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if precision == "auto":
            return "bf16-mixed" if major >= 8 else "16-mixed"
        if precision == "bf16-mixed" and major < 8:
            raise ValueError(
                f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name()} (sm_{major}{minor}) has no bf16 "
                "arithmetic, only a slow emulation; use trainer.precision=16-mixed or auto"
            )
        return precision
    best = "bf16-mixed" if _cpu_has_bf16() else "32-true"
    if precision == "16-mixed":
        log.warning(
            f"trainer.precision=16-mixed needs an NVIDIA GPU; on this CPU the run uses {best}"
        )
        return best
    return best if precision == "auto" else precision


def fast_half(device: torch.device) -> torch.dtype:
    """The 16-bit type that `device` multiplies matrices fastest in; fp32 on CPUs without one."""
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def muon_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type Muon orthogonalises in: fp32 in an fp32 run, where another micro-batch must not show in the losses."""
    return torch.float32 if precision == "32-true" else fast_half(device)


def num_devices(devices: int | str, device: str) -> int:
    """How many processes `trainer.devices` means: a number, a list like "0,1", or auto."""
    if devices == "auto":
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    if isinstance(devices, str) and "," in devices:
        return len(devices.split(","))
    return int(devices)


class MixedPrecision(plugins.MixedPrecision):
    """Lightning's, without the scaler's own wait for the device at each step.

    `GradScaler.step` asks the device whether a gradient overflowed. `CausalLM.configure_gradient_clipping` has asked
    by then: an overflow makes the norm infinite, and it has left the optimizer nothing to do. The name is Lightning's
    too, since checkpoints file the scaler under it.
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
    """The plugin for `precision`, with a gradient scale to start from that small models can bear."""
    if precision == "32-true":
        return Precision()
    if precision == "16-mixed":
        return MixedPrecision(
            "16-mixed", device, torch.amp.GradScaler(device, init_scale=FP16_INIT_SCALE)
        )
    return MixedPrecision("bf16-mixed", device)


def resolve_compile(setting: bool | str, device: str, eager_seconds: float) -> bool:
    """Whether to compile the network: what was asked, or for `auto` whether the run is long enough to win it back."""
    if str(setting).lower() == "false" or (
        setting == "auto" and eager_seconds < COMPILE_PAYS_AFTER
    ):
        return False
    missing = _missing_for_compile(device)
    if missing and setting != "auto":
        raise ValueError(f"trainer.compile=true needs {missing}; use trainer.compile=auto or false")
    return not missing


def expected_flops(device: str) -> float:
    """A rough FLOP/s of eager training, by which to judge whether compiling pays; unlike a timing it never varies."""
    return 1e13 if device == "cuda" else 5e10 * torch.get_num_threads()


@cache
def matmul_flops(device: str, precision: str) -> float:
    """FLOP/s of large matrix products on this device, timed for a fraction of a second."""
    size, dtype = (1024, DTYPES[precision]) if device == "cpu" else (4096, DTYPES[precision])
    a = torch.randn(size, size, device=device, generator=torch.Generator(device).manual_seed(0)).to(
        dtype
    )
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def peak_flops(device: str, precision: str) -> float:
    """The FLOP/s that MFU is a share of: the maker's figure where Lightning knows the card, else `matmul_flops`."""
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
    cpu = torch.cpu
    return any(
        bool(getattr(cpu, name, bool)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _missing_for_compile(device: str) -> str:
    if device == "cuda":
        if torch.cuda.get_device_capability() < (7, 0):
            return "a GPU of compute capability 7.0 or newer"
        return "" if importlib.util.find_spec("triton") else "Triton, which this PyTorch has not"
    return "" if any(map(shutil.which, ("c++", "g++", "clang++", "cl"))) else "a C++ compiler"
