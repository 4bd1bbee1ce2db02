"""What a model writes by itself: whether its words exist, and how far it repeats itself or recites.

The same is measured on held-out text, of the same number and length, which shows what is usual:
people repeat words, too, and common phrases are in any text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from azllm_lightning.azerbaijani.analyser import is_word
from azllm_lightning.azerbaijani.morphology import lower
from azllm_lightning.azerbaijani.tales import words
from azllm_lightning.cli.messages import tr
from azllm_lightning.data.progress import Progress
from azllm_lightning.data.shards import CHUNK_TOKENS, Manifest, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.optional import import_optional
from azllm_lightning.inference.memorization import SuffixAutomaton
from azllm_lightning.inference.sampling import sample
from azllm_lightning.inference.tables import table

if TYPE_CHECKING:
    from azllm_lightning.model.gpt import GPT

NUM_SAMPLES = 32
MAX_NEW_TOKENS = 256
TEMPERATURE = 0.8
SEED = 0

RECITED_CHARS = 100
"""Stretches of training text that are at least this long, about 13 words, count as recited."""

_MAX_UNKNOWN = 10
_MAX_SHOWN = 160
_NGRAMS = (2, 4)


class Stretches(NamedTuple):
    """The parts of a text that are in the training text, and the share of its tokens in those of
    RECITED_CHARS or more.
    """

    parts: list[str]
    recited: float

    @property
    def longest(self) -> int:
        """Characters in the longest part; 0 if there is none."""
        return max(map(len, self.parts), default=0)


def own_samples(model: GPT, tokenizer: Tokenizer) -> list[str]:
    """NUM_SAMPLES texts of our own model without a prompt, always the same ones."""
    return sample(
        model,
        tokenizer,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=SEED,
        num_samples=NUM_SAMPLES,
    )


def hf_length(model: Any, start: list[int]) -> int:
    """MAX_NEW_TOKENS, or as many as the context of a model of transformers has after `start`."""
    config = model.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None)
    return min(MAX_NEW_TOKENS, context - len(start)) if context else MAX_NEW_TOKENS


@torch.inference_mode()
def hf_samples(model: Any, tokenizer: Any, start: list[int], max_new_tokens: int) -> list[str]:
    """The same of a model of transformers, after its start token."""
    prompt = torch.tensor([start] * NUM_SAMPLES, device=model.device)
    # What the model's own configuration sets beside, as a penalty or beams, would sample otherwise.
    eos = model.generation_config.eos_token_id
    config = import_optional("transformers").GenerationConfig
    model.generation_config = config(eos_token_id=eos, pad_token_id=start[0])
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        ids = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
        )
    texts: list[str] = tokenizer.batch_decode(ids[:, len(start) :], skip_special_tokens=True)
    return texts


def sample_results(
    texts: Sequence[str], folder: Path | None, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """The figures of `texts`, and those of held-out text if the prepared data in `folder` is given.

    `max_new_tokens` is their largest length. Without `folder`, words are judged by the morphology
    alone, and nothing is compared with the training text.
    """
    settings = {
        "samples": len(texts),
        "max_new_tokens": max_new_tokens,
        "temperature": TEMPERATURE,
        "seed": SEED,
        "training_text": None if folder is None else str(folder),
        "data_fingerprint": None if folder is None else Manifest.read(folder).fingerprint,
    }
    if folder is None:
        return {**settings, "figures": _figures(texts, None, None), "held_out": None}
    tokenizer = Tokenizer.from_file(folder)
    held_out = _held_out(folder, tokenizer, tokenizer.encode_batch(texts))
    both = [*texts, *held_out]
    seen, stretches = _compared(folder, tokenizer, both)
    count = len(texts)
    return {
        **settings,
        "figures": _figures(texts, seen, stretches[:count]),
        "held_out": _figures(held_out, seen, stretches[count:]),
    }


def _held_out(folder: Path, tokenizer: Tokenizer, samples: list[list[int]]) -> list[str]:
    """Beginnings of validation documents, cut to as many tokens as the samples have."""
    shards = TokenShards.open(folder, "val", tokenizer)
    tokens = shards.read(0, min(len(shards), CHUNK_TOKENS))
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.eot_id) + 1)[:-1]
    step = max(1, len(documents) // max(1, len(samples)))
    chosen = islice((ids for ids in documents[::step] if len(ids) > 1), len(samples))
    pairs = zip(chosen, samples, strict=False)
    return [tokenizer.decode(ids[: len(own)].tolist()) for ids, own in pairs]


def _compared(
    folder: Path, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[set[str], list[Stretches]]:
    """The words of `texts` that are in the training text, and the stretches of each text in it."""
    encoded = tokenizer.encode_batch(texts)
    automaton = SuffixAutomaton(encoded)
    wanted = {lower(word) for text in texts for word in words(text)}
    seen: set[str] = set()
    automaton.read(_training_tokens(folder, tokenizer, wanted, seen))
    found = [
        _stretches(tokenizer, ids, lengths)
        for ids, lengths in zip(encoded, automaton.stretches(), strict=True)
    ]
    return seen, found


def _stretches(tokenizer: Tokenizer, ids: list[int], lengths: list[int]) -> Stretches:
    parts = []
    recited: set[int] = set()
    for i, length in enumerate(lengths):
        goes_on = i + 1 < len(lengths) and lengths[i + 1] == length + 1
        if length and not goes_on:
            tokens = range(i + 1 - length, i + 1)
            parts.append(tokenizer.decode(ids[tokens.start : tokens.stop]).strip())
            if len(parts[-1]) >= RECITED_CHARS:
                recited |= set(tokens)
    return Stretches(parts, len(recited) / max(1, len(ids)))


def _training_tokens(
    folder: Path, tokenizer: Tokenizer, wanted: set[str], seen: set[str]
) -> Iterator[np.ndarray]:
    """The tokens of the training text, in chunks; the `wanted` words in it are added to `seen`."""
    shards = TokenShards.open(folder, "train", tokenizer)
    with Progress(tr("training text"), 2 * len(shards)) as progress:
        for tokens in shards.chunks():
            missing = wanted - seen
            if missing:
                seen |= missing & {
                    lower(word) for word in set(words(tokenizer.decode(tokens.tolist())))
                }
            progress.add(2 * len(tokens))
            yield tokens


def _figures(
    texts: Sequence[str], seen: set[str] | None, stretches: list[Stretches] | None
) -> dict[str, Any]:
    counts = Counter(lower(word) for text in texts for word in words(text))
    total = counts.total()

    def share(number: int) -> float | None:
        """That of all words; None if there are none."""
        return number / total if total else None

    known = {word for word in counts if is_word(word)}
    read = seen & counts.keys() if seen is not None else set()
    unknown = Counter({word: n for word, n in counts.items() if word not in known | read})
    figures: dict[str, Any] = {
        "texts": len(texts),
        "words": total,
        "words_per_text": total / len(texts) if texts else None,
        "known_words": share(total - unknown.total()),
        "by_morphology": share(sum(counts[word] for word in known)),
        "in_training_text": None if seen is None else share(sum(counts[word] for word in read)),
        "unknown": [word for word, _ in unknown.most_common(_MAX_UNKNOWN)],
    }
    for n in _NGRAMS:
        shares = [found for text in texts if (found := _distinct(text, n)) is not None]
        figures[f"distinct_{n}"] = mean(shares) if shares else None
    return figures | _recitation(stretches)


def _distinct(text: str, n: int) -> float | None:
    """The share of the n-grams of words in a text that are not in it before; None if it has none.

    A mark counts as a word.
    """
    found = [lower(word) for word in re.findall(r"\w+|[^\w\s]", text)]
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _recitation(stretches: list[Stretches] | None) -> dict[str, Any]:
    """What the texts have in common with the training text, in characters."""
    if stretches is None:
        return {"longest": None, "median_longest": None, "recited": None, "longest_text": None}
    longest = [found.longest for found in stretches]
    return {
        "longest": max(longest, default=0),
        "median_longest": median(longest) if longest else 0,
        "recited": mean(found.recited for found in stretches) if stretches else 0.0,
        "longest_text": max(
            (part for found in stretches for part in found.parts), key=len, default=""
        ),
    }


def sample_report(results: dict[str, Any]) -> str:
    """What is printed of `sample_results`: a table, and notes."""
    ours = results["figures"]
    theirs = results["held_out"]
    share: Callable[[Any], str] = "{:.1%}".format
    whole: Callable[[Any], str] = "{:,.0f}".format
    measures = {
        "words_per_text": (tr("words per text"), whole),
        "known_words": (tr("words that exist"), share),
        "in_training_text": (tr("  in the training text"), share),
        "by_morphology": (tr("  by the morphology"), share),
        "distinct_2": (tr("distinct pairs of words in a text"), share),
        "distinct_4": (tr("distinct runs of four words"), share),
        "median_longest": (tr("longest stretch of training text, median"), whole),
        "longest": (tr("the same of all, in characters"), whole),
        "recited": (tr("text in stretches of {chars} or more", chars=RECITED_CHARS), share),
    }
    rows = []
    for key, (name, write) in measures.items():
        rows.append([name, *(_cell(figures, key, write) for figures in (ours, theirs))])
    lines = [
        table(["", tr("samples"), tr("held-out text")], rows),
        tr(
            "{samples} samples without a prompt, {tokens:,} tokens at most, temperature "
            "{temperature}, seed {seed}",
            samples=results["samples"],
            tokens=results["max_new_tokens"],
            temperature=results["temperature"],
            seed=results["seed"],
        ),
    ]
    if theirs is None:
        lines.append(tr("to compare with the training text, give data.dir=FOLDER (prepared data)"))
    else:
        lines.append(f"{tr('training text')}: {results['training_text']}")
        lines.append(
            tr(
                "held-out text of the same length shows what is usual; a model that recites has "
                "longer stretches"
            )
        )
    if ours["unknown"]:
        lines.append(tr("unknown words: {words}", words=", ".join(ours["unknown"])))
    if ours["longest_text"]:
        shown = " ".join(ours["longest_text"].split())
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
        lines.append(tr("longest stretch: {text}", text=shown))
    return "\n".join(lines)


def _cell(figures: dict[str, Any] | None, key: str, write: Callable[[Any], str]) -> str:
    """A figure of a column; "-" if it has none, and nothing in a column without figures."""
    if figures is None:
        return ""
    return "-" if figures[key] is None else write(figures[key])
