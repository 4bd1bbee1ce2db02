"""Train an Azerbaijani language model from scratch, on one modest GPU or a laptop.

The public names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from azllm_lightning.config.compose import compose
    from azllm_lightning.config.model import GPTConfig
    from azllm_lightning.data.datamodule import TokenDataModule
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.formats.load import load
    from azllm_lightning.inference.sampling import sample
    from azllm_lightning.model.gpt import GPT
    from azllm_lightning.report.figures import plot_runs
    from azllm_lightning.runs.curves import read_run
    from azllm_lightning.train import train
    from azllm_lightning.training.causal_lm import CausalLM

# How long an idle thread spins before it sleeps, for GNU OpenMP (which PyTorch uses on Linux).
# Spinning threads starve each other on a busy machine; sleeping at once makes small models a sixth
# slower on an idle one. A short spin costs little in both cases (benchmarks/omp_wait.py). The
# variable must be set before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_MODULES = {
    "CausalLM": "training.causal_lm",
    "GPT": "model.gpt",
    "GPTConfig": "config.model",
    "TokenDataModule": "data.datamodule",
    "Tokenizer": "data.tokenizer",
    "compose": "config.compose",
    "load": "formats.load",
    "plot_runs": "report.figures",
    "read_run": "runs.curves",
    "sample": "inference.sampling",
    "train": "train",
}

__all__ = [
    "GPT",
    "CausalLM",
    "GPTConfig",
    "TokenDataModule",
    "Tokenizer",
    "compose",
    "load",
    "plot_runs",
    "read_run",
    "sample",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
