"""Random tokens in place of some of those that the model reads in training.

The model then cannot rely on a passage that it has read before. A pure function of (seed, position
in the run, place in the window): nothing to store, and the same with any micro-batch, any number of
processes and on any device.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from azllm_lightning.data.sampler import Indices, splitmix64

GAMMA = 0x9E3779B97F4A7C15
"""The increment of the generator splitmix64 (Steele, Lea and Flood 2014)."""


def replace_tokens(
    windows: Tensor, positions: Indices, share: float, vocab_size: int, seed: int
) -> Tensor:
    """`windows` (B, T + 1), in which each token was drawn anew with the probability `share`.

    The new token is any of the vocabulary, all equally likely. `positions` (B,) are those of the
    windows in the run. Returns a new tensor on the device of `windows`.
    """
    digest = hashlib.blake2b(f"{seed}/replacement".encode(), digest_size=8).digest()
    states = splitmix64(positions.astype(np.uint64) ^ np.uint64(int.from_bytes(digest, "little")))
    steps = np.arange(1, windows.shape[1] + 1, dtype=np.uint64) * np.uint64(GAMMA)
    bits = splitmix64(states[:, None] + steps)
    # The upper half of the bits chooses the places, the lower half the tokens.
    is_replaced = (bits >> np.uint64(32)) < np.uint64(round(share * 2**32))
    tokens = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(vocab_size)) >> np.uint64(32)
    other = _on(windows.device, tokens.astype(np.int64))
    return torch.where(_on(windows.device, is_replaced), other, windows)


def _on(device: torch.device, values: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of `values` on `device`; a GPU is not waited for."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
