"""A micro-batch on a CPU, divided among threads: each has a core of its own and some of the texts.

If all cores work on one operation after the other, they wait for each other at the end of each of
hundreds of short operations. Divided, a step of a model of 3 to 14 million parameters takes 0.78 to
0.92 of the time on two cores (benchmarks/README.md). None of this is for compiled networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model import cpu
from azllm_lightning.model.gpt import GPT

GRADIENT_BYTES = 2**30
"""Maximum bytes of the gradients of all threads: each has its own until they are added up."""

T = TypeVar("T")
R = TypeVar("R")


LossFunction = Callable[[Tensor, Tensor], Tensor]
"""A mean over the tokens of inputs and labels (B, T): a scalar, or (K,), where only the first of
several has a gradient.
"""


def mean_loss(
    net: GPT, inputs: Tensor, labels: Tensor, loss_of: LossFunction | None = None
) -> Tensor:
    """`loss_of(inputs, labels)`, by default `net`, whose gradients in the parameters of `net` are
    computed with it if it has several texts and is on a CPU.

    They are added up in the order of the texts, so that the same number of threads gives the same
    bits; it is that of PyTorch, `torch.get_num_threads`.
    """
    loss_of = net if loss_of is None else loss_of
    parts = num_parts(net.config, len(inputs)) if inputs.device.type == "cpu" else 1
    if parts == 1:
        return loss_of(inputs, labels)
    parameters = [p for p in net.parameters() if p.requires_grad]
    loss: Tensor = _MeanLoss.apply(net, loss_of, inputs, labels, parts, *parameters)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


def token_losses(net: GPT, inputs: Tensor, labels: Tensor) -> Tensor:
    """`net(inputs, labels, reduction="none")` on a CPU, without gradients."""
    parts = min(torch.get_num_threads(), len(inputs))
    autocast = _autocast()

    def losses(part: tuple[Tensor, Tensor]) -> Tensor:
        with torch.inference_mode(), autocast():
            nll: Tensor = net(*part, reduction="none")
        return nll

    divided = zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True)
    return torch.cat(in_threads(losses, list(divided)))


def num_parts(config: GPTConfig, texts: int) -> int:
    """Threads that `texts` sequences are divided among, under the current autocast.

    In fp16, the backward pass needs the scale of the loss, which is not known before.
    """
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16:
        return 1
    gradients = 4 * config.num_params()
    return max(1, min(torch.get_num_threads(), texts, GRADIENT_BYTES // gradients))


def in_threads(function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """The results of `function` for each of `parts`, each in a thread; they share the cores."""
    if len(parts) == 1:
        return [function(parts[0])]
    cores = torch.get_num_threads()

    def run(part: T) -> R:
        torch.set_num_threads(max(1, cores // len(parts)))  # of this thread
        return function(part)

    futures = [_pool(len(parts)).submit(run, part) for part in parts]
    try:
        return [future.result() for future in futures]
    finally:
        wait(futures)  # also after a signal, since they read the weights
        torch.set_num_threads(cores)  # of threads that start later


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "micro_batch")


def _autocast() -> Callable[[], torch.autocast]:
    """A function that makes a context of this thread's autocast, for another thread."""
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return lambda: torch.autocast("cpu", dtype, enabled, cache_enabled=False)


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        net: GPT,
        loss_of: LossFunction,
        inputs: Tensor,
        labels: Tensor,
        parts: int,
        *parameters: Tensor,
    ) -> Tensor:
        has_dropout = net.training and net.config.dropout > 0
        seeds = torch.randint(2**63 - 1, (parts,)).tolist() if has_dropout else [0] * parts
        autocast = _autocast()

        def differentiate(part: tuple[Tensor, Tensor, int]) -> tuple[Tensor, tuple[Tensor, ...]]:
            x, y, seed = part
            with cpu.random_numbers(seed), autocast():
                loss = loss_of(x, y) * (len(x) / len(inputs))
                minimized = loss.flatten()[0]
            return loss.detach(), torch.autograd.grad(minimized, parameters)

        divided = zip(inputs.tensor_split(parts), labels.tensor_split(parts), seeds, strict=True)
        (loss, gradients), *others = in_threads(differentiate, list(divided))
        for more_loss, more in others:
            loss = loss + more_loss
            torch._foreach_add_(gradients, more)
        ctx.gradients = gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # no reference is left: they become .grad
        scale = grad_output.flatten()[0]
        if scale != 1:
            torch._foreach_mul_(gradients, scale)
        return None, None, None, None, None, *gradients
