"""torch.compile: what of the network it gets, where its code is kept, and what it gains."""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import sys
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.cache import cache_folder
from azllm_lightning.model.gpt import GPT, Block, rotary_tables
from azllm_lightning.training.hardware import DTYPES
from azllm_lightning.training.threads import in_threads, num_parts

log = logging.getLogger(__name__)

PAYS = 1.05
"""A compiled layer is used if it is this many times as fast; noise in the timing stays below."""

ROUNDS = 7
"""Turns in which the speed of a compiled layer is compared with that of an uncompiled one."""


def compile_network(net: GPT, device: str, is_student: bool = False, devices: int = 1) -> None:
    """Compile `net` in place, at its first forward and backward pass.

    On a CPU one layer is compiled, and its code used for all: that takes half as long, and is as
    fast. The gradient of the loss is our own, which PyTorch (2.13) does not cache. On a GPU, too,
    layers are compiled for a student, whose loss is not that of `net`, and for several devices,
    where earlier releases of PyTorch refuse to compile a gradient of our own.
    """
    keep_compiled_code()
    if device == "cuda" and not is_student and devices == 1:
        net.compile()
        return
    for layer in net.model.layers:
        layer.compile()


def keep_compiled_code() -> None:
    """Keep compiled code in the user's cache folder, where later runs find it.

    PyTorch's own choice is the folder of temporary files, which systems empty. It puts that into
    the environment as soon as it is imported; any other value is the user's.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled")


def uncompiled() -> AbstractContextManager[object]:
    """A context in which compiled networks run in eager mode."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return contextlib.nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def pays(shape: GPTConfig, batch_size: int, precision: str) -> bool:
    """Whether a compiled layer is at least `PAYS` times as fast on this CPU; logs what it gains."""
    log.info(tr("trainer.compile=auto: compiling a layer to measure what it gains"))
    gain = layer_gain(shape, batch_size, precision)
    if gain >= PAYS:
        text = tr(
            "trainer.compile=auto: a compiled layer is {gain:.2f} times as fast, so the run is "
            "compiled",
            gain=gain,
        )
    else:
        text = tr(
            "trainer.compile=auto: this run is not compiled, because a compiled layer is only "
            "{gain:.2f} times as fast",
            gain=gain,
        )
    log.info(text)
    return gain >= PAYS


def layer_gain(shape: GPTConfig, batch_size: int, precision: str) -> float:
    """How many times as fast a layer is on this CPU if it is compiled, forward and backward.

    The other one is divided among threads, as in a run. The median of `ROUNDS` turns with
    `batch_size` sequences. Whatever it compiles is kept for the run.
    """
    keep_compiled_code()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = Block(shape), Block(shape)
        x = torch.randn(batch_size, shape.block_size, shape.n_embd)
    layers[1].compile()
    cos, sin = rotary_tables(shape)
    dtype = DTYPES[precision]

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)

    with autocast():
        parts = num_parts(shape, batch_size)

    def seconds(layer: Block, parts: int) -> float:
        def differentiate(h: Tensor) -> None:
            h = h.clone().requires_grad_()
            with autocast():
                y = layer(h, cos, sin)
            torch.autograd.grad(y, [h, *layer.parameters()], y.detach())

        started = time.perf_counter()
        in_threads(differentiate, x.tensor_split(parts))
        return time.perf_counter() - started

    def gain() -> float:
        return seconds(layers[0], parts) / seconds(layers[1], 1)

    gain()  # compiles
    return statistics.median(gain() for _ in range(ROUNDS))
