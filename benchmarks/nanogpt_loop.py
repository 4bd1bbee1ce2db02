"""nanoGPT's training loop, written from scratch: benchmarks/gpu.py compares our runs with it."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpt2 import GPT2, GPT2Config, configure_adamw
from torch import Tensor, nn

from azllm_lightning import compose
from azllm_lightning.callbacks.throughput import peak_memory_bytes
from azllm_lightning.training import hardware
from azllm_lightning.training.batch import accumulation


def nanogpt_loop(
    overrides: list[str],
    steps: int,
    checkout: Path | None = None,
    warmed_up: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train `steps` steps with the sizes, batch, precision and compile setting that `overrides`
    mean for our command, and return the measurements. `warmed_up` is called after a tenth of them.

    As in nanoGPT's train.py: autocast, with a GradScaler in fp16; accumulation, clipping at 1,
    fused AdamW; the next batch fetched while the device computes; the loss read at every step; no
    biases; TF32 allowed.
    """
    config = compose(overrides)
    trainer = config.trainer
    micro_batch = trainer.micro_batch_size
    assert isinstance(micro_batch, int)
    block_size = config.data.block_size
    accumulate = accumulation(trainer, devices=1)
    device = hardware.resolve_accelerator(trainer.accelerator)
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    shape = {
        "vocab_size": config.data.vocab_size,
        "block_size": block_size,
        "n_layer": config.model.n_layer,
        "n_head": config.model.n_head,
        "n_embd": config.model.n_embd,
        "dropout": config.model.dropout,
        "bias": False,
    }
    model: nn.Module = GPT2(GPT2Config(**shape)) if checkout is None else Checkout(checkout, shape)
    model.to(device)
    optimizer = configure_adamw(model, lr=6e-4)
    dtype = hardware.DTYPES[trainer.precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    if trainer.compile is True:
        model.compile()
    assert config.data.dir is not None
    tokens = Path(config.data.dir) / "train_00000.bin"
    batches = random_batches(tokens, micro_batch, block_size, device)
    input_ids, labels = next(batches)
    seconds, losses = [], []
    mark = time.perf_counter()
    for step in range(steps):
        if step == max(1, steps // 10) and warmed_up is not None:
            warmed_up()
        for _ in range(accumulate):
            with torch.autocast(device, dtype):
                loss = model(input_ids, labels) / accumulate
            input_ids, labels = next(batches)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() * accumulate)
        seconds.append(time.perf_counter() - mark)
        mark = time.perf_counter()
    num_params = sum(parameter.numel() for parameter in model.parameters())
    multiplied = num_params - block_size * config.model.n_embd  # all but the positions
    attention = 12 * config.model.n_layer * config.model.n_embd * block_size
    return {
        "step_seconds": seconds,
        "tokens_per_step": trainer.global_batch_size * block_size,
        "flops_per_token": 6 * multiplied + attention,
        "peak_memory_bytes": peak_memory_bytes(device),
        "num_params": num_params,
        "precision": trainer.precision,
        "train_loss": losses[-1],
    }


def random_batches(
    path: Path, batch_size: int, block_size: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows from random places of the file as input_ids and labels, both (batch_size,
    block_size), on the device.
    """
    tokens = np.memmap(path, dtype=np.uint16, mode="r")

    def windows(starts: list[int]) -> Tensor:
        cut = [tokens[start : start + block_size].astype(np.int64) for start in starts]
        batch = torch.from_numpy(np.stack(cut))
        return batch.pin_memory().to(device, non_blocking=True) if device == "cuda" else batch

    while True:
        starts = torch.randint(len(tokens) - block_size, (batch_size,)).tolist()
        yield windows(starts), windows([start + 1 for start in starts])


class Checkout(nn.Module):
    """The model of a nanoGPT checkout, with the forward of ours."""

    def __init__(self, folder: Path, shape: dict[str, Any]) -> None:
        super().__init__()
        spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        self.net = module.GPT(module.GPTConfig(**shape))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, in nats."""
        return self.net(input_ids, labels)[1]
