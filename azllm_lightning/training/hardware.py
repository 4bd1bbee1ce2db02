"""What this machine can do: device, precision, compilation, and the peak FLOP/s for MFU.

Everything that `auto` means is decided here, by the device's kind and by what `measuring` measures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import precision as plugins
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.trainer import listed_gpus
from azllm_lightning.inference.device import best_device, install_command, missing_kernels
from azllm_lightning.training import measuring

log = logging.getLogger(__name__)

FP16_INIT_SCALE = 2.0**13
"""Below PyTorch's 2**16, with which the first steps of a small fp16 run overflow and are skipped.
"""

COMPILE_PAYS_AFTER = {"cpu": 600.0, "cuda": 300.0}
"""Seconds of eager training above which compiling is tried: it takes 20 to 60 seconds, and gains
less on a CPU.
"""

FASTER = 1.3
"""A 16-bit type is used if its products are this many times as fast as those in fp32; noise in the
timing stays far below.
"""

MAX_ERROR = 0.02
"""And if they differ from those in fp32 by less than this. Correct ones differ by less than 0.005.
"""

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable that makes cuBLAS deterministic; cuBLAS reads it at its first product."""

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_accelerator(accelerator: str, devices: int | str = 1) -> str:
    """The device type for trainer.accelerator and trainer.devices: "cpu" or "cuda".

    Raises ValueError if a GPU is requested, and there is none, or none that this PyTorch can use.
    """
    if accelerator not in ("gpu", "cuda"):
        return "cpu" if accelerator == "cpu" else best_device(devices)
    if not torch.cuda.is_available():
        raise ValueError(_no_gpu(accelerator))
    if reason := missing_kernels(devices):
        raise ValueError(
            tr(
                "trainer.accelerator={accelerator}, but {reason}",
                accelerator=accelerator,
                reason=reason,
            )
        )
    return "cuda"


def _no_gpu(accelerator: str) -> str:
    message = tr(
        "trainer.accelerator={accelerator}, but PyTorch {version} finds no GPU on this machine. On "
        "Colab choose Runtime > Change runtime type > T4 GPU; to try it on the CPU add "
        "trainer.accelerator=cpu (slow: reduce the batch and max_steps)",
        accelerator=accelerator,
        version=torch.__version__,
    )
    if torch.version.cuda is not None or torch.version.hip is not None:
        return message
    hint = tr(
        "This PyTorch is built for CPUs only: for an NVIDIA card install one with CUDA (with cu128 "
        "instead of cu126 for an RTX 50): {command}",
        command=install_command("cu126"),
    )
    return f"{message}. {hint}"


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError for bf16 on a GPU without it.

    `torch.cuda.is_bf16_supported()` is True on a T4, where bf16 is emulated and slow, so the
    compute capability decides.
    """
    if device == "cuda" and precision == "bf16-mixed" and not _cuda_has_bf16():
        major, minor = torch.cuda.get_device_capability()
        raise ValueError(
            tr(
                "trainer.precision=bf16-mixed: {name} (sm_{major}{minor}) has no bf16 "
                "arithmetic, only a slow emulation; use trainer.precision=16-mixed or auto",
                name=torch.cuda.get_device_name(),
                major=major,
                minor=minor,
            )
        )


def resolve_precision(precision: str, device: str) -> str:
    """The precision to use on `device` for trainer.precision; `auto` is the best one that is fast.

    GPUs with bf16 use it. On older ones fp16 is measured: GTX 16 cards have the compute capability
    of a T4, but no tensor cores, and fp16 may be ten times slower than fp32 there
    (pytorch/pytorch#121957, #195716) or give NaN. On CPUs, bf16 pays only with bf16 arithmetic (AMX
    or AVX512-BF16).

    Raises ValueError as `check_precision` does.
    """
    check_precision(precision, device)
    if device == "cuda":
        if precision != "auto":
            return precision
        if _cuda_has_bf16():
            return "bf16-mixed"
        return "16-mixed" if _half_pays(device, torch.float16) else "32-true"
    best = _best_cpu_precision() if precision in ("auto", "16-mixed") else precision
    if precision == "16-mixed":
        log.warning(
            tr(
                "trainer.precision=16-mixed needs an NVIDIA GPU; on this CPU the run uses "
                "{precision}",
                precision=best,
            )
        )
    return best


def _best_cpu_precision() -> str:
    # Without bf16 arithmetic it is not timed: a product may take minutes.
    if _cpu_has_bf16() and _half_pays("cpu", torch.bfloat16):
        return "bf16-mixed"
    return "32-true"


def _half_pays(device: str, dtype: torch.dtype) -> bool:
    """Whether products in `dtype` are correct, and clearly faster than in fp32."""
    half = measuring.measure_products(device, dtype)
    full = measuring.measure_products(device, torch.float32)
    return half.error < MAX_ERROR and half.flops >= FASTER * full.flops


def fast_half(device: torch.device) -> torch.dtype:
    """The 16-bit type in which `device` multiplies matrices fastest; fp32 on CPUs without one."""
    if device.type == "cuda":
        return torch.bfloat16 if _cuda_has_bf16(device) else torch.float16
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def muon_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type in which Muon orthogonalizes: that of the run's products, and fp32 for bf16 on a CPU
    without it.

    In fp32, losses must not depend on the micro-batch, and half precision would amplify rounding.
    """
    if precision.startswith("bf16"):
        return fast_half(device)
    return torch.float16 if precision.startswith("16") else torch.float32


def num_devices(devices: int | str, device: str) -> int:
    """The number of processes for trainer.devices: a number, GPUs (see `listed_gpus`), or auto.

    Raises ValueError for GPUs that are not there, for one listed twice, and for a list on the CPU.
    """
    available = max(1, torch.cuda.device_count()) if device == "cuda" else 1
    if devices == "auto":
        return available
    if indices := listed_gpus(devices):
        _check_listed(indices, device, available)
        return len(indices)
    if device == "cuda" and int(devices) > available:
        raise ValueError(
            tr(
                "trainer.devices={devices}, but PyTorch finds {found}; use a smaller number, or "
                "auto",
                devices=devices,
                found=trn("{count} GPU", "{count} GPUs", available),
            )
        )
    return int(devices)


def _check_listed(indices: list[int], device: str, available: int) -> None:
    devices = f"[{','.join(map(str, indices))}]"
    if device == "cpu":
        raise ValueError(
            tr(
                "trainer.devices={devices} lists GPUs, but this run is on the CPU; use "
                "trainer.devices=1, or a number of processes",
                devices=devices,
            )
        )
    if len(set(indices)) < len(indices):
        raise ValueError(tr("trainer.devices={devices} lists a GPU twice", devices=devices))
    if max(indices) >= available:
        raise ValueError(
            tr(
                "trainer.devices={devices}, but PyTorch finds {found}; their numbers are 0 to "
                "{last}",
                devices=devices,
                found=trn("{count} GPU", "{count} GPUs", available),
                last=available - 1,
            )
        )


def ddp_settings() -> dict[str, Any]:
    """The arguments of DistributedDataParallel that keep it from syncing buffers before each
    forward pass.

    The rotary tables are the same everywhere, and syncing them takes time. torch 2.13 has renamed
    the argument, and warns of the old name.
    """
    names = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    renamed = "forward_sync_buffers" in names
    return {"forward_sync_buffers" if renamed else "broadcast_buffers": False}


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError for a device or a strategy of Lightning that `CausalLM` cannot use."""
    strategy = trainer.strategy
    if strategy.root_device.type == "mps":
        raise ValueError(
            tr(
                "the GPU of a Mac (MPS) has no float64, in which losses are summed: give "
                "Trainer(accelerator='cpu')"
            )
        )
    if trainer.world_size > 1 and not isinstance(strategy, DDPStrategy):
        raise ValueError(
            tr(
                "on several devices each must have the whole model, which {strategy} divides: give "
                "Trainer(strategy='ddp')",
                strategy=type(strategy).__name__,
            )
        )


def device_name(device: str) -> str:
    """The name of the GPU, or of the CPU."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def be_deterministic(device: str) -> None:
    """Use deterministic algorithms only; called before the first product on a GPU.

    Raises ValueError if this process has used cuBLAS already, without the workspace that makes it
    deterministic.
    """
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialized memory, and filling it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "cpu":
        return
    try:
        torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    except RuntimeError as error:
        if CUBLAS_WORKSPACE not in str(error):
            raise
        raise ValueError(
            tr(
                "trainer.deterministic=true: this process has used the GPU before, without "
                "{variable}. Restart it (in a notebook, the kernel), and set "
                "{variable}=:4096:8 before its first use of the GPU",
                variable=CUBLAS_WORKSPACE,
            )
        ) from None


@contextlib.contextmanager
def determinism_restored() -> Iterator[None]:
    """Leave torch's deterministic mode as it was before."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


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

    `auto` compiles a small function first, and warns with the reason if that fails. Raises
    ValueError if compiling is requested and something that it needs is missing.
    """
    if setting is False or (setting == "auto" and eager_seconds < COMPILE_PAYS_AFTER[device]):
        return False
    missing = missing_for_compile(device)
    if setting != "auto":
        if missing:
            raise ValueError(
                tr(
                    "trainer.compile=true needs {missing}; use trainer.compile=auto or false",
                    missing=missing,
                )
            )
        return True
    reason = tr("it needs {missing}", missing=missing) if missing else why_not_compiled(device)
    if reason:
        log.warning(
            tr("trainer.compile=auto: this run is not compiled, because {reason}", reason=reason)
        )
    return not reason


def missing_for_compile(device: str) -> str:
    """What torch.compile needs on `device` and is not installed; "" if nothing is missing."""
    if device == "cuda":
        if torch.cuda.get_device_capability() < (7, 0):
            return tr("a GPU of compute capability 7.0 or newer")
        has_triton = importlib.util.find_spec("triton") is not None
        return "" if has_triton else tr("Triton, which this PyTorch does not include")
    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    return "" if has_compiler else tr("a C++ compiler")


def why_not_compiled(device: str) -> str:
    """Why compiling a small function fails on `device`, and how to change that; "" if it works."""
    failure = measuring.compile_failure(device)
    if not failure or device == "cpu":
        return failure
    # Triton compiles its launcher in C.
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang", "cl"))):
        return tr("Triton needs a C compiler (on Ubuntu: apt install gcc)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return tr("Triton needs {header} (on Ubuntu: apt install python3-dev)", header=header)
    return failure


def expected_flops(device: str) -> float:
    """A rough FLOP/s of eager training, to decide whether compiling is worth it; a timing would
    vary.
    """
    return 1e13 if device == "cuda" else 5e10 * torch.get_num_threads()


def matmul_flops(device: str, precision: str) -> float:
    """FLOP/s of large matrix products on `device`, timed for a fraction of a second."""
    return measuring.measure_products(device, DTYPES[precision]).flops


def peak_flops(device: str, precision: str) -> float:
    """The FLOP/s that MFU is relative to: the vendor's figure if Lightning knows it and it is not
    below what is measured, else `matmul_flops`.
    """
    measured = matmul_flops(device, precision)
    return max(measured, vendor_flops(precision)) if device == "cuda" else measured


def vendor_flops(precision: str) -> float:
    """The peak FLOP/s of the GPU in Lightning's table (2.6); 0 if it has none.

    The table has no laptop cards, and would take the desktop card of that name; its figures for an
    H100 NVL and H200 are those of a pair, or with sparsity.
    """
    import warnings

    from lightning.fabric.utilities.throughput import get_available_flops

    name = torch.cuda.get_device_name().lower()
    if any(word in name for word in ("laptop", "max-q", "nvl", "h200")):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(get_available_flops(torch.device("cuda"), DTYPES[precision]) or 0)
        except IndexError:  # it splits the name
            return 0.0


def _cuda_has_bf16(device: torch.device | None = None) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bf16() -> bool:
    supports = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in supports)
