import pytest
import torch

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.model.sampling import generate_ids, sample

PROMPT = [0, 17, 200, 5]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["Şəhərdə yağış yağır. Uşaqlar evə qaçır.", "Bakıda külək əsir."] * 3, vocab_size=300)


def without_cache(model: GPT, ids: list[int], steps: int) -> list[int]:
    """Greedy continuation by whole forward passes, with the same rule for a full context."""
    context, drawn = ids[-model.config.block_size :], []
    for _ in range(steps):
        with torch.no_grad():
            drawn.append(int(model(torch.tensor([context]))[0, -1].argmax()))
        if len(context) == model.config.block_size:
            context = (context + drawn[-1:])[-model.config.block_size // 2 :]
        else:
            context = [*context, drawn[-1]]
    return drawn


def never_ends(model: GPT) -> GPT:
    """End of text gets the logit 0, which is never the largest of 300."""
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_id] = 0.0
    return model


@pytest.mark.parametrize("length", [1, 4, 31, 32, 50])
def test_greedy_equals_greedy_without_cache_past_the_context(model, length):
    model = never_ends(model)
    prompt = torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    found = [ids[0] for ids in generate_ids(model, prompt, max_new_tokens=70, temperature=0)]
    assert found == without_cache(model, prompt, 70)
    assert len(set(found)) > 5


def test_same_seed_same_samples_and_global_state_untouched(model):
    before = torch.get_rng_state()

    def run(seed):
        return list(generate_ids(model, PROMPT, 10, temperature=1.0, seed=seed, num_samples=3))

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)
    assert torch.equal(torch.get_rng_state(), before)


def drawn(model, **settings):
    """The first tokens of 4,000 samples, and the probabilities the model gives."""
    tokens = next(generate_ids(model, PROMPT, 1, num_samples=4000, seed=0, **settings))
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPT]))[0, -1] / settings["temperature"]).softmax(dim=0)
    return torch.bincount(torch.tensor(tokens), minlength=300) / 4000, probabilities


def test_samples_follow_the_probabilities(model):
    for temperature in (0.5, 1.0):
        frequencies, probabilities = drawn(model, temperature=temperature)
        assert (frequencies - probabilities).abs().max() < 0.02
        assert probabilities.max() > 0.05


def test_top_k_keeps_the_k_likeliest(model):
    frequencies, probabilities = drawn(model, temperature=1.0, top_k=4)
    likeliest = probabilities.topk(4)
    assert set(frequencies.nonzero()[:, 0].tolist()) == set(likeliest.indices.tolist())
    assert (frequencies[likeliest.indices] - likeliest.values / likeliest.values.sum()).abs().max() < 0.03


def test_top_p_keeps_the_smallest_set_that_reaches_p(model):
    frequencies, probabilities = drawn(model, temperature=1.0, top_p=0.6)
    order = probabilities.argsort(descending=True)
    needed = int((probabilities[order].cumsum(0) < 0.6).sum()) + 1
    assert 1 < needed < 100
    assert set(frequencies.nonzero()[:, 0].tolist()) <= set(order[:needed].tolist())
    assert frequencies[order[needed - 1]] > 0
    only, _ = drawn(model, temperature=1.0, top_p=1e-9)
    assert only[order[0]] == 1


def test_stops_at_end_of_text_and_each_sample_ends_alone(model):
    steps = list(generate_ids(model, PROMPT, 500, temperature=3.0, seed=0, num_samples=3))
    assert 1 < len(steps) < 500
    ends = [next(t for t, ids in enumerate(steps) if ids[i] == 0) for i in range(3)]
    assert len(set(ends)) > 1
    assert max(ends) == len(steps) - 1
    assert all(ids[i] == 0 for i in range(3) for ids in steps[ends[i] :])


def test_dropout_is_off_while_sampling_and_training_goes_on(model):
    model.train()
    model.model.dropout.p = 0.9
    steps = generate_ids(model, PROMPT, 20, temperature=0)
    first = next(steps)
    steps.close()
    assert model.training
    assert first == next(generate_ids(model.eval(), PROMPT, 20, temperature=0))


def test_texts_begin_with_the_prompt_and_hold_no_end_of_text(model, tokenizer):
    torch.manual_seed(0)
    texts = sample(model, tokenizer, "Şəhərdə", max_new_tokens=40, temperature=3.0, seed=0, num_samples=4)
    assert len(set(texts)) == 4
    assert all(text.startswith("Şəhərdə") and "<|endoftext|>" not in text for text in texts)


@pytest.mark.parametrize("prompt", ["", "Bakıda", "Bakıda " * 20])
def test_texts_follow_an_end_of_text(model, tokenizer, prompt):
    model = never_ends(model)
    prompt_ids = tokenizer.encode(prompt)
    ids = [step[0] for step in generate_ids(model, [0, *prompt_ids], 30, temperature=0)]
    assert sample(model, tokenizer, prompt, 30, temperature=0) == [tokenizer.decode(prompt_ids + ids)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 .* at least 1"),
        ({"num_samples": 0}, "num_samples=0 .* at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 .* at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0 .* at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 .* in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"prompt_ids": []}, r"begin with end of text, \[0\]"),
        ({"prompt_ids": [0, 300]}, "outside the model's vocabulary of 300"),
    ],
)
def test_wrong_settings_are_told_at_the_call(model, settings, message):
    with pytest.raises(ValueError, match=message):
        generate_ids(model, **{"prompt_ids": PROMPT, **settings})
