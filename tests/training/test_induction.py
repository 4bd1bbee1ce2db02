"""Attention that can continue at the start what a text repeats, and when a run has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.gpt import GPT, attend, norm_and_rotate
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.induction import induction_heads

pytestmark = pytest.mark.numerics

VOCAB = 500
BLOCK = 96

SHAPES = {
    "tied": {"n_embd": 128, "n_head": 4, "tie_embeddings": True},
    "not tied": {"n_embd": 128, "n_head": 4},
    "one head": {"n_embd": 64, "n_head": 1},
    "shared keys": {"n_embd": 192, "n_head": 6, "n_kv_head": 2},
    "wide heads": {"n_embd": 256, "n_head": 2},
    "other wavelengths": {"n_embd": 128, "n_head": 2, "rope_theta": 1_000_000.0},
}


def net_of(start: bool = True, scale: float = 1.0, **shape: object) -> GPT:
    """A model whose embeddings are `scale` times as long as they are at random."""
    sizes = {"n_layer": 3, "vocab_size": VOCAB, "block_size": BLOCK, **shape}
    config = GPTConfig(**sizes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = GPT(config).eval()
    with torch.no_grad():
        net.model.embed_tokens.weight.mul_(scale)
    if start:
        induction_heads(net, torch.Generator().manual_seed(1))
    return net


@torch.no_grad()
def advantage(net: GPT) -> float:
    """How far above those of other tokens the logit of the right token is, where random tokens
    are repeated, in standard deviations; the current token, which is similar to itself, left out.
    """
    generator = torch.Generator().manual_seed(2)
    found = []
    for period in (5, 23, 47) * 8:
        tokens = torch.randperm(VOCAB, generator=generator)[:period]
        text = tokens.repeat(BLOCK // period + 2)[: BLOCK + 1]
        logits = net(text[None, :-1])[0, period:]
        logits[torch.arange(len(logits)), text[period:-1]] = torch.nan
        mean, deviation = logits.nanmean(dim=1), (logits - logits.nanmean(1, True)).square()
        right = logits[torch.arange(len(logits)), text[period + 1 :]]
        found.append((right - mean) / deviation.nanmean(dim=1).sqrt())
    return float(torch.cat(found).mean())


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_a_model_predicts_what_came_after_the_same_token(shape: str, scale: float) -> None:
    assert advantage(net_of(scale=scale, **SHAPES[shape])) > 1.0
    assert abs(advantage(net_of(start=False, scale=scale, **SHAPES[shape]))) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_first_head_looks_at_the_place_before(shape: str) -> None:
    net = net_of(**SHAPES[shape])
    text = torch.randint(VOCAB, (1, BLOCK), generator=torch.Generator().manual_seed(3))
    attention = net.model.layers[0].self_attn
    x = net.model.layers[0].input_layernorm(net.model.embed_tokens(text))
    heads = (1, BLOCK, -1, attention.head_dim)
    q, k = attention.q_proj(x).view(heads), attention.k_proj(x).view(heads)
    q = norm_and_rotate(q, attention.q_norm, net.model.cos, net.model.sin)[:, :1]
    k = norm_and_rotate(k, attention.k_norm, net.model.cos, net.model.sin)[:, :1]
    # Each place has itself as its value, so that the result is its weight in the sum.
    looked = torch.stack(
        [
            attend(q, k, place.expand(1, 1, -1, attention.head_dim).contiguous())[0, :, 0, 0]
            for place in torch.eye(BLOCK)[:, :, None]
        ],
        dim=1,
    )
    assert looked[torch.arange(1, BLOCK), torch.arange(BLOCK - 1)].min() > 0.5


def test_all_other_weights_stay() -> None:
    before = net_of(start=False, **SHAPES["shared keys"]).state_dict()
    after = net_of(**SHAPES["shared keys"]).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_attention = {f"self_attn.{x}_proj.weight" for x in "qkvo"}
    of_attention |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    expected = {f"model.layers.{i}.{name}" for i in (0, 1) for name in of_attention}
    assert changed == expected | {"model.embed_tokens.weight", "lm_head.weight"}
    for name in sorted(expected):
        rows = before[name] != after[name]
        if name.endswith("o_proj.weight"):
            assert not rows[:, 32:].any()
        else:
            assert not rows[32:].any()


def test_embeddings_only_get_a_direction_in_common() -> None:
    """So what neighbors say of tokens stays."""
    shape = SHAPES["tied"]
    difference = (
        net_of(**shape).model.embed_tokens.weight
        - net_of(start=False, **shape).model.embed_tokens.weight
    )
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 1


@pytest.mark.parametrize("size", ["n_layer", "block_size"])
def test_a_model_of_one_layer_or_of_one_token_stays_as_it_is(size: str) -> None:
    shape = {**SHAPES["tied"], size: 1}
    before, after = (net_of(start, **shape).state_dict() for start in (False, True))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("n_head", [2, 4, 8])
def test_narrow_heads_are_finite(n_head: int) -> None:
    net = net_of(n_embd=16, n_head=n_head)
    assert net(torch.arange(BLOCK)[None]).isfinite().all()


def test_the_losses_of_a_text_without_repetitions_are_those_of_chance() -> None:
    """The first predictions are not sure of anything wrong."""
    for name, shape in SHAPES.items():
        for scale in (1.0, 20.0) if not shape.get("tie_embeddings") else (1.0,):
            text = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(4))[: BLOCK + 1]
            with torch.no_grad():
                loss = net_of(scale=scale, **shape)(text[None, :-1], text[None, 1:])
            assert abs(loss - torch.tensor(float(VOCAB)).log()) < 0.3, name


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of each fit, as it begins."""
    weights: list[dict[str, Tensor]] = []

    def started(self: CausalLM) -> None:
        weights.append({name: x.clone() for name, x in self.net.state_dict().items()})
        starting(self)

    starting = CausalLM.on_train_start
    monkeypatch.setattr(CausalLM, "on_train_start", started)
    return weights


def test_a_run_starts_so_and_a_resume_does_not(
    first_weights: list[dict[str, Tensor]],
    train_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def noted(self: CausalLM) -> None:
        calls.append(self)
        starting(self)

    starting = CausalLM.start_with_induction
    monkeypatch.setattr(CausalLM, "start_with_induction", noted)
    two = "model.n_layer=2"
    folder = train_tiny(two, "trainer.max_steps=2").absolute()
    train_tiny("ckpt_path=last", "trainer.max_steps=3", "init_attention=random")
    said = capsys.readouterr().err + caplog.text
    assert "init_attention: no effect, since ckpt_path gives all weights" in said
    train_tiny(two, "trainer.max_steps=1", f"init_from={folder}", "run_name=davam")
    assert len(calls) == 1
    train_tiny(two, "trainer.max_steps=1", "run_name=again")
    train_tiny(two, "trainer.max_steps=1", "run_name=random", "init_attention=random")
    first, _, _, again, random = first_weights
    assert len(calls) == 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert first[name].any()
    assert not random[name].any()


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init_attention=copy .*induction, random"):
        compose(["init_attention=copy"])
