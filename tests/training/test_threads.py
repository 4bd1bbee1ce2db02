"""A micro-batch that several threads divide among themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import Crash, Probe, assert_same_end, curve

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training import threads
from azllm_lightning.training.threads import in_threads, mean_loss, num_parts, token_losses

Train = Callable[..., Path]

TEXTS = 5


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def network(config: GPTConfig, **changes: float) -> GPT:
    """A network whose branches do something."""
    torch.manual_seed(0)
    net = GPT(replace(config, **changes))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def batch(config: GPTConfig) -> tuple[Tensor, Tensor]:
    windows = torch.randint(config.vocab_size, (TEXTS, config.block_size + 1))
    return windows[:, :-1], windows[:, 1:]


def gradients(net: GPT, loss: Tensor) -> list[Tensor]:
    net.zero_grad()
    loss.backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_the_whole(
    config: GPTConfig, tie: bool, dtype: torch.dtype
) -> None:
    net = network(config, tie_embeddings=tie)
    inputs, labels = batch(config)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        divided = mean_loss(net, inputs, labels)
        whole = net(inputs, labels)
    exact = 1e-5 if dtype == torch.float32 else 2e-2
    assert divided.item() == pytest.approx(whole.item(), rel=exact)
    found = [g.clone() for g in gradients(net, divided / 4)]
    expected = gradients(net, whole / 4)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= exact * theirs.norm()


def test_gradients_add_up_over_micro_batches(config: GPTConfig) -> None:
    net = network(config)
    inputs, labels = batch(config)
    once = [g.clone() for g in gradients(net, mean_loss(net, inputs, labels))]
    mean_loss(net, inputs, labels).backward()
    for p, g in zip(net.parameters(), once, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, 2 * g)


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_dropout_depends_on_the_seed_alone(
    config: GPTConfig, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(config, dropout=0.5).train()
    inputs, labels = batch(config)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return mean_loss(net, inputs, labels)

    losses = {run(0).item() for _ in range(20)}
    assert len(losses) == 1
    assert run(1).item() not in losses
    results: list[Any] = []

    def recorded(*args: Any) -> list[Any]:
        results[:] = in_threads(*args)
        return results

    monkeypatch.setattr(threads, "in_threads", recorded)
    mean_loss(net, *(x[:1].expand(3, -1) for x in (inputs, labels)))
    assert len({loss.item() for loss, _ in results}) == 3  # each thread draws other numbers


@pytest.mark.thorough
@pytest.mark.numerics
def test_a_resumed_run_equals_the_uninterrupted_one(train_tiny: Train, probe: Probe) -> None:
    overrides = ["model.dropout=0.1", "trainer.micro_batch_size=4"]
    straight = train_tiny("run_name=straight", *overrides)
    probe.crash(5)
    with pytest.raises(Crash):
        train_tiny("run_name=resumed", *overrides)
    assert_same_end(straight, train_tiny("run_name=resumed", "ckpt_path=last"))
    whole = train_tiny("run_name=whole", *overrides, "model.dropout=0")
    torch.set_num_threads(1)
    alone = train_tiny("run_name=alone", *overrides, "model.dropout=0")
    ours, theirs = (curve(folder)["train_loss"] for folder in (whole, alone))
    assert ours.keys() == theirs.keys()
    assert [*ours.values()] == pytest.approx([*theirs.values()], rel=1e-4)


def test_losses_of_tokens_are_those_of_the_whole(config: GPTConfig) -> None:
    net = network(config).eval()
    inputs, labels = batch(config)
    with torch.inference_mode():
        expected = net(inputs, labels, reduction="none")
    found = token_losses(net, inputs, labels)
    assert found.shape == labels.shape
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("texts", "dropout", "limit", "parts"),
    [(8, 0.0, None, 3), (2, 0.0, None, 2), (1, 0.0, None, 1), (8, 0.5, None, 3), (8, 0.0, 2.5, 2)],
)
def test_how_many_threads(
    config: GPTConfig,
    texts: int,
    dropout: float,
    limit: float | None,
    parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, dropout=dropout)
    if limit is not None:
        size = sum(4 * p.numel() for p in GPT(config).parameters())
        monkeypatch.setattr(threads, "GRADIENT_BYTES", int(limit * size))
    assert num_parts(config, texts) == parts
    with torch.autocast("cpu", torch.bfloat16):
        assert num_parts(config, texts) == parts
    with torch.autocast("cpu", torch.float16):
        assert num_parts(config, texts) == 1


def test_the_cores_are_shared_and_come_back() -> None:
    torch.set_num_threads(7)
    assert in_threads(lambda part: torch.get_num_threads() + part, [10, 20, 30]) == [12, 22, 32]
    assert torch.get_num_threads() == 7
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 7


def test_an_error_in_a_thread_is_raised_when_all_have_ended() -> None:
    ended = []

    def function(part: int) -> None:
        if part == 0:
            raise RuntimeError("out of memory")
        torch.randn(200, 200) @ torch.randn(200, 200)
        ended.append(part)

    with pytest.raises(RuntimeError, match="out of memory"):
        in_threads(function, [0, 1, 2])
    assert sorted(ended) == [1, 2]
    assert torch.get_num_threads() == 3
