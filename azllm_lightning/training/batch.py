"""The micro-batch: the largest that fits (data.batch_size=auto), and a smaller one when memory runs out.

Neither changes what a step is: accumulate_grad_batches makes up for it, and the windows of a step follow from the
effective batch alone.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.hardware import muon_dtype, precision_plugin
from azllm_lightning.training.optimizer import build_optimizer

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from azllm_lightning.training.causal_lm import CausalLM

Config = dict[str, Any]

AUTO = "data.batch_size=auto"

HEADROOM = 0.1
"""Share of the card that the chosen micro-batch leaves free: memory fragments, and a desktop draws its windows."""

CPU_BYTES = 2**30
"""Activations of a micro-batch on a CPU, at most: larger ones are no faster there, they only take memory."""

SMALLER = (
    "choose a smaller model (model=), a shorter data.block_size, optimizer=muon (it keeps less than adamw), or "
    "trainer.precision=auto if it is 32-true, or free memory that other programs hold"
)
"""What is left to change where one window at a time is too much."""


def number_under_auto(
    config: Config, overrides: Sequence[str], compose: Callable[[Sequence[str]], Config]
) -> tuple[Config, list[str], bool]:
    """`config` and `overrides` without data.batch_size=auto, and whether it was asked for.

    auto is typed on top of a config that has a number, and the effective batch is that of the number: what `overrides`
    without auto give. ValueError where auto stands in a file, or nothing says what stood beneath it.
    """
    rest = [text for text in overrides if text.lstrip("+") != AUTO]
    data = config.get("data")
    if not isinstance(data, dict) or data.get("batch_size") != "auto":
        return config, list(overrides), False
    size = compose(rest)["data"]["batch_size"] if len(rest) < len(overrides) else "auto"
    if size == "auto":
        raise ValueError(
            f"{AUTO} keeps the windows of a step, so it needs a number to count them by: leave data.batch_size a "
            f"number in your files, and type {AUTO} on top (from Python: train(compose(overrides), overrides))"
        )
    return {**config, "data": {**data, "batch_size": size}}, rest, True


def check_devices(devices: int) -> None:
    """ValueError where a run on `devices` devices asks for auto: each would have to be tried, before any is ready."""
    if devices > 1:
        raise ValueError(
            f"{AUTO} is chosen for one device; on trainer.devices={devices} set data.batch_size to a number. A run "
            "with trainer.devices=1 finds one"
        )


def with_micro_batch(config: Config, size: int) -> Config:
    """`config` with micro-batches of `size` windows, and as many of them as make the same effective batch."""
    share = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    return {
        **config,
        "data": {**config["data"], "batch_size": size},
        "trainer": {**config["trainer"], "accumulate_grad_batches": share // size},
    }


def halved(config: Config, devices: int) -> Config:
    """`config` with micro-batches of half the size, or the next smaller that divides a step; ValueError if none can."""
    size, accumulate = config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    told = f"memory ran out with data.batch_size={size}"
    if size == 1:
        raise ValueError(f"{told}, the smallest there is: {SMALLER}")
    smaller = max(_divisors(size * accumulate, at_most=size // 2))
    if devices > 1:
        raise ValueError(
            f"{told}, and a run on {devices} devices cannot change it by itself: resume with data.batch_size={smaller} "
            "(the accumulation follows)"
        )
    return with_micro_batch(config, smaller)


def between_steps(trainer: Trainer, module: CausalLM) -> bool:
    """Whether what an exception left is the state after the last optimizer step, whole.

    It is where the exception came out of a forward or backward pass. It may not be where the optimizer or a callback
    was at work, nor in the validation after the last step, which no resume would run again.
    """
    validation: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
    validating = (
        validation.started > validation.processed and trainer.global_step < trainer.max_steps
    )
    return module.step_report is None or validating


def free_memory() -> None:
    """Give back what a fit that is over held; its exception must be gone, for that holds the fit's tensors."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # compiled code holds its network
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # what was too much is not what the run needs


def fitted(
    config: Config, device: str, model: GPTConfig, optimizer: OptimizerConfig, precision: str
) -> Config:
    """`config` with the largest micro-batch that divides its step and that `device` ("cpu" or "cuda") bears.

    On a GPU it is tried out, on a copy of the network; on a CPU it follows from the model's sizes, for a timing would
    differ from run to run. ValueError where not even one window fits.
    """
    share = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    if device == "cpu":
        most = CPU_BYTES // activation_bytes(model)
        return with_micro_batch(config, max(_divisors(share, at_most=max(1, most))))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        size = largest_that_fits(share, trial(model, optimizer, precision, device))
    free_memory()
    return with_micro_batch(config, size)


def largest_that_fits(share: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `share` before the first that does not fit; ValueError where that is 1."""
    best = 0
    for size in _divisors(share, at_most=share):
        if not fits(size):
            break
        best = size
    if not best:
        raise ValueError(f"{AUTO}: not even one window fits into the memory: {SMALLER}")
    return best


def trial(
    model: GPTConfig, optimizer: OptimizerConfig, precision: str, device: str
) -> Callable[[int], bool]:
    """A function that takes two training steps with micro-batches of a size and says whether HEADROOM stayed free.

    The second step meets the gradients and the optimizer's moments of the first, as accumulation does. The network is
    a copy and not compiled: compiled, it takes less.
    """
    try:
        net = GPT(model).to(device)
    except torch.OutOfMemoryError:
        return lambda size: False
    steps = build_optimizer(net, optimizer, muon_dtype(precision, torch.device(device)))
    plugin = precision_plugin(precision, device)

    def fits(size: int) -> bool:
        try:
            window = torch.zeros((size, model.block_size), dtype=torch.long, device=device)
            for _ in range(2):
                with plugin.forward_context():
                    loss = net(window, window)
                loss.backward()
                steps.step()
            free, total = (
                torch.cuda.mem_get_info()
            )  # what the allocator took for the steps it still holds
            return free >= HEADROOM * total
        except torch.OutOfMemoryError:
            return False
        finally:
            steps.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    return fits


def activation_bytes(model: GPTConfig) -> int:
    """What the backward pass of one window needs to be kept, in bytes, in fp32; nothing is computed."""
    with torch.device("meta"):
        net = GPT(model)
        window = torch.zeros((1, model.block_size), dtype=torch.long)
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # two tensors may share one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.hidden(window)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def _divisors(number: int, at_most: int) -> list[int]:
    return [size for size in range(1, min(number, at_most) + 1) if number % size == 0]
