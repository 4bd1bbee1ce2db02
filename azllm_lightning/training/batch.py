"""The micro-batch: what fits in memory. It does not change what is learned.

A step takes `trainer.global_batch_size` sequences for any micro-batch and any number of devices;
gradients are accumulated over as many micro-batches as necessary.
"""

from __future__ import annotations

import functools
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from azllm_lightning.cli.memory import is_out_of_memory
from azllm_lightning.cli.messages import and_then, tr, trn
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.hardware import muon_dtype, precision_plugin
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.teachers import Teachers

HEADROOM = 0.1
"""Fraction of GPU memory to leave free, for fragmentation and the desktop."""

SPILLS = 4.0
"""A sequence takes this many times as long if its memory is on the other side of the bus."""

CPU_BYTES = 2**30
"""Maximum bytes of activations per micro-batch on a CPU, where larger ones are no faster."""


def accumulation(config: TrainerConfig, devices: int) -> int:
    """Micro-batches per optimizer step on each of `devices`.

    The only place that relates the batch sizes:

        global_batch_size = micro_batch_size x accumulation x devices

    Raises ValueError if they do not divide each other.
    """
    micro = config.micro_batch_size
    assert isinstance(micro, int), "auto was resolved before"
    share = _sequences_per_device(config, devices)
    if share % micro:
        raise ValueError(
            tr(
                "trainer.micro_batch_size={micro} does not divide the {share} sequences that each "
                "device takes per step (trainer.global_batch_size={batch}, devices: {devices}); "
                "possible: {choices}, or auto",
                micro=micro,
                share=share,
                batch=config.global_batch_size,
                devices=devices,
                choices=", ".join(map(str, divisors(share, at_most=share))),
            )
        )
    return share // micro


def trainer_for(config: RunConfig, devices: int) -> TrainerConfig:
    """The trainer of `config` on `devices`: a micro-batch that `auto` chose for others, and that
    does not divide a step among these, is chosen again.
    """
    trainer = config.trainer
    if "micro_batch_size" in config.auto.settings and not divides_a_step(trainer, devices):
        return replace(trainer, micro_batch_size="auto")
    return trainer


def check_devices(config: RunConfig, devices: int) -> None:
    """Raise ValueError if a step cannot be divided among `devices`."""
    trainer = trainer_for(config, devices)
    if trainer.micro_batch_size == "auto":
        _sequences_per_device(trainer, devices)
    else:
        accumulation(trainer, devices)


def check_validation(windows: int, devices: int) -> None:
    """Raise ValueError if a device would have nothing to validate, which Lightning (2.6) refuses
    with an error of its own.
    """
    if windows < devices:
        raise ValueError(
            trn(
                "there is {count} validation window for {devices} devices: set trainer.devices=1, "
                "a smaller data.block_size, or give more validation text",
                "there are {count} validation windows for {devices} devices: set "
                "trainer.devices={count}, a smaller data.block_size, or give more validation text",
                windows,
                devices=devices,
            )
        )


def divides_a_step(config: TrainerConfig, devices: int) -> bool:
    """Whether each of `devices` takes a whole number of micro-batches per step."""
    micro = config.micro_batch_size
    return micro != "auto" and config.global_batch_size % (micro * devices) == 0


def largest_micro_batch(
    config: RunConfig,
    device: str,
    devices: int,
    teachers: Teachers | None = None,
    tokenizer: Tokenizer | None = None,
) -> int:
    """The largest micro-batch that divides a step of `config` and fits on `device` ("cpu", "cuda").

    The shape and the precision of `config` are settled. On a GPU, sizes are tried out with a copy
    of the network, an optimizer for the tokens of `tokenizer`, and the `teachers`; on a CPU, the
    size follows from the model's, because a timing would vary.

    Raises ValueError if not even one sequence fits.
    """
    share = _sequences_per_device(config.trainer, devices)
    if device == "cpu":
        most = CPU_BYTES // activation_bytes(config.shape)
        return max(divisors(share, at_most=max(1, most)))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        fits = trial(config, device, teachers=teachers, tokenizer=tokenizer)
        size = largest_that_fits(share, fits, has_teachers=teachers is not None)
    free_memory()
    return size


def halved(config: RunConfig, devices: int) -> RunConfig:
    """`config` with half the micro-batch, or the next smaller one that divides a step.

    Raises ValueError if there is none.
    """
    micro = config.trainer.micro_batch_size
    assert isinstance(micro, int), "auto was resolved before"
    if micro == 1:
        raise ValueError(
            tr(
                "out of memory with trainer.micro_batch_size=1, the smallest possible: {remedies}",
                remedies=_remedies(bool(config.teachers)),
            )
        )
    smaller = max(divisors(_sequences_per_device(config.trainer, devices), at_most=micro // 2))
    return replace(config, trainer=replace(config.trainer, micro_batch_size=smaller))


def continuing(config: TrainerConfig, devices: int, step: int, dropout: float) -> str:
    """What the user reads when a run that ran out of memory continues with `config`."""
    count = accumulation(config, devices)
    message = tr(
        "out of memory after step {step:,}: continuing with trainer.micro_batch_size={size} "
        "({micro_batches} per step; trainer.global_batch_size is unchanged)",
        step=step,
        size=config.micro_batch_size,
        micro_batches=trn("{count:,} micro-batch", "{count:,} micro-batches", count),
    )
    if not dropout:
        return message
    return and_then(
        message,
        tr(
            "model.dropout={dropout} is drawn for each micro-batch: the losses will differ "
            "slightly from those of an uninterrupted run",
            dropout=dropout,
        ),
    )


def model_does_not_fit(config: RunConfig) -> str:
    """The message for a model that does not fit in memory, with any micro-batch."""
    remedies = _remedies(bool(config.teachers))
    return tr("out of memory: the model alone does not fit: {remedies}", remedies=remedies)


def is_between_steps(trainer: Trainer, module: CausalLM) -> bool:
    """Whether an exception left the state of the last optimizer step intact.

    True if it was raised in a forward or backward pass. False if it was raised in the optimizer or
    a callback, or in the validation of the last step, which no resume would run again.
    """
    validation: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
    is_validating = validation.started > validation.processed
    return module.step_report is None or (is_validating and trainer.global_step < trainer.max_steps)


def free_memory() -> None:
    """Release the memory of a finished fit.

    Its exception must have been dropped, because the traceback keeps the tensors alive.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # compiled code keeps its network alive
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # the peak of the failed fit is not the run's


def largest_that_fits(share: int, fits: Callable[[int], bool], has_teachers: bool = False) -> int:
    """The largest divisor of `share` before the first one that does not fit.

    Raises ValueError if not even 1 fits.
    """
    best = 0
    for size in divisors(share, at_most=share):
        if not fits(size):
            break
        best = size
    if not best:
        raise ValueError(
            tr(
                "trainer.micro_batch_size=auto: not even one sequence fits in memory: {remedies}",
                remedies=_remedies(has_teachers),
            )
        )
    return best


def trial(
    config: RunConfig,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
    teachers: Teachers | None = None,
    tokenizer: Tokenizer | None = None,
) -> Callable[[int], bool]:
    """A function that trains two steps with a micro-batch of a given size, and returns whether
    HEADROOM stayed free.

    The second step has the gradients and the optimizer's moments of the first in memory, as
    accumulation does. The network is a copy and not compiled, which needs more than a compiled one.
    A sequence that takes SPILLS times as long as in a smaller micro-batch does not fit either:
    Windows moves memory to the host, silently. `clock` returns seconds.
    """
    precision = config.trainer.precision
    try:
        net = GPT(config.shape).to(device)
        if teachers:
            teachers.to(torch.device(device))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return lambda size: False
    dtype = muon_dtype(precision, torch.device(device))
    optimizer = build_optimizer(net, config.optimizer, dtype, tokenizer=tokenizer)
    plugin = precision_plugin(precision, device)
    fastest = math.inf  # seconds per sequence

    def step(window: Tensor) -> float:
        started = clock()
        with plugin.forward_context():
            losses = teachers.losses(net, window, window) if teachers else net(window, window)
        losses.flatten()[0].backward()
        optimizer.step()
        if window.is_cuda:
            torch.cuda.synchronize()
        return clock() - started

    def fits(size: int) -> bool:
        nonlocal fastest
        try:
            shape = (size, config.shape.block_size)
            window = torch.zeros(shape, dtype=torch.long, device=device)
            seconds = min(step(window), step(window)) / size
            free, total = torch.cuda.mem_get_info()  # the allocator still holds the peak
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        spills = seconds > SPILLS * fastest
        fastest = min(fastest, seconds)
        return free >= HEADROOM * total and not spills

    return fits


@functools.cache
def activation_bytes(model: GPTConfig) -> int:
    """Bytes of fp32 activations kept for the backward pass of one sequence, on the meta device."""
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


def divisors(number: int, at_most: int) -> list[int]:
    """The divisors of `number` up to `at_most`, the smallest first."""
    return [size for size in range(1, min(number, at_most) + 1) if number % size == 0]


def _sequences_per_device(config: TrainerConfig, devices: int) -> int:
    """Sequences that each of `devices` takes per step."""
    if config.global_batch_size % devices:
        raise ValueError(
            tr(
                "trainer.global_batch_size={batch} is not divisible by the number of devices, "
                "{devices}",
                batch=config.global_batch_size,
                devices=devices,
            )
        )
    return config.global_batch_size // devices


def _remedies(has_teachers: bool) -> str:
    remedies = tr(
        "choose a smaller model (model=), a shorter data.block_size, optimizer=muon (it stores "
        "less than adamw), or trainer.precision=auto if it is 32-true, or close other programs"
    )
    return remedies + (tr(", or give fewer or smaller teachers") if has_teachers else "")
