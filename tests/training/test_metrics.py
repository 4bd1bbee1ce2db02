"""val_loss is a sum over tokens divided by their number, however they came in batches and
processes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.text import Perplexity

from azllm_lightning.training.metrics import TokenLoss, perplexity

pytestmark = pytest.mark.numerics


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ragged batches of logits (B, T, V), labels (B, T), and the bytes of the labels, 0 for one
    that is no text.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in (4, 4, 1):
        logits = 3 * torch.randn(size, 6, 10, generator=generator)
        labels = torch.randint(10, (size, 6), generator=generator)
        made.append(
            (logits, labels, torch.arange(10)[labels])
        )  # label k stands for k bytes; 0 is end-of-text
    return made


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def fed(parts: list[tuple[Tensor, Tensor, Tensor]]) -> TokenLoss:
    metric = TokenLoss()
    for logits, labels, label_bytes in parts:
        metric.update(nll(logits, labels), label_bytes)
    return metric


def test_loss_and_perplexity_are_over_tokens_not_over_batches() -> None:
    computed, theirs = fed(batches()).compute(), Perplexity()
    each = torch.cat([nll(logits, labels).flatten() for logits, labels, _ in batches()])
    of_batches = [float(nll(logits, labels).mean()) for logits, labels, _ in batches()]
    for logits, labels, _ in batches():
        theirs.update(logits, labels)
    assert computed["loss"] == pytest.approx(float(each.double().mean()), rel=1e-12)
    assert computed["loss"] != pytest.approx(sum(of_batches) / 3, rel=1e-3)
    assert computed["ppl"] == math.exp(computed["loss"])
    assert computed["ppl"] == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_bits_per_byte_leave_out_what_is_no_text() -> None:
    bits = num_bytes = 0.0
    for logits, labels, _ in batches():
        for value, label in zip(
            nll(logits, labels).flatten().tolist(), labels.flatten().tolist(), strict=True
        ):
            if label != 0:
                bits += value / math.log(2)
                num_bytes += label
    assert fed(batches()).compute()["bpb"] == pytest.approx(bits / num_bytes, rel=1e-6)


def test_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchmetrics does at `compute` with two processes, without any: gather each sum, and
    add.
    """
    mine, theirs = fed(batches()[:1]), fed(batches()[1:])
    others = iter([getattr(theirs, name) for name in mine._reductions])
    mine.dist_sync_fn = lambda value, group: [value, next(others)]
    mine.distributed_available_fn = lambda: True
    assert mine.compute() == pytest.approx(fed(batches()).compute(), rel=1e-12)


def test_sums_do_not_round() -> None:
    metric = TokenLoss()
    metric.update(torch.full((1, 1), 2.0**25), torch.ones(1, 1, dtype=torch.int64))
    metric.update(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64))
    assert metric.compute()["loss"] == (2**25 + 1) / 2


def test_half_precision_losses_are_summed_in_full() -> None:
    metric = TokenLoss()
    metric.update(
        torch.full((1, 4096), 11.0, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.int64)
    )
    assert metric.compute()["loss"] == 11.0


def test_a_diverged_loss_is_shown() -> None:
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert perplexity(2.0) == math.exp(2.0)
