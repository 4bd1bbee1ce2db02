"""How well a model predicts texts: the same code for our models and for those of transformers.

Each document is scored on its own, in windows that slide by a stride, so that every token but a
document's first has context. Shape letters as in gpt.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.cli.memory import is_out_of_memory
from azllm_lightning.cli.messages import tr
from azllm_lightning.formats.huggingface import HF_CONFIG
from azllm_lightning.formats.load import check_finite
from azllm_lightning.formats.optional import import_optional

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

MAX_BLOCK_SIZE = 2048
"""Largest default window, in tokens: longer ones need memory, and few documents are longer."""

TOKENS_AT_ONCE = 4096
"""Tokens in a batch of windows."""

DOCUMENTS_AT_ONCE = 32
"""Documents whose windows are sorted by length, so that a batch needs little padding."""

CHARACTERS_AT_ONCE = 100_000
"""No further document is added to so many: their scores come together, and progress waits."""


class Scorer(NamedTuple):
    """What scoring needs from a model and its tokenizer."""

    token_nll: Callable[[Tensor, Tensor], Tensor]
    """input_ids and labels (B, T) to negative log-likelihoods (B, T) in nats, fp32."""
    encode: Callable[[Sequence[str]], list[list[int]]]
    """Texts to token ids."""
    start: list[int]
    """The start token that precedes a document; empty if the model has none."""
    unscored_bytes: Callable[[str], int]
    """UTF-8 bytes of a text's first token if there is no start token before it, else 0."""
    unknown_id: int | None
    """The token for what the tokenizer cannot represent."""
    vocab_size: int
    """Tokens that the tokenizer learned, without those added to it afterwards."""
    block_size: int
    device: torch.device


class ScoredText(NamedTuple):
    """The ids of a text's tokens, and the losses in nats (N,) of those that were scored.

    These are successive tokens, from the first on, or from the second if there is no start token.
    They end with the last, or where `max_tokens` of `token_losses` cut the text.
    """

    text: str
    ids: list[int]
    nll: Tensor


@dataclass(frozen=True)
class Score:
    """Sums over documents; `nll` is the negative log-likelihood of the scored tokens, in nats."""

    documents: int = 0
    words: int = 0
    num_bytes: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    scored_tokens: int = 0
    scored_bytes: int = 0
    nll: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(Score))
        )

    def metrics(self) -> dict[str, float]:
        """val_loss (nats per token), val_ppl, val_bpb (bits per byte), and counts of the text."""
        loss = self.nll / max(1, self.scored_tokens)
        return {
            "val_loss": loss,
            "val_ppl": math.inf if loss > 709 else math.exp(loss),
            "val_bpb": self.nll / math.log(2) / max(1, self.scored_bytes),
            "tokens_per_word": self.tokens / max(1, self.words),
            "bytes_per_token": self.num_bytes / max(1, self.tokens),
            "documents": self.documents,
            "bytes": self.num_bytes,
            "tokens": self.tokens,
            "scored_tokens": self.scored_tokens,
            "scored_bytes": self.scored_bytes,
            "unknown_tokens": self.unknown_tokens,
        }


def default_stride(block_size: int) -> int:
    """Half a window, in tokens."""
    return max(1, block_size // 2)


def score(
    scorer: Scorer,
    texts: Iterable[str],
    stride: int | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Iterator[Score]:
    """The score of each text, in order; `stride` is in tokens, `default_stride` if None.

    `token_losses` says which windows. The end-of-text token is not scored.

    Raises ValueError, before the first score is requested, for a stride outside 1..block_size.
    """
    stride = _checked_stride(scorer, stride)
    return map(partial(_sums, scorer), _token_losses(scorer, iter(texts), stride, tokens_at_once))


def token_losses(
    scorer: Scorer,
    texts: Iterable[str],
    stride: int | None = None,
    max_tokens: int | None = None,
) -> Iterator[ScoredText]:
    """The loss of each token of each text, in order; `stride` is in tokens, `default_stride` if
    None.

    Each window but a text's first begins with block_size - stride tokens that are context only. Of
    longer texts only the first `max_tokens` tokens are read, with the start token.

    Raises ValueError, before the first text is requested, for a stride outside 1..block_size.
    """
    stride = _checked_stride(scorer, stride)
    return _token_losses(scorer, iter(texts), stride, TOKENS_AT_ONCE, max_tokens)


def _checked_stride(scorer: Scorer, stride: int | None) -> int:
    stride = default_stride(scorer.block_size) if stride is None else stride
    if not 1 <= stride <= scorer.block_size:
        raise ValueError(
            tr(
                "stride={stride} is out of range: it must be from 1 to block_size={block_size}",
                stride=stride,
                block_size=scorer.block_size,
            )
        )
    return stride


def _token_losses(
    scorer: Scorer,
    texts: Iterator[str],
    stride: int,
    tokens_at_once: int,
    max_tokens: int | None = None,
) -> Iterator[ScoredText]:
    for pool in _pools(texts):
        encoded = scorer.encode(pool)
        sequences = [(scorer.start + ids)[:max_tokens] for ids in encoded]
        losses = _losses(scorer, sequences, stride, tokens_at_once)
        yield from map(ScoredText, pool, encoded, losses)


def _pools(texts: Iterator[str]) -> Iterator[list[str]]:
    while pool := list(islice(texts, 1)):
        size = len(pool[0])
        while size < CHARACTERS_AT_ONCE and len(pool) < DOCUMENTS_AT_ONCE:
            text = next(texts, None)
            if text is None:
                break
            pool.append(text)
            size += len(text)
        yield pool


def _sums(scorer: Scorer, scored: ScoredText) -> Score:
    num_bytes = len(scored.text.encode("utf-8"))
    ids = scored.ids
    return Score(
        documents=1,
        words=len(scored.text.split()),
        num_bytes=num_bytes,
        tokens=len(ids),
        unknown_tokens=ids.count(scorer.unknown_id) if scorer.unknown_id is not None else 0,
        scored_tokens=len(scorer.start) + len(ids) - 1,
        scored_bytes=num_bytes - scorer.unscored_bytes(scored.text),
        nll=float(scored.nll.sum()),
    )


class _Window(NamedTuple):
    """Inputs `start` to `last` of a sequence, of which labels `first` to `last` are scored.

    `last` is exclusive, and label i is the token after input i.
    """

    sequence: int
    start: int
    first: int
    last: int


def _windows(sequence: int, num_labels: int, block_size: int, stride: int) -> Iterator[_Window]:
    last = 0
    while last < num_labels:
        first = last
        last = min(num_labels, last + stride if last else block_size)
        yield _Window(sequence, max(0, last - block_size), first, last)


@torch.inference_mode()
def _losses(
    scorer: Scorer, sequences: list[list[int]], stride: int, tokens_at_once: int
) -> list[Tensor]:
    """The negative log-likelihoods of each sequence but of its first token, in nats, fp64."""
    losses = [torch.zeros(max(0, len(sequence) - 1), dtype=torch.float64) for sequence in sequences]
    windows = [
        window
        for i, sequence in enumerate(sequences)
        for window in _windows(i, len(sequence) - 1, scorer.block_size, stride)
    ]
    windows.sort(key=lambda window: window.last - window.start, reverse=True)
    while windows:
        length = windows[0].last - windows[0].start
        batch = windows[: max(1, tokens_at_once // length)]
        # Padding at the end changes nothing before it: attention is causal.
        tokens = torch.zeros(len(batch), length + 1, dtype=torch.int64)
        for row, window in zip(tokens, batch, strict=True):
            row[: window.last - window.start + 1] = torch.tensor(
                sequences[window.sequence][window.start : window.last + 1]
            )
        try:
            on_device = tokens.to(scorer.device)
            nll = scorer.token_nll(on_device[:, :-1], on_device[:, 1:]).double().cpu()
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            tokens_at_once = length * (len(batch) // 2)
            continue
        windows = windows[len(batch) :]
        for row, window in zip(nll, batch, strict=True):
            losses[window.sequence][window.first : window.last] = row[
                window.first - window.start : window.last - window.start
            ]
    return losses


def gpt_scorer(model: GPT, tokenizer: Tokenizer, block_size: int | None = None) -> Scorer:
    """A scorer of our own model; documents begin with end-of-text, as in training.

    `block_size` shortens the window. Raises ValueError if it is above the model's.
    """
    return Scorer(
        token_nll=partial(model, reduction="none"),
        encode=tokenizer.encode_batch,
        start=[model.config.eos_id],
        unscored_bytes=lambda text: 0,
        unknown_id=None,
        vocab_size=tokenizer.vocab_size,
        block_size=_block_size(block_size, model.config.block_size),
        device=model.lm_head.weight.device,
    )


def load_hf(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The causal language model in `folder`, in fp32, and its tokenizer; code there is not run.

    Raises ValueError if transformers is not installed, or `folder` has no such model.
    """
    transformers = import_optional("transformers")
    if not (Path(folder) / HF_CONFIG).is_file():
        raise ValueError(
            tr(
                "hf={folder}: no {file} there; give a folder with a transformers model",
                folder=folder,
                file=HF_CONFIG,
            )
        )
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # a dozen kinds, depending on what is missing
        if "trust_remote_code" in str(error):  # transformers asks for it to be true
            raise ValueError(
                tr(
                    "hf={folder}: this model needs Python code that comes with it, and code from "
                    "a model folder is never run here; give a model that transformers knows by "
                    "itself",
                    folder=folder,
                )
            ) from error
        raise ValueError(
            tr(
                "hf={folder}: transformers cannot load this model ({error})",
                folder=folder,
                error=error,
            )
        ) from error
    model = model.float().to(device).eval()
    check_finite(model.state_dict(), folder)
    return model, tokenizer


def scorer_of(
    model: Any, tokenizer: Any, folder: str | Path, block_size: int | None = None
) -> Scorer:
    """A scorer of a model and a tokenizer of transformers; `folder` is what errors call them.

    Its start token is the tokenizer's, else its classification token, else that of the model.
    Raises ValueError if `block_size` is above the model's, or if the bytes that are not scored
    cannot be counted.
    """
    config = model.config.get_text_config(decoder=True)  # a part of it, if the model sees images
    known = (
        tokenizer.bos_token_id,
        tokenizer.cls_token_id,
        getattr(config, "bos_token_id", None),
    )
    start_id = next((token for token in known if token is not None), None)
    if start_id is None and not tokenizer.is_fast:
        raise ValueError(
            tr(
                "hf={folder} has no start token, and its tokenizer does not report which "
                "characters a token covers, so the bytes of a document's first token, which is "
                "not scored, cannot be subtracted",
                folder=folder,
            )
        )

    def token_nll(input_ids: Tensor, labels: Tensor) -> Tensor:
        logits = model(input_ids=input_ids, use_cache=False).logits
        return torch.stack(
            [
                F.cross_entropy(row.float(), y, reduction="none")
                for row, y in zip(logits, labels, strict=True)
            ]
        )

    def encode(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def first_bytes(text: str) -> int:
        spans = tokenizer(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )["offset_mapping"]
        end = min([span[1] for span in spans[:1]] + [span[0] for span in spans[1:2]], default=0)
        return len(text[:end].encode("utf-8"))

    return Scorer(
        token_nll=token_nll,
        encode=encode,
        start=[] if start_id is None else [start_id],
        unscored_bytes=first_bytes if start_id is None else lambda text: 0,
        unknown_id=tokenizer.unk_token_id,
        vocab_size=tokenizer.vocab_size,
        block_size=_block_size(block_size, getattr(config, "max_position_embeddings", None)),
        device=model.device,
    )


def _block_size(requested: int | None, largest: int | None) -> int:
    """Tokens in a window: `requested`, else as many as the model takes, up to MAX_BLOCK_SIZE."""
    if requested is None:
        return min(MAX_BLOCK_SIZE, largest or MAX_BLOCK_SIZE)
    if not 1 <= requested <= (largest or requested):
        raise ValueError(
            tr(
                "block_size={block_size} is out of range: this model takes 1 to {largest} tokens",
                block_size=requested,
                largest=largest,
            )
        )
    return requested
