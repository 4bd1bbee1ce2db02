"""Which device a network runs on: a GPU for which PyTorch has kernels, or the CPU."""

from __future__ import annotations

import functools
import logging
import re

import torch

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.trainer import listed_gpus

log = logging.getLogger(__name__)

TORCH = "torch>=2.6,<2.14"
"""The releases of PyTorch that pyproject.toml allows."""


def best_device(devices: int | str = 1) -> str:
    """The device type to use if nothing else was asked for: "cuda", or else "cpu".

    GPUs without kernels are not used, with a warning; `devices` as in trainer.devices.
    """
    if not torch.cuda.is_available():
        return "cpu"
    if reason := missing_kernels(devices):
        _warn_once(tr("the CPU is used: {reason}", reason=reason))
        return "cpu"
    return "cuda"


def missing_kernels(devices: int | str) -> str:
    """Which of the GPUs of trainer.devices this PyTorch has no kernels for, and the way out; "" if
    it has them for all.
    """
    for index in _used_gpus(devices):
        major, minor = torch.cuda.get_device_capability(index)
        if not _has_kernels((major, minor)):
            return tr(
                "PyTorch {version} has no kernels for {name} (sm_{major}{minor}); choose another "
                "GPU (on Kaggle T4 x2), or install a PyTorch for this one: {command}",
                version=torch.__version__,
                name=torch.cuda.get_device_name(index),
                major=major,
                minor=minor,
                # cu126 is the last for cards before Turing, cu128 the first for Blackwell.
                command=install_command("cu126" if major < 10 else "cu128"),
            )
    return ""


def install_command(build: str) -> str:
    """The command that replaces PyTorch by its build for a version of CUDA, such as cu126."""
    # Without --force-reinstall pip keeps the build that is there, if its version fits.
    index = f"https://download.pytorch.org/whl/{build}"
    return f'pip install --force-reinstall "{TORCH}" --index-url {index}'


def _used_gpus(devices: int | str) -> list[int]:
    available = range(torch.cuda.device_count())
    if listed := listed_gpus(devices):
        return [index for index in listed if index in available]
    return list(available if devices == "auto" else available[: int(devices)])


def _has_kernels(capability: tuple[int, int]) -> bool:
    """Whether a GPU of that compute capability can run what this PyTorch was compiled to.

    Machine code (sm_86) runs on later minor versions of the same major one, PTX (compute_90) on all
    later ones.
    """
    if torch.version.hip is not None:  # AMD's architectures have other names
        return True
    for name in torch.cuda.get_arch_list():
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if found is None:
            continue
        version = int(found[2]), int(found[3])
        if version <= capability and (found[1] == "compute" or version[0] == capability[0]):
            return True
    return False


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
