"""Text from a trained model: one token at a time, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from azllm_lightning.model.gpt import GPT, KVCache

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    num_samples: int = 1,
) -> list[str]:
    """`num_samples` texts that begin with `prompt`; the settings are those of `generate_ids`.

    A text starts as documents do in training, after an end-of-text token, which is not part of what comes back.
    Raises ValueError as `generate_ids` does.
    """
    prompt_ids = tokenizer.encode(prompt)
    steps = generate_ids(
        model, [model.config.eos_id, *prompt_ids], max_new_tokens, temperature, top_k, top_p, seed, num_samples
    )
    texts = [list(prompt_ids) for _ in range(num_samples)]
    running = set(range(num_samples))
    for ids in steps:
        running -= {i for i in running if ids[i] == model.config.eos_id}
        for i in running:
            texts[i].append(ids[i])
    return [tokenizer.decode(text) for text in texts]


def generate_ids(
    model: GPT,
    prompt_ids: list[int],
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    num_samples: int = 1,
) -> Iterator[list[int]]:
    """Yield the tokens that follow `prompt_ids`, one id for each sample at each step, as they are drawn.

    temperature divides the logits, and at 0 the likeliest token is taken. top_k leaves the k likeliest tokens;
    of those top_p leaves the likeliest whose probabilities first reach p together (arXiv:1904.09751). The same
    seed gives the same samples on the same device; None draws others each time. The global random state is
    neither read nor changed.

    A sample that has ended repeats end of text, and the iteration ends with the last of them. A prompt longer
    than block_size loses its beginning; when the context is full, the newer half of it is read anew, from
    position 0, and the older half is forgotten.

    Raises ValueError, at the call, for settings out of range and for token ids outside the vocabulary.
    """
    vocab_size = model.config.vocab_size
    for name, value, right, bounds in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("num_samples", num_samples, num_samples >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "at least 0 (0 takes the likeliest token)"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1, or null for all tokens"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "in (0, 1], or null for all tokens"),
    ):
        if not right:
            raise ValueError(f"{name}={value} is out of range: it must be {bounds}")
    if not prompt_ids:
        raise ValueError(f"there is no token to start from: begin with end of text, [{model.config.eos_id}]")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise ValueError(
            f"the prompt has tokens outside the model's vocabulary of {vocab_size}: is this its tokenizer?"
        )
    return _generate(model, prompt_ids, max_new_tokens, temperature, top_k, top_p, seed, num_samples)


@torch.inference_mode()
def _generate(
    model: GPT,
    prompt_ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    num_samples: int,
) -> Iterator[list[int]]:
    block_size, eos_id = model.config.block_size, model.config.eos_id
    device = model.lm_head.weight.device
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    context = torch.tensor([prompt_ids[-block_size:]] * num_samples, device=device)
    cache = KVCache(min(block_size, context.shape[1] + max_new_tokens))
    ended = torch.zeros(num_samples, dtype=torch.bool, device=device)
    was_training = model.training
    model.eval()
    try:
        unread = context
        for _ in range(max_new_tokens):
            logits = model.lm_head(model.hidden(unread, cache)[:, -1]).float()
            token = _choose(logits, temperature, top_k, top_p, generator).masked_fill(ended, eos_id)
            ended = ended | (token == eos_id)
            yield token.tolist()
            if ended.all():
                return
            context = torch.cat((context, token[:, None]), dim=1)
            if cache.length == block_size:
                cache = KVCache(block_size)
                context = context[:, -((block_size + 1) // 2) :]
                unread = context
            else:
                unread = context[:, -1:]
    finally:
        model.train(was_training)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token for each row of logits (B, V), as (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is None and top_p is None:
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    vocab_size = logits.shape[-1]
    logits, tokens = logits.topk(min(top_k or vocab_size, vocab_size))
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the likeliest, which therefore always stays
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(1, drawn)[:, 0]
