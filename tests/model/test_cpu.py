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


@pytest.mark.parametrize("T", [1, cpu.BLOCK, 2 * cpu.BLOCK + 5])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_equals_the_plain_operations(
    config: GPTConfig, n_kv_head: int, T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GPT(replace(config, n_head=2, n_kv_head=n_kv_head, block_size=T))
    torch.manual_seed(0)
    for parameter in net.parameters():  # branches start at zero, and norms at one
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.3)
    tokens = torch.randint(config.vocab_size, (3, T + 1))
    assert cpu.by_hand(torch.zeros(1))
    ours = loss_and_gradients(net, tokens)
    monkeypatch.setattr(cpu, "by_hand", lambda x: False)
    plain = loss_and_gradients(net, tokens)
    assert len(ours) == len(plain) == 1 + len(list(net.parameters()))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_only_in_fp32_on_a_cpu() -> None:
    assert not cpu.by_hand(torch.zeros(1, dtype=torch.bfloat16))
    assert not cpu.by_hand(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu.by_hand(torch.zeros(1))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 999, 11, requires_grad=True)  # not a multiple of four
    out = Dropout(rate)(x)
    kept = out != 0
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=4 * deviation)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-4)
    # Neighbours share a random number, but are independent.
    pairs = (kept.flatten()[1:] & kept.flatten()[:-1]).double().mean()
    assert float(pairs) == pytest.approx((1 - rate) ** 2, abs=6 * deviation)
    (out * 3).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 3 * out.detach())


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
