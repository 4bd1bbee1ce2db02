"""The machine that a benchmark runs on, and the number type that its CPU is fast in."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from azllm_lightning.training.hardware import fast_half

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}
"""`trainer.precision` of each number type."""


def describe(number_type: str = "", device: torch.device = CPU) -> dict[str, str]:
    """The CPU and its kind, the GPU if `device` is one, the `number_type` if one is given, the
    system, PyTorch, the commit.
    """
    about = {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "cpu": f"{_cpuinfo('model name') or platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores",
        "kind": cpu_kind(),
        "type": number_type,
        "system": platform.platform(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    return {key: value for key, value in about.items() if value}


def show(about: dict[str, str]) -> None:
    """Print what `describe` returns, one line per entry."""
    print("\n".join(f"{key:<8}{value}" for key, value in about.items()), flush=True)


def fast_type(device: torch.device = CPU) -> str:
    """ "bf16" if the device has bf16 arithmetic, else "fp32": bf16 without it is very slow."""
    return "bf16" if fast_half(device) == torch.bfloat16 else "fp32"


def cpu_kind() -> str:
    """The instruction set that PyTorch uses and what the cores have for bf16, as in
    "AVX512, avx512_bf16" or "AVX2, no bf16 arithmetic".
    """
    level = torch.backends.cpu.get_cpu_capability()
    if fast_type() == "fp32":
        return f"{level}, no bf16 arithmetic"
    found = {"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())
    return f"{level}, {', '.join(sorted(found)) or 'bf16 arithmetic'}"


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _commit() -> str:
    """The commit, marked if tracked files differ from it."""

    def git(*args: str) -> str:
        command = ["git", *args]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = " (changed)" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
