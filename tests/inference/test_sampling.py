import pytest
import torch

from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.inference import sampling
from azllm_lightning.inference.sampling import generate_ids, sample, stream
from azllm_lightning.model.gpt import GPT

pytestmark = pytest.mark.numerics

PROMPT = [0, 17, 200, 5]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        ["Şəhərdə yağış yağır. Uşaqlar evə qaçır.", "Bakıda külək əsir."] * 3, vocab_size=300
    )


def ids_of(model, prompt, num_samples=1, **settings):
    """The steps of `generate_ids` for one prompt."""
    return generate_ids(model, [prompt], SamplingConfig(**settings), num_samples)


def without_cache(model: GPT, ids: list[int], steps: int) -> list[int]:
    """Greedy continuation by complete forward passes, with the same rule for a full context."""
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
    prompt = torch.randint(
        1, 300, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
    found = [ids[0] for ids in ids_of(model, prompt, max_new_tokens=70, temperature=0)]
    assert found == without_cache(model, prompt, 70)
    assert len(set(found)) > 5


def test_same_seed_same_samples_and_global_state_untouched(model):
    before = torch.get_rng_state()

    def run(seed):
        return list(ids_of(model, PROMPT, 3, max_new_tokens=10, temperature=1.0, seed=seed))

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)
    assert torch.equal(torch.get_rng_state(), before)


def drawn(model, **settings):
    """The first tokens of 4,000 samples, and the probabilities the model gives."""
    tokens = next(ids_of(model, PROMPT, 4000, seed=0, **settings))
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPT]))[0, -1] / settings["temperature"]).softmax(
            dim=0
        )
    return torch.bincount(torch.tensor(tokens), minlength=300) / 4000, probabilities


def test_samples_follow_the_probabilities(model):
    for temperature in (0.5, 1.0):
        frequencies, probabilities = drawn(model, temperature=temperature)
        assert (frequencies - probabilities).abs().max() < 0.02
        assert probabilities.max() > 0.05


def test_top_k_keeps_the_k_most_likely(model):
    frequencies, probabilities = drawn(model, temperature=1.0, top_k=4)
    likeliest = probabilities.topk(4)
    assert set(frequencies.nonzero()[:, 0].tolist()) == set(likeliest.indices.tolist())
    assert (
        frequencies[likeliest.indices] - likeliest.values / likeliest.values.sum()
    ).abs().max() < 0.03


def test_top_p_keeps_the_smallest_set_that_reaches_p(model):
    frequencies, probabilities = drawn(model, temperature=1.0, top_p=0.6)
    order = probabilities.argsort(descending=True)
    needed = int((probabilities[order].cumsum(0) < 0.6).sum()) + 1
    assert 1 < needed < 100
    assert set(frequencies.nonzero()[:, 0].tolist()) <= set(order[:needed].tolist())
    assert frequencies[order[needed - 1]] > 0
    only, _ = drawn(model, temperature=1.0, top_p=1e-9)
    assert only[order[0]] == 1


def test_top_p_counts_within_top_k(model):
    frequencies, probabilities = drawn(model, temperature=1.0, top_k=4, top_p=0.6)
    likeliest = probabilities.topk(4)
    needed = int((likeliest.values.cumsum(0) < 0.6 * likeliest.values.sum()).sum()) + 1
    assert needed < int((likeliest.values.cumsum(0) < 0.6).sum()) + 1
    assert set(frequencies.nonzero()[:, 0].tolist()) == set(likeliest.indices[:needed].tolist())


@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_top_p_among_the_most_likely_equals_that_of_the_full_vocabulary(model, monkeypatch, top_p):
    full = next(ids_of(model, PROMPT, 200, temperature=1.0, top_p=top_p, seed=0))
    monkeypatch.setattr(sampling, "NUCLEUS", 10)  # of 300
    assert next(ids_of(model, PROMPT, 200, temperature=1.0, top_p=top_p, seed=0)) == full


def test_stops_at_end_of_text_and_each_sample_ends_alone(model):
    steps = list(ids_of(model, PROMPT, 3, max_new_tokens=500, temperature=3.0, seed=0))
    assert 1 < len(steps) < 500
    ends = [next(t for t, ids in enumerate(steps) if ids[i] == 0) for i in range(3)]
    assert len(set(ends)) > 1
    assert max(ends) == len(steps) - 1
    assert all(ids[i] is None for i in range(3) for ids in steps[ends[i] + 1 :])


def test_dropout_is_off_while_sampling_and_training_goes_on(model):
    model.train()
    model.model.dropout.p = 0.9
    steps = ids_of(model, PROMPT, temperature=0)
    first = next(steps)
    steps.close()
    assert model.training
    assert first == next(ids_of(model.eval(), PROMPT, temperature=0))


def test_texts_begin_with_the_prompt_and_hold_no_end_of_text(model, tokenizer):
    torch.manual_seed(0)
    texts = sample(
        model, tokenizer, "Şəhərdə", max_new_tokens=40, temperature=3.0, seed=0, num_samples=4
    )
    assert len(set(texts)) == 4
    assert all(text.startswith("Şəhərdə") and "<|endoftext|>" not in text for text in texts)


@pytest.mark.parametrize("prompt", ["", "Bakıda", "Bakıda" + " Bakıda" * 19])
def test_texts_follow_an_end_of_text(model, tokenizer, prompt):
    model = never_ends(model)
    prompt_ids = tokenizer.encode(prompt)
    ids = [step[0] for step in ids_of(model, [0, *prompt_ids], max_new_tokens=30, temperature=0)]
    assert sample(model, tokenizer, prompt, 30, temperature=0) == [
        tokenizer.decode(prompt_ids + ids)
    ]


def test_min_p_keeps_what_is_likely_enough(model):
    frequencies, probabilities = drawn(model, temperature=1.0, min_p=0.3)
    likely = probabilities >= 0.3 * probabilities.max()
    assert 1 < likely.sum() < 30
    assert torch.equal(frequencies > 0, likely)
    only, _ = drawn(model, temperature=1.0, min_p=1.0)
    assert only[probabilities.argmax()] == 1


def test_a_penalty_on_repetition(model):
    """Greedy tokens are those of logits that were made smaller by hand; 1.0 changes nothing."""
    model = never_ends(model)
    written, expected = list(PROMPT), []
    for _ in range(20):
        with torch.no_grad():
            logits = model(torch.tensor([written]))[0, -1]
        for token in set(written) - {model.config.eos_id}:
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        expected.append(int(logits.argmax()))
        written.append(expected[-1])
    plain, penalised = (
        [
            ids[0]
            for ids in ids_of(
                model, PROMPT, max_new_tokens=20, temperature=0, repetition_penalty=penalty
            )
        ]
        for penalty in (1.0, 1.5)
    )
    assert penalised == expected
    assert plain != penalised
    assert plain == without_cache(model, PROMPT, 20)


def test_no_penalty_on_the_end_of_a_text(model):
    """PROMPT begins with end of text; a text would not end where the model is sure that it does."""
    with torch.no_grad():
        likeliest = int(model(torch.tensor([PROMPT]))[0, -1].argmax())
        model.lm_head.weight[0] = 1.2 * model.lm_head.weight[likeliest]
    assert next(ids_of(model, PROMPT, temperature=0, repetition_penalty=5.0)) == [0]


PROMPTS = ["Şəhərdə yağış", "", "Bakıda ", "Uşaqlar evə qaçır. Bakıda külək əsir. " * 3]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_prompts_together_give_what_each_gives_alone(model, tokenizer, temperature):
    """Past the context (32) too, and with prompts longer than it."""
    choices = {
        "temperature": temperature,
        "seed": 5,
        "num_samples": 2,
        "repetition_penalty": 1.2,
        "top_p": 0.95,
    }
    together = sample(model, tokenizer, PROMPTS, 60, **choices)
    assert together == [
        text for prompt in PROMPTS for text in sample(model, tokenizer, prompt, 60, **choices)
    ]
    assert len(set(together)) == (8 if temperature else 4)


def test_a_sample_does_not_depend_on_the_other_samples(model, tokenizer):
    several = sample(model, tokenizer, "Bakı", 30, seed=5, num_samples=4)
    assert several[:2] == sample(model, tokenizer, "Bakı", 30, seed=5, num_samples=2)


def test_stop_strings_end_the_text_before_them(model, tokenizer):
    full = sample(model, tokenizer, "Bakıda", 60, seed=1)[0]
    written = full.removeprefix("Bakıda")
    stop = written[20:23]
    assert sample(model, tokenizer, "Bakıda", 60, seed=1, stop=stop) == [
        "Bakıda" + written[: written.index(stop)]
    ]
    assert (
        sample(model, tokenizer, "Bakıda", 60, seed=1, stop=["yoxdur", stop, written[-2:]])[0]
        in full
    )
    assert sample(
        model, tokenizer, "Bakıda", 60, seed=1, stop=["Bakıda", written[-3:] + "yoxdur"]
    ) == [full]
    new = next(i for i in range(5, len(written)) if written.index(written[i]) == i)
    both = [
        written[new],
        written[new - 1 : new + 1],
    ]  # complete at the same time: the one that begins first counts
    assert sample(model, tokenizer, "Bakıda", 60, seed=1, stop=both) == [
        "Bakıda" + written[: new - 1]
    ]
    with pytest.raises(ValueError, match="stop contains an empty string"):
        sample(model, tokenizer, stop=["a", ""])


def test_pieces_show_no_part_of_a_stop_string(model, tokenizer):
    """What is held back as the possible beginning of a stop string comes out once it is none."""
    settings = SamplingConfig(max_new_tokens=60, seed=2, temperature=1.5)
    full = sample(model, tokenizer, "Bakı", 60, 1.5, seed=2)[0]
    for start in range(4, len(full) - 6):
        stop = [full[start : start + 6], full[start + 1 : start + 3] + "yox"]
        if not stop[0].isprintable():
            continue  # a control, which no text has that a model is trained on
        end = full.index(stop[0], 4)
        shown = ""
        for (piece,) in stream(model, tokenizer, "Bakı", settings, stop=stop):
            shown += piece
            assert len(shown) <= end
        assert shown == full[:end]


@pytest.mark.parametrize("draw", [1 - 2**-40, 1 - 2**-53])
@pytest.mark.parametrize("settings", [{"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 50, "top_p": 0.6}])
def test_the_largest_draw_takes_the_last_token_that_is_kept(model, monkeypatch, settings, draw):
    frequencies, probabilities = drawn(model, temperature=1.0, **settings)
    kept = frequencies.nonzero()[:, 0]
    last = kept[probabilities[kept].argmin()] if "top_p" in settings else kept[-1]
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.tensor(draw, dtype=dtype))
    assert next(ids_of(model, PROMPT, temperature=1.0, seed=0, **settings)) == [int(last)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"prompt": []}, r"begin with the end-of-text token, \[0\]"),
        ({"prompt": [0, 300]}, "outside the model's vocabulary of 300"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        ids_of(model, **{"prompt": PROMPT, **arguments})


def test_prompts_and_stops_are_cleaned_as_training_text_is(model, tokenizer):
    clean = sample(model, tokenizer, "Bakı şəhəri", 40, seed=1)[0]
    typed = "B\u0430k\u00adı\u00a0ş\u04d9h\u0259\u200br\u0456"  # Cyrillic а, ә, і; a soft hyphen
    assert sample(model, tokenizer, typed, 40, seed=1)[0] == clean
    stop = clean.removeprefix("Bakı şəhəri")[10:14]
    stopped = sample(model, tokenizer, typed, 40, seed=1, stop=f"\u200b{stop}\u00ad")[0]
    assert stopped == sample(model, tokenizer, "Bakı şəhəri", 40, seed=1, stop=stop)[0]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 40, "top_p": 0.9}])
def test_samples_are_those_of_a_floating_point_sum(model, settings, monkeypatch):
    """Probabilities are added up as integers, which are fine enough."""
    logits = 3 * torch.randn(2000, 300, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(sampling.CachedDecoder, "read", lambda self, ids: logits)
    ours = next(ids_of(model, PROMPT, 2000, temperature=1.0, seed=0, **settings))
    monkeypatch.setattr(sampling, "SHARES", 1.0)
    monkeypatch.setattr(torch.Tensor, "long", lambda self: self)
    assert next(ids_of(model, PROMPT, 2000, temperature=1.0, seed=0, **settings)) == ours
    assert len(set(ours)) > 50


def test_spaces_after_a_prompt_are_written_by_the_model(model, tokenizer):
    """In training a space belongs to the next word; alone it would be followed by half a word."""
    settings = {"max_new_tokens": 20, "temperature": 0}
    model = never_ends(model)
    # A token within a word is the likeliest, then one that begins a word.
    (within,) = tokenizer.encode("r")
    word = next(
        i
        for i in range(300)
        if tokenizer.decode([i])[:2].strip(" ").isalpha() and tokenizer.decode([i]).startswith(" ")
    )
    with torch.no_grad():
        context = torch.tensor([[0, *tokenizer.encode("Bakıda")]])
        likeliest = int(model(context)[0, -1].argmax())
        strong = model.lm_head.weight[likeliest].clone()
        model.lm_head.weight[within] = 1.5 * strong
        model.lm_head.weight[word] = 1.25 * strong
    assert sample(model, tokenizer, "Bakıda", **settings)[0].startswith("Bakıdar")
    spaced = sample(model, tokenizer, "Bakıda ", **settings)[0]
    assert spaced.startswith("Bakıda" + tokenizer.decode([word]))
    assert sample(model, tokenizer, "Bakıda  \u00a0", **settings)[0] == spaced
    # Nothing is complete where a text or a line begins, and line breaks stay.
    assert sample(model, tokenizer, "  ", **settings) == sample(model, tokenizer, "", **settings)
    for end in ("\n", "\n  "):
        text = sample(model, tokenizer, f"Bakıda.{end}", **settings)[0]
        assert text == sample(model, tokenizer, "Bakıda.\n", **settings)[0]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_what_follows_a_space_is_no_letter(model, tokenizer, temperature):
    texts = sample(model, tokenizer, ["Bakıda ", "Bakıda"], 3, temperature, seed=0, num_samples=50)
    after = [text.removeprefix("Bakıda")[:1] for text in texts]
    assert not any(char.isalnum() for char in after[:50])
    if temperature:
        assert any(char.isalnum() for char in after[50:])
