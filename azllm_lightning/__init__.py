"""Train an Azerbaijani language model from nothing, on the one modest GPU you have.

The public names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# How long a thread spins before it sleeps, for GNU's OpenMP (PyTorch's on Linux). Spinning threads starve each other
# wherever anything else runs; sleeping at once costs small models a sixth on an idle machine. A short spin gives up
# little of either (benchmarks/omp_wait.py). It must be set before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "compose": "config.compose",
    "CausalLM": "training.causal_lm",
    "GPT": "model.gpt",
    "GPTConfig": "config.model",
    "TokenDataModule": "data.datamodule",
    "Tokenizer": "data.tokenizer",
    "load": "formats.load",
    "read_run": "runs.curves",
    "sample": "inference.sampling",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
