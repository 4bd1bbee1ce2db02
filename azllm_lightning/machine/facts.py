"""The machine itself: device, driver, processor, memory, and versions of the software."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import azllm_lightning
from azllm_lightning.data.workers import num_cores
from azllm_lightning.inference.device import best_device

INSTRUCTION_SETS = (
    "avx2 f16c fma avx512f avx512_bf16 avx512_fp16 avx512_vnni avx_vnni amx_tile amx_bf16 amx_fp16 "
    "asimd bf16 sve sve2"
).split()
"""The names in /proc/cpuinfo that matter for matrix products; the last four are those of Arm."""


def machine_facts(device: str) -> dict[str, Any]:
    """What check.json says under "machine"; `device` is the type that the run uses, "cpu" or
    "cuda". Whatever cannot be found out is None.
    """
    return {
        "device": device,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else [],
        "unused_gpu": None if best_device() == "cuda" else nvidia_smi("name"),
        "driver_version": nvidia_smi("driver_version"),
        "cuda_version": torch.version.cuda,
        "cpu_model": cpu_model(),
        "cpu_cores": num_cores(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_instruction_sets": instruction_sets(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": memory_bytes(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "lightning_version": importlib.metadata.version("lightning"),
        "azllm_lightning_version": azllm_lightning.__version__,
    }


def cpu_model() -> str:
    """The processor as its vendor names it, or the architecture."""
    if model := cpuinfo("model name"):
        return model
    if sys.platform == "darwin":
        found = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        if found:
            return found
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of INSTRUCTION_SETS that the processor has, where the system says so (Linux)."""
    flags = set((cpuinfo("flags") or cpuinfo("Features")).split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def memory_bytes() -> int | None:
    """Main memory of the machine, or what a container may use of it; None if neither is known."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    elif sys.platform == "win32":
        sizes.append(_windows_memory())
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(limit).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(sizes, default=None)


def nvidia_smi(field: str) -> str | None:
    """One field of the first NVIDIA card, from the driver's own tool; None without either."""
    if shutil.which("nvidia-smi") is None:
        return None
    lines = _output(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]).splitlines()
    return lines[0].strip() if lines else None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        ]

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll")  # noqa: B009 (absent where mypy runs)
    windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total)


def _output(command: list[str]) -> str:
    """What a command prints; "" if it fails or hangs."""
    try:
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
