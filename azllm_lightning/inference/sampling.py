"""Generate text with a trained model: token by token, with a KV cache, many texts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.data.cleaning import clean
from azllm_lightning.inference.decoding import CachedDecoder
from azllm_lightning.model.gpt import GPT

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer

NUCLEUS = 1024
"""Most likely tokens tried first for top_p; sorting all takes a quarter of a small model's step."""

SHARES = 2**50
"""Parts that a probability of 1 is divided into; float64 represents such integers exactly."""

UNFINISHED = "\ufffd"
"""What the first bytes of a letter decode to until its last byte is there."""


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str] = "",
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    num_samples: int = 1,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
) -> list[str]:
    """`num_samples` texts that begin with `prompt`, for each of several prompts in order.

    Spaces at the end of a prompt are the model's to write; `stream` says what they mean.
    Several prompts are continued together, and each gets the texts that it would get alone. A text
    ends at end-of-text, before the first `stop` string that the model writes, or after
    max_new_tokens. The other settings are those of `SamplingConfig`; `generate_ids` says what
    happens to long prompts, and `stream` gives the same texts piece by piece.

    Raises ValueError for a setting out of range.
    """
    settings = SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    steps = stream(model, tokenizer, prompt, settings, num_samples, stop)
    return ["".join(pieces) for pieces in zip(*steps, strict=True)]


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    settings: SamplingConfig,
    num_samples: int = 1,
    stop: str | Sequence[str] = (),
) -> Iterator[list[str]]:
    """Yield the new part of each text of `sample`, step by step, beginning with the prompts.

    Prompts and stop strings are cleaned as training text is. There a space belongs to the word that
    follows it, so spaces at the end of a prompt are left out, and mean that its last word is
    complete: what the model writes begins with a space, a mark or a line break, not with a letter.
    Pieces are complete letters, and none is the beginning of a stop string that may still come.
    Like a document in training, a text follows an end-of-text token, which is not part of the
    result.

    Raises ValueError as `sample` does, before the first item is requested.
    """
    # as the text that the model was trained on
    given = [clean(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    prompts = [tokenizer.encode(text.rstrip(" ")) for text in given]
    stops = [clean(text) for text in ([stop] if isinstance(stop, str) else stop)]
    if "" in stops:
        raise ValueError(tr("stop contains an empty string, which would end every text: omit it"))
    starts = [[model.config.eos_id, *ids] for ids in prompts]
    steps = generate_ids(model, starts, settings, num_samples, _barred(tokenizer, given))
    shown = [tokenizer.decode(ids) for ids in prompts for _ in range(num_samples)]
    return _pieces(tokenizer, steps, shown, stops)


def cut_message(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str]) -> str:
    """What to say where a prompt is longer than the context, so that its beginning is not read; ""
    where none is.
    """
    num_tokens = max(
        (len(tokenizer.encode(clean(text).rstrip(" "))) for text in prompts), default=0
    )
    block_size = model.config.block_size
    if num_tokens < block_size:
        return ""
    return tr(
        "the prompt has {tokens:,} tokens and the model's context is {context:,}: only the end "
        "of the prompt is used",
        tokens=num_tokens,
        context=block_size,
    )


def _barred(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    """The tokens that would continue the last word of each prompt, if a space says that it ends."""
    are_complete = [text.endswith(" ") and text.split("\n")[-1].strip() != "" for text in prompts]
    within: list[int] = []
    if any(are_complete):
        starts = [tokenizer.decode([token])[:1] for token in range(tokenizer.vocab_size)]
        within = [i for i, start in enumerate(starts) if start.isalnum() or start == UNFINISHED]
    return [within if is_complete else [] for is_complete in are_complete]


def _pieces(
    tokenizer: Tokenizer, steps: Iterator[list[int | None]], prompts: list[str], stops: list[str]
) -> Iterator[list[str]]:
    ids: list[list[int]] = [[] for _ in prompts]
    shown = [0] * len(prompts)  # characters of each continuation
    running = set(range(len(prompts)))
    yield prompts
    for step in steps:
        pieces = [""] * len(prompts)
        for i in running.copy():
            token = step[i]
            if token is None:
                continue
            ids[i].append(token)
            text = tokenizer.decode(ids[i])
            end, stopped = _showable(text, stops)
            if stopped:
                running.remove(i)
            if end > shown[i]:
                pieces[i] = text[shown[i] : end]
                shown[i] = end
        yield pieces
        if not running:
            return
    yield [
        tokenizer.decode(ids[i])[shown[i] :] if i in running else "" for i in range(len(prompts))
    ]


def _showable(text: str, stops: list[str]) -> tuple[int, bool]:
    """How many characters of `text` may be shown, and whether a stop string ended it."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return min(found), True
    if text.endswith(UNFINISHED):
        return 0, False
    begun = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return len(text) - max(begun, default=0), False


def generate_ids(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    num_samples: int = 1,
    barred: Sequence[Sequence[int]] = (),
) -> Iterator[list[int | None]]:
    """Yield, step by step, the next token of each of `num_samples` samples of each prompt.

    Prompts are lists of token ids, and `barred` lists the tokens that do not follow each at once.
    None stands for a sample that has ended, with end-of-text or after max_new_tokens, or whose
    prompt is still being read; the iteration ends with the last sample. Each sample has its own
    random numbers, so it does not depend on the other samples; the global random state is neither
    read nor changed.

    A prompt longer than block_size loses its beginning. When the context is full, its newer half is
    read again from position 0, and the older half is forgotten.

    Raises ValueError, before the first item is requested, for no samples, no prompts, and ids
    outside the vocabulary.
    """
    if num_samples < 1:
        raise ValueError(
            tr(
                "{key}={value} must be {wanted}",
                key="num_samples",
                value=num_samples,
                wanted=tr("at least 1"),
            )
        )
    if not prompts or not all(prompts):
        raise ValueError(
            tr(
                "there is no token to start from: begin with the end-of-text token, [{eos_id}]",
                eos_id=model.config.eos_id,
            )
        )
    if not all(0 <= token < model.config.vocab_size for prompt in prompts for token in prompt):
        raise ValueError(
            tr(
                "the prompt has tokens outside the model's vocabulary of {vocab_size:,}: is this "
                "the model's tokenizer?",
                vocab_size=model.config.vocab_size,
            )
        )
    return _generate(model, prompts, settings, num_samples, barred or [[] for _ in prompts])


def _generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    num_samples: int,
    barred: Sequence[Sequence[int]],
) -> Iterator[list[int | None]]:
    block_size = model.config.block_size
    eos_id = model.config.eos_id
    device = model.lm_head.weight.device
    rows = [list(prompt[-block_size:]) for prompt in prompts for _ in range(num_samples)]
    first_barred = [own for own in barred for _ in range(num_samples)]
    generators = [own for _ in prompts for own in _generators(settings.seed, num_samples)]
    left = [settings.max_new_tokens] * len(rows)
    # Up to the end of the shortest prompt all are read at once. Then the longer ones are read token
    # by token while the others are continued: all rows are at the same position and need no mask.
    read = min(map(len, rows))
    longest = max(map(len, rows))
    context = torch.tensor([row[:read] for row in rows], device=device)
    decoder = CachedDecoder(model, len(rows), min(block_size, longest + settings.max_new_tokens))
    written = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        written[i, row] = True
    unread = context
    while True:
        logits = decoder.read(unread)
        written[:, eos_id] = False
        if settings.repetition_penalty != 1:
            logits = _penalized(logits, written, settings.repetition_penalty)
        ends = [
            own if read == len(row) else () for own, row in zip(first_barred, rows, strict=True)
        ]
        logits = _without(logits, ends)
        draws = [read >= len(row) and left[i] > 0 for i, row in enumerate(rows)]
        uniform = [
            torch.rand((), generator=generator, dtype=torch.float64).item() if draw else 0.0
            for draw, generator in zip(draws, generators, strict=True)
        ]
        chosen = _choose(logits, settings, torch.tensor(uniform, dtype=torch.float64)).tolist()
        yield [token if draw else None for token, draw in zip(chosen, draws, strict=True)]
        left = [
            0 if draw and token == eos_id else n - draw
            for n, token, draw in zip(left, chosen, draws, strict=True)
        ]
        if not any(left):
            return
        tokens = [
            row[read] if read < len(row) else token for row, token in zip(rows, chosen, strict=True)
        ]
        read += 1
        unread = torch.tensor(tokens, device=device)[:, None]
        written.scatter_(1, unread, True)
        context = torch.cat((context, unread), dim=1)
        if decoder.length == block_size:
            decoder.length = 0
            context = context[:, -((block_size + 1) // 2) :]
            unread = context


def _penalized(logits: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of the `written` tokens (B, V) made smaller."""
    smaller = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(written, smaller, logits)


def _without(logits: Tensor, barred: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) with those of the tokens `barred` in each row at minus infinity."""
    if not any(barred):
        return logits
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for row, tokens in zip(mask, barred, strict=True):
        row[list(tokens)] = True
    return logits.masked_fill(mask.to(logits.device), -torch.inf)


def _generators(seed: int | None, num_samples: int) -> list[torch.Generator]:
    """A random number generator per sample, on the CPU, so that all devices draw the same."""
    root = torch.Generator()
    if seed is None:
        root.seed()
    else:
        root.manual_seed(seed)
    seeds = torch.randint(2**63 - 1, (num_samples,), generator=root).tolist()
    return [torch.Generator().manual_seed(own) for own in seeds]


def _choose(logits: Tensor, settings: SamplingConfig, uniform: Tensor) -> Tensor:
    """One token per row of logits (B, V), as (B,); uniform (B,) in [0, 1) decides which.

    uniform is float64 on the CPU: in float32, the largest numbers below 1 would be rounded to 1,
    and a token chosen that the settings leave out.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / settings.temperature).softmax(dim=-1)
    vocab_size = logits.shape[-1]
    tokens = torch.arange(vocab_size, device=logits.device).expand_as(logits)
    if settings.top_k is not None:
        probabilities, tokens = probabilities.topk(min(settings.top_k, vocab_size))
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    elif settings.top_p is not None:
        all_probabilities = probabilities
        probabilities, tokens = all_probabilities.topk(min(NUCLEUS, vocab_size))
        if (probabilities.sum(dim=-1) < settings.top_p).any():
            probabilities, tokens = all_probabilities.sort(descending=True)
    if settings.top_p is not None:
        shares = _shares(probabilities)
        # 0 for the most likely token, which is therefore always kept.
        before = (shares.cumsum(dim=-1) - shares).double()
        probabilities = probabilities.masked_fill(before >= settings.top_p * SHARES, 0.0)
    if settings.min_p is not None:
        least = settings.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    reached = _shares(probabilities).cumsum(dim=-1).double()
    uniform = uniform.to(logits.device)[:, None]
    drawn = (reached <= uniform * reached[:, -1:]).sum(dim=-1, keepdim=True)
    return tokens.gather(1, drawn.clamp(max=probabilities.shape[-1] - 1))[:, 0]


def _shares(probabilities: Tensor) -> Tensor:
    """Probabilities as integers: a GPU adds them up in any order to the same sum.

    Floating-point `cumsum` on CUDA raises under `torch.use_deterministic_algorithms`.
    """
    return (probabilities.double() * SHARES).long()
