"""python benchmarks/roofline.py [EXPERIMENT CARD ...]: the best that a card could do for an
experiment, by arithmetic.

Nothing is measured. Each kind of work in an optimizer step has its operations and its memory
traffic, and takes as long as the slower of the two at the card's figures (the roofline model:
Williams, Waterman and Patterson 2009). Traffic is counted as in a compiled network: each chain of
elementwise operations is one pass. A real run is slower than these figures allow.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F

from azllm_lightning import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model import cpu, gpt
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.batch import accumulation
from azllm_lightning.training.muon import orthogonalization_flops

CHUNK = 2048  # tokens whose logits exist at once on a GPU, see azllm_lightning/model/loss.py


@dataclass(frozen=True)
class Card:
    """Operations in fp16 and bytes per second, and bytes of memory."""

    name: str
    flops: float
    """What products sustain."""
    peak: float
    """The maker's figure, which MFU is relative to."""
    bandwidth: float
    memory: float
    source: str


CARDS = {
    "t4": Card(
        "NVIDIA T4",
        24e12,
        65e12,
        320e9,
        16e9,
        "NVIDIA's data sheet; at its limit of 70 W a T4 lowers its clock, and its products sustain "
        "24 TFLOP/s: forums.developer.nvidia.com, topic 264462",
    ),
    "gtx1650": Card(
        "GeForce GTX 1650 (GDDR5)",
        896 * 1.665e9 * 2 * 2,
        896 * 1.665e9 * 2 * 2,
        128e9,
        4e9,
        "NVIDIA's figures: 896 cores, 1,665 MHz boost, fp16 at twice the rate of fp32, no tensor "
        "cores; where its fp16 products are slower than fp32, trainer.precision=auto uses fp32",
    ),
}


class Work(NamedTuple):
    """One kind of work of an optimizer step."""

    kind: str
    flops: float
    moved: float
    """Bytes to and from the card's memory."""


@dataclass(frozen=True)
class Experiment:
    """What an experiment asks of the card."""

    name: str
    model: GPTConfig
    micro_batch: int
    accumulate: int
    max_steps: int
    optimizer: str

    @property
    def micro_tokens(self) -> int:
        """Tokens per micro-batch."""
        return self.micro_batch * self.model.block_size

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.micro_tokens * self.accumulate

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices inside the layers."""
        m = self.model
        return m.n_layer * (2 * m.n_embd * (m.n_embd + _kv_width(m)) + 3 * m.n_embd * _mlp_width(m))


def experiment(name: str) -> Experiment:
    """The experiment of that name in conf/."""
    config = compose([f"experiment={name}"])
    trainer = config.trainer
    assert isinstance(trainer.micro_batch_size, int)
    return Experiment(
        name,
        config.model.for_data(config.data.vocab_size, config.data.block_size, eos_id=0),
        trainer.micro_batch_size,
        accumulation(trainer, devices=1),
        trainer.max_steps,
        config.optimizer.name,
    )


def step_work(e: Experiment) -> list[Work]:
    """Operations and traffic of one optimizer step in fp16 with fp32 weights, forward and backward
    passes together.
    """
    m, n = e.model, e.tokens
    C, K, F, V, L, T = m.n_embd, _kv_width(m), _mlp_width(m), m.vocab_size, m.n_layer, m.block_size
    # Forward and the two products of backward read or write each fp16 operand once: 2 x 3 bytes
    # per element.
    operands = 6 * n * L * (9 * C + 2 * K + 3 * F) + 6 * e.layer_weights * e.accumulate
    # A chunk of logits is written, read for the sum, read and written as gradient, and read by two
    # products. Per chunk the head is read twice, and its gradient written in fp16, read, and added
    # up in fp32.
    logits = 12 * V * n + n / CHUNK * 16 * V * C
    # Forward, in bytes per token: norms 6 C and 12 C, QK-norm and rotation 4 (C + K), SwiGLU 6 F,
    # residual 10 C; backward moves twice as much.
    elementwise = 3 * n * L * (32 * C + 4 * K + 6 * F) + 16 * n * C
    return [
        Work("products of the layers", 6 * e.layer_weights * n, operands),
        # Causal: half of 4 T C forward and of 10 T C backward, which recomputes the scores.
        Work("attention", 7 * T * C * L * n, 24 * C * L * n),
        Work("head and loss", 6 * V * C * n, logits),
        Work("norms, rotation, SwiGLU, residuals", 0, elementwise),
        Work(
            "fp16 copies of weights, fp32 sums of gradients", 0, 20 * m.num_params() * e.accumulate
        ),
        _optimizer_work(e),
    ]


def _optimizer_work(e: Experiment) -> Work:
    """Unscaling, norm and clipping (20 bytes per weight) and AdamW (28), or Muon for the matrices
    inside the layers.

    Muon moves 102 bytes per weight: momentum 12, decay 8, Nesterov 12, normalization 24, the cast
    6, five rounds in fp16 30, the update 10.
    """
    if e.optimizer != "muon":
        return Work("clipping and AdamW", 0, 48 * e.model.num_params())
    C, K, F = e.model.n_embd, _kv_width(e.model), _mlp_width(e.model)
    shapes = [*[(C, C)] * 2, *[(K, C)] * 2, *[(F, C)] * 3]
    flops = e.model.n_layer * sum(map(orthogonalization_flops, shapes))
    others = e.model.num_params() - e.layer_weights
    return Work("clipping, Muon and AdamW", flops, 122 * e.layer_weights + 48 * others)


def step_seconds(card: Card, work: list[Work]) -> list[float]:
    """Seconds that each kind of work takes at the card's limits."""
    return [max(w.flops / card.flops, w.moved / card.bandwidth) for w in work]


def memory(e: Experiment) -> list[tuple[str, float, float]]:
    """(what, bytes if compiled, bytes if not) at the end of a micro-batch's forward pass, where
    memory peaks.
    """
    m, weights = e.model, e.model.num_params()
    C, K, F, V = m.n_embd, _kv_width(m), _mlp_width(m), m.vocab_size
    single = e.layer_weights if e.optimizer == "muon" else 0  # Muon keeps one moment per weight
    moments = 8 * weights - 4 * single
    halves = 2 * (e.layer_weights + V * C)
    # Kept per token and layer: the stream (fp32); q, k, v, rotated q and k, y, the branch's output,
    # gate and up (fp16).
    compiled = e.micro_tokens * m.n_layer * (8 * C + 2 * (2 * C + 3 * K) + 4 * F)
    eager = e.micro_tokens * m.n_layer * saved_bytes(m)
    loss = 2 * C * e.micro_tokens + 6 * V * C
    return [
        ("weights, fp32", 4 * weights, 4 * weights),
        ("gradients, fp32", 4 * weights, 4 * weights),
        (f"moments of {e.optimizer}, fp32", moments, moments),
        ("fp16 copies of weights", halves, halves),
        (f"activations of {e.micro_batch} x {m.block_size} tokens", compiled, eager),
        (
            f"loss: {CHUNK:,} rows of logits, gradient of the head",
            loss + 4 * V * CHUNK,
            loss + 8 * V * CHUNK,
        ),
    ]


def saved_bytes(model: GPTConfig) -> float:
    """Bytes per token and layer that autograd keeps for the backward pass of an uncompiled network.

    They are counted in forward passes on the CPU, in bf16 autocast and with the operations of a
    GPU, for two numbers of layers and of tokens: the differences leave only what grows with both.
    """
    return (
        (_kept(model, 2, 32) - _kept(model, 1, 32)) - (_kept(model, 2, 16) - _kept(model, 1, 16))
    ) / 16


def _kept(model: GPTConfig, n_layer: int, tokens: int) -> int:
    """Bytes that autograd keeps of one window."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = GPT(replace(model, n_layer=n_layer, vocab_size=64, block_size=tokens, eos_id=0))
    input_ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        patch.object(gpt, "attend", _fused_attention),
        patch.object(cpu, "by_hand", lambda x: False),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        hidden = network.hidden(input_ids)  # keeps the graph, and so every storage, alive
    assert hidden.requires_grad
    return sum(storages.values())


def _fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`attend` as it is on a GPU, where no weights of attention are kept."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def report(e: Experiment, card: Card) -> str:
    """The tables of an experiment on a card, in Markdown."""
    work = step_work(e)
    seconds = step_seconds(card, work)
    total, m = sum(seconds), e.model
    lines = [
        f"### {e.name}, {card.name} (computed, not measured)",
        "",
        f"{card.flops / 1e12:.3g} TFLOP/s in fp16 (peak {card.peak / 1e12:.3g}), "
        f"{card.bandwidth / 1e9:.0f} GB/s, "
        f"{card.memory / 1e9:.0f} GB ({card.source}). {m.num_params() / 1e6:.0f} M parameters, "
        f"{m.flops_per_token() / 1e9:.3f} GFLOP per token, {e.tokens:,} tokens per step "
        f"({e.accumulate} x {e.micro_batch} x {m.block_size}), {e.optimizer}.",
        "",
        "| work per step | TFLOP | GB moved | ms at the roof | bound by |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for w, s in zip(work, seconds, strict=True):
        bound = "arithmetic" if w.flops / card.flops >= w.moved / card.bandwidth else "memory"
        lines.append(
            f"| {w.kind} | {w.flops / 1e12:.2f} | {w.moved / 1e9:.1f} | {1e3 * s:.1f} | {bound} |"
        )
    flops, moved = sum(w.flops for w in work), sum(w.moved for w in work)
    lines.append(f"| together | {flops / 1e12:.2f} | {moved / 1e9:.1f} | {1e3 * total:.1f} | |")
    mfu = e.tokens * m.flops_per_token() / (total * card.peak)
    lines += [
        "",
        "| | tokens/s | MFU | hours for " + f"{e.max_steps:,} steps |",
        "| --- | ---: | ---: | ---: |",
    ]
    for what, share in (("at the roof", 1.0), ("at half of it", 0.5)):
        hours = e.max_steps * total / share / 3600
        lines.append(
            f"| {what} | {share * e.tokens / total:,.0f} | {share * mfu:.2f} | {hours:.1f} |"
        )
    parts = memory(e)
    lines += ["", "| memory, GiB | compiled | not compiled |", "| --- | ---: | ---: |"]
    lines += [f"| {what} | {a / 2**30:.2f} | {b / 2**30:.2f} |" for what, a, b in parts]
    compiled, eager = (sum(part[column] for part in parts) / 2**30 for column in (1, 2))
    lines.append(f"| together, of {card.memory / 2**30:.1f} | {compiled:.2f} | {eager:.2f} |")
    lines += [
        "",
        "Without the CUDA context (some 0.3 to 0.5 GiB) and memory that the allocator reserves.",
    ]
    return "\n".join(lines)


def _kv_width(model: GPTConfig) -> int:
    return (model.n_kv_head or model.n_head) * model.head_dim


def _mlp_width(model: GPTConfig) -> int:
    assert model.intermediate_size is not None
    return model.intermediate_size


def main() -> None:
    """Print the tables."""
    args = sys.argv[1:] or ["t4", "t4", "laptop_4gb", "gtx1650"]
    print(
        "\n\n".join(
            report(experiment(name), CARDS[card])
            for name, card in zip(args[::2], args[1::2], strict=True)
        )
    )


if __name__ == "__main__":
    main()
