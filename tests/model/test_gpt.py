import copy
import math
from dataclasses import replace

import pytest
import torch

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.gpt import GPT, attend_in_blocks

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_equals_qwen3_of_transformers(config, n_kv_head, tie):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = replace(
        config, n_kv_head=n_kv_head, tie_embeddings=tie, rope_theta=5000.0, norm_eps=1e-4
    )
    torch.manual_seed(0)
    ours = GPT(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(std=0.1)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            max_position_embeddings=config.block_size,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=tie,
        )
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ids = torch.randint(config.vocab_size, (2, config.block_size))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5


def test_a_token_changes_nothing_before_it(model):
    ids = torch.randint(300, (2, 32))
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 300
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert (before[:, 20:] - after[:, 20:]).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("n_layer", [2, 8])
def test_the_first_loss_is_that_of_an_even_guess(n_layer, tie):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=2048,
        block_size=64,
        n_layer=n_layer,
        n_head=4,
        n_embd=256,
        tie_embeddings=tie,
    )
    ids = torch.randint(2048, (8, 65))
    with torch.no_grad():
        loss = GPT(config)(ids[:, :-1], ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(2048), abs=0.2)


def test_the_start(config):
    torch.manual_seed(0)
    state = GPT(replace(config, n_layer=8)).state_dict()
    for name, weight in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert (weight == 0).all(), name
        elif weight.dim() == 2:
            assert weight.std() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (weight == 1).all(), name


@pytest.mark.parametrize("T", [1, 100, 128, 129, 300])
def test_attention_in_blocks_is_attention(T):
    q, k, v = (
        torch.randn(3, 2, 4, T, 16, generator=torch.Generator().manual_seed(0))
        .requires_grad_()
        .unbind()
    )
    ours = attend_in_blocks(q, k, v)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs)
    for mine, its in zip(
        *(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


def test_dropout_only_in_training(config):
    torch.manual_seed(0)
    model = GPT(replace(config, dropout=0.5))
    ids = torch.randint(300, (2, 32))
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_too_many_tokens_are_refused(model):
    with pytest.raises(ValueError, match="33 tokens do not fit the model's block_size=32"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_losses_agree_with_the_logits(model):
    ids = torch.randint(300, (2, 33))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        nll = model(inputs, labels, reduction="none")
        expected = -model(inputs).log_softmax(dim=-1).gather(2, labels[:, :, None])[:, :, 0]
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(model(inputs, labels), expected.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_loss_and_gradients_close(model, dtype):
    ids = torch.randint(300, (4, 33))
    losses, gradients = [], []
    for enabled in (False, True):
        net = copy.deepcopy(model)
        residual = []
        net.model.norm.register_forward_pre_hook(lambda _, x, to=residual: to.append(x[0].dtype))
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = net(ids[:, :-1], ids[:, 1:])
        assert residual == [torch.float32]
        loss.backward()
        assert loss.dtype == torch.float32
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*losses, rtol=0.01, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_half_precision_weights_work(model):
    ids = torch.randint(300, (2, 32))
    with torch.no_grad():
        expected = model(ids)
        found = model.bfloat16()(ids)
    assert found.dtype == torch.bfloat16
    assert torch.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_compiles_whole_and_in_place(model):
    ids = torch.randint(300, (4, 33))
    eager = model(ids[:, :-1], ids[:, 1:])
    eager.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    names = list(model.state_dict())
    model.zero_grad()
    model.compile(fullgraph=True)
    loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    torch.testing.assert_close(loss, eager)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        nll = model(ids[:, :-1], ids[:, 1:], reduction="none")
    torch.testing.assert_close(nll.mean(), eager)
    assert list(model.state_dict()) == names
