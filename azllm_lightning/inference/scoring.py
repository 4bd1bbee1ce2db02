"""How well a model predicts given texts: the same code for a model of ours and for any causal one of transformers.

Documents are scored one by one in windows that slide by a stride, so that every token but a document's first has
tokens before it. Shape letters: B batch, T tokens.
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

from azllm_lightning.formats.load import HF_CONFIG, optional

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

MAX_BLOCK_SIZE = 2048
"""Tokens in a window at most, where nobody asks for more: memory grows with them, and documents are seldom longer."""

TOKENS_AT_ONCE = 4096
_DOCUMENTS_AT_ONCE = 32  # among which windows of like length find each other


class Scorer(NamedTuple):
    """A model and its tokenizer, as far as scoring asks."""

    token_nll: Callable[
        [Tensor, Tensor], Tensor
    ]  # input_ids and labels (B, T) to nats (B, T), fp32
    encode: Callable[[Sequence[str]], list[list[int]]]
    start: list[
        int
    ]  # what stands before a document: its start token, or nothing where the model has none
    unscored_bytes: Callable[
        [str], int
    ]  # UTF-8 bytes of the token that nothing stands before; 0 with a start token
    unknown_id: int | None  # the token of what the tokenizer cannot spell
    block_size: int
    device: torch.device


@dataclass(frozen=True)
class Score:
    """Sums over documents; `nll`, in nats, is of the scored tokens, and so are `scored_tokens` and `scored_bytes`."""

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

    def figures(self) -> dict[str, float]:
        """val_loss (nats a token), val_ppl, val_bpb (bits a byte) and what tells of text and tokenizer."""
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


def score(
    scorer: Scorer,
    texts: Iterable[str],
    stride: int | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Iterator[Score]:
    """The score of each text, in order; `stride` is in tokens, by default half of the scorer's block_size.

    Each window but a text's first begins with block_size - stride tokens that only give context. End of text is not
    scored. `tokens_at_once` bounds memory and leaves the results as they are. Raises ValueError for a stride that is
    not between 1 and block_size.
    """
    stride = max(1, scorer.block_size // 2) if stride is None else stride
    if not 1 <= stride <= scorer.block_size:
        raise ValueError(
            f"stride={stride} is out of range: it must be from 1 to block_size={scorer.block_size}"
        )
    return _score(scorer, iter(texts), stride, tokens_at_once)


def _score(
    scorer: Scorer, texts: Iterator[str], stride: int, tokens_at_once: int
) -> Iterator[Score]:
    while pool := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        encoded = scorer.encode(pool)
        sequences = [scorer.start + ids for ids in encoded]
        nll = _sum_nll(scorer, sequences, stride, tokens_at_once)
        for text, ids, sequence, loss in zip(pool, encoded, sequences, nll, strict=True):
            num_bytes = len(text.encode("utf-8"))
            yield Score(
                documents=1,
                words=len(text.split()),
                num_bytes=num_bytes,
                tokens=len(ids),
                unknown_tokens=ids.count(scorer.unknown_id) if scorer.unknown_id is not None else 0,
                scored_tokens=len(sequence) - 1,
                scored_bytes=num_bytes - scorer.unscored_bytes(text),
                nll=loss,
            )


class _Window(NamedTuple):
    """Labels first to last (exclusive) of `sequence`, after the inputs from `start` on; label i follows input i."""

    sequence: int
    start: int
    first: int
    last: int


def _windows(sequence: int, num_labels: int, block_size: int, stride: int) -> Iterator[_Window]:
    last = 0
    while last < num_labels:
        first, last = last, min(num_labels, last + stride if last else block_size)
        yield _Window(sequence, max(0, last - block_size), first, last)


@torch.inference_mode()
def _sum_nll(
    scorer: Scorer, sequences: list[list[int]], stride: int, tokens_at_once: int
) -> list[float]:
    """The negative log-likelihood of each sequence's tokens after its first, in nats."""
    sums = [0.0] * len(sequences)
    windows = [
        window
        for i, sequence in enumerate(sequences)
        for window in _windows(i, len(sequence) - 1, scorer.block_size, stride)
    ]
    windows.sort(key=lambda window: window.last - window.start, reverse=True)
    while windows:
        length = windows[0].last - windows[0].start
        count = max(1, tokens_at_once // length)
        batch, windows = windows[:count], windows[count:]
        # What stands after a window's end does not change it: attention is causal.
        tokens = torch.zeros(len(batch), length + 1, dtype=torch.int64)
        for row, window in zip(tokens, batch, strict=True):
            row[: window.last - window.start + 1] = torch.tensor(
                sequences[window.sequence][window.start : window.last + 1]
            )
        tokens = tokens.to(scorer.device)
        nll = scorer.token_nll(tokens[:, :-1], tokens[:, 1:]).double().cpu()
        for row, window in zip(nll, batch, strict=True):
            sums[window.sequence] += float(
                row[window.first - window.start : window.last - window.start].sum()
            )
    return sums


def scorer_of(model: GPT, tokenizer: Tokenizer, block_size: int | None = None) -> Scorer:
    """A model of ours, documents beginning with end-of-text as they do in training.

    `block_size` shortens the window. Raises ValueError where it is above the model's.
    """
    return Scorer(
        token_nll=partial(model, reduction="none"),
        encode=tokenizer.encode_batch,
        start=[model.config.eos_id],
        unscored_bytes=lambda text: 0,
        unknown_id=None,
        block_size=_block_size(block_size, model.config.block_size),
        device=model.lm_head.weight.device,
    )


def hf_scorer(
    folder: str | Path, device: str | torch.device = "cpu", block_size: int | None = None
) -> Scorer:
    """The causal language model and tokenizer that transformers loads from `folder`, in fp32; no code in it is run.

    Raises ValueError where transformers is not installed, `folder` holds no such model, or `block_size` is too much.
    """
    transformers = optional("transformers")
    if not (Path(folder) / HF_CONFIG).is_file():
        raise ValueError(
            f"hf={folder} is not a folder with a transformers model: there is no {HF_CONFIG} in it"
        )
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:  # a dozen kinds, by what is missing
        raise ValueError(f"hf={folder}: transformers cannot load it ({error})") from error
    model = model.float().to(device).eval()
    start_id = (
        model.config.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    )
    if start_id is None and not tokenizer.is_fast:
        raise ValueError(
            f"hf={folder} has no start token and a tokenizer that does not tell which text a token stands for: "
            "the bytes of a document's first token cannot be left out"
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
        block_size=_block_size(block_size, getattr(model.config, "max_position_embeddings", None)),
        device=torch.device(device),
    )


def _block_size(asked: int | None, largest: int | None) -> int:
    """Tokens in a window: those `asked` for, else all that the model takes, up to MAX_BLOCK_SIZE."""
    if asked is None:
        return min(MAX_BLOCK_SIZE, largest or MAX_BLOCK_SIZE)
    if not 1 <= asked <= (largest or asked):
        raise ValueError(
            f"block_size={asked} is out of range: it must be from 1 to {largest}, which the model takes"
        )
    return asked


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, 1927), which stays within 0 and 1 and fits small samples."""
    z = 1.959963984540054
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
