"""What is written by hand for CPUs equals the plain operations, gradients included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model import cpu
from azllm_lightning.model.gpt import GPT, Dropout


def loss_and_gradients(net: GPT, tokens: Tensor) -> list[Tensor]:
    loss = net(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


def network(config: GPTConfig, n_kv_head: int, T: int) -> tuple[GPT, Tensor]:
    """A network, and texts of T + 1 tokens."""
    net = GPT(replace(config, n_head=2, n_kv_head=n_kv_head, block_size=T))
    torch.manual_seed(0)
    for parameter in net.parameters():  # branches start at zero, and norms at one
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return net, torch.randint(config.vocab_size, (3, T + 1))


@pytest.mark.parametrize("T", [1, cpu.BLOCK, 2 * cpu.BLOCK + 5])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_equals_the_plain_operations(
    config: GPTConfig, n_kv_head: int, T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tokens = network(config, n_kv_head, T)
    assert cpu.by_hand(torch.zeros(1))
    ours = loss_and_gradients(net, tokens)
    monkeypatch.setattr(cpu, "by_hand", lambda x: False)
    plain = loss_and_gradients(net, tokens)
    assert len(ours) == len(plain) == 1 + len(list(net.parameters()))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("T", [2, cpu.BLOCK, 2 * cpu.BLOCK + 5])
def test_bf16_is_as_exact_as_that_of_the_plain_operations(
    config: GPTConfig, T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tokens = network(config, 1, T)
    exact = loss_and_gradients(net, tokens)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = loss_and_gradients(net, tokens)
        assert [x.dtype for x in found] == [x.dtype for x in exact]
        squares = [
            ((x - y).norm() / y.norm()).item() ** 2 for x, y in zip(found, exact, strict=True)
        ]
        return (sum(squares) / len(squares)) ** 0.5

    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.by_hand(torch.zeros(1))
    ours = error()
    monkeypatch.setattr(cpu, "by_hand", lambda x: False)
    assert 0 < ours < 1.25 * error() < 0.1


def test_where_it_is_used() -> None:
    assert not cpu.by_hand(torch.zeros(1, dtype=torch.bfloat16))
    assert not cpu.by_hand(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", torch.float16):
        assert not cpu.by_hand(torch.zeros(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu.by_hand(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_type_train_under_autocast(
    config: GPTConfig, dtype: torch.dtype
) -> None:
    net, tokens = network(config, 1, 5)
    net.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {dtype}


@pytest.mark.parametrize("blocks", [2, 16])
def test_bf16_gradients_of_attention_are_as_exact_for_long_texts(blocks: int) -> None:
    torch.manual_seed(0)
    shape = 2, 2, blocks * cpu.BLOCK, 16
    exact = [torch.randn(shape).bfloat16().double().requires_grad_() for _ in "qkv"]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    g = torch.randn(shape).bfloat16()
    attention = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True)
    expected = torch.autograd.grad(attention, exact, g.double())
    with torch.autocast("cpu", torch.bfloat16):
        out = cpu.attend(*rounded)
    found = torch.autograd.grad(out, rounded, g)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < 6e-3 * theirs.norm()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 999, 11, dtype=dtype, requires_grad=True)  # not a multiple of four
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        out = Dropout(rate)(x)
    assert out.dtype == dtype
    kept = out != 0
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=4 * deviation)
    exact = 1e-4 if dtype == torch.float32 else 2**-8  # of one value
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=exact)
    # Neighbours share a random number, but are independent.
    pairs = (kept.flatten()[1:] & kept.flatten()[:-1]).double().mean()
    assert float(pairs) == pytest.approx((1 - rate) ** 2, abs=6 * deviation)
    values = torch.rand(99_999).to(dtype)  # each is rounded by itself
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        dropped = Dropout(rate)(values)
    scale = dropped.double().sum() / values.double()[dropped != 0].sum()
    assert float(scale) == pytest.approx(1 / (1 - rate), rel=1e-3)
    (out * 3).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 3 * out.detach(), rtol=2 * exact, atol=0)


def test_dropout_repeats_with_the_state_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1001)
    drop = Dropout(0.5)
    state = torch.get_rng_state()
    first = drop(x)
    assert not torch.equal(first, drop(x))
    torch.set_rng_state(state)
    assert torch.equal(first, drop(x))
    assert drop.eval()(x) is x
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    monkeypatch.setattr(cpu, "by_hand", lambda x: False)
    torch.set_rng_state(state)
    assert not torch.equal(first, Dropout(0.5)(x))
