from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from azllm_lightning.inference import decoding
from azllm_lightning.inference.decoding import CachedDecoder
from azllm_lightning.model.gpt import GPT

pytestmark = pytest.mark.numerics


def randomised(config, **changes) -> GPT:
    """A model in whose every weight a mistake would show, norms and all."""
    torch.manual_seed(0)
    model = GPT(replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("large", [0, decoding.LARGE])
@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("prompt", [1, 7, 32])
@pytest.mark.parametrize(("n_kv_head", "tie"), [(1, True), (2, False), (4, True)])
def test_logits_are_those_of_the_model(config, n_kv_head, tie, prompt, texts, large, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", large)
    model = randomised(config, n_kv_head=n_kv_head, tie_embeddings=tie, norm_eps=1e-2)
    ids = torch.randint(300, (texts, 32))
    decoder = CachedDecoder(model, texts, 32)
    found = [decoder.read(ids[:, :prompt])] + [
        decoder.read(ids[:, t : t + 1]) for t in range(prompt, 32)
    ]
    with torch.no_grad():
        expected = model(ids)[:, prompt - 1 :]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5
    assert decoder.length == 32


@pytest.mark.parametrize("vectors", [1, 8, 9])
@pytest.mark.parametrize(("rows", "parts"), [(30, 3), (4, 2), (7, 1)])
def test_a_large_matrix_is_read_in_parts(rows, parts, vectors, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    products, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: products.append(args) or bmm(*args))
    linear = torch.nn.Linear(5, rows, bias=False)
    matrix, x = decoding._Matrix(linear), torch.randn(1, vectors, 5)
    torch.testing.assert_close(matrix(x), linear(x).detach())
    assert [len(weight) for weight, _ in products] == (
        [parts] if parts > 1 and vectors <= 8 else []
    )


def test_length_zero_starts_new_texts(model):
    ids = torch.randint(300, (2, 12))
    decoder = CachedDecoder(model, 2, 16)
    for part in (ids[:, :10], ids[:, 10:11], ids[:, 11:]):
        decoder.read(part)
    decoder.length = 0
    with torch.no_grad():
        torch.testing.assert_close(
            decoder.read(ids[:, 5:]), model(ids[:, 5:])[:, -1], rtol=0, atol=1e-5
        )


def test_no_dropout_and_no_gradients(config):
    model = randomised(config, dropout=0.5).train()
    ids = torch.randint(300, (2, 8))
    logits = CachedDecoder(model, 2, 8).read(ids)
    assert not logits.requires_grad
    assert model.training
    torch.testing.assert_close(logits, model.eval()(ids)[:, -1].detach(), rtol=0, atol=1e-5)


def test_half_precision_weights(model):
    ids = torch.randint(300, (2, 12))
    with torch.no_grad():
        expected = model(ids)[:, -1]
    decoder = CachedDecoder(model.bfloat16(), 2, 12)
    decoder.read(ids[:, :11])
    found = decoder.read(ids[:, 11:])
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


def test_the_model_is_left_as_it_was(model):
    """Sampling in the middle of training must change neither weights nor how they lie in memory."""
    before = {
        name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()
    }
    CachedDecoder(model, 1, 8).read(torch.randint(300, (1, 8)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]), name
        assert tensor.stride() == before[name][1], name


def test_one_thread_attends_to_little_and_all_to_much(model, monkeypatch):
    counts, attention = [], F.scaled_dot_product_attention

    def counting(*args, **kwargs):
        counts.append(torch.get_num_threads())
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(
        decoding, "ONE_THREAD", 2 * 10 * 16
    )  # keys of ten tokens, 2 heads of 16 each
    decoder, before = CachedDecoder(model, 1, 16), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        decoder.read(torch.randint(300, (1, 8)))
        for _ in range(2):
            decoder.read(torch.randint(300, (1, 1)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert counts == [1, 1, 2, 2]  # two layers each: the ninth token, the tenth


def test_more_tokens_than_the_cache_holds(model):
    decoder = CachedDecoder(model, 1, 8)
    decoder.read(torch.randint(300, (1, 8)))
    with pytest.raises(AssertionError, match="9 tokens do not fit a cache of 8"):
        decoder.read(torch.randint(300, (1, 1)))
