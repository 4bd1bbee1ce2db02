"""Mean bits of the second half of each line given its first half, as Goldfish scores FLORES.

The definition is that of Chang et al. (2024; arXiv:2408.10441), in eval_code of
tylerachang/goldfish:

- A line of n characters, without spaces around it, has n // 2 characters in its first half.
- The line is tokenized after a start token, and cut after MAX_TOKENS tokens, the start token
  included.
- The first half is tokenized by itself. If that gives k tokens, the first k tokens of the line are
  context, and the bits of the others are summed. So a token that the cut goes through belongs to
  the first half or to the second, depending on how many tokens its beginning alone would be; a word
  of one token is all context, and a line of one character has no context but the start token.
- A token for what the tokenizer cannot represent costs log2 of the size of the vocabulary.

What Goldfish does not have to define: without a start token, the first token of a line is never
scored; a model with a window shorter than the line reads it with the stride of `token_losses`;
blank lines, and exact duplicates of documents, are skipped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.data.progress import Progress
from azllm_lightning.inference.scoring import default_stride, token_losses
from azllm_lightning.inference.tables import table

if TYPE_CHECKING:
    from azllm_lightning.inference.scoring import ScoredText, Scorer
    from azllm_lightning.inference.text_scores import TextToScore

MAX_TOKENS = 512
"""Tokens of a line that are read, with the start token."""

SOURCE = "https://github.com/tylerachang/goldfish, data/flores_logperplexities.tsv, azj_latn"


class Published(NamedTuple):
    """A published figure: bits per line of FLORES-200, and MB of Azerbaijani trained on."""

    model: str
    megabytes: float | None
    bits: float


# MB of UTF-8: Goldfish scales its sizes by 1.2988, the bytes that Azerbaijani needs for the text
# of one English byte (data/goldfish_data_info.tsv). Those of the large models are not published.
PUBLISHED = (
    Published("Goldfish unigrams", 1298.8, 150.492),
    Published("Goldfish bigrams", 1298.8, 106.313),
    Published("Goldfish 5mb", 6.5, 124.422),
    Published("Goldfish 10mb", 13.0, 116.450),
    Published("Goldfish 100mb", 129.9, 87.605),
    Published("Goldfish 1000mb", 1298.8, 74.279),
    Published("XGLM-4.5B", None, 75.331),
    Published("XGLM-7.5B", None, 183.101),
    Published("MaLA-500", None, 84.134),
    Published("BLOOM-7.1B", None, 185.839),
)


@dataclass(frozen=True)
class HalfScore:
    """Sums over lines; `bits` are those of the second halves, `squares` their squares."""

    lines: int = 0
    bits: float = 0.0
    squares: float = 0.0
    tokens: int = 0
    unknown_tokens: int = 0
    cut_lines: int = 0

    def __add__(self, other: HalfScore) -> HalfScore:
        return HalfScore(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(HalfScore))
        )

    def metrics(self) -> dict[str, float | None]:
        """bits (mean per line) with its 95 % interval, and counts of what was scored.

        A single line says nothing of how much lines vary: its interval is None to None.
        """
        lines = max(1, self.lines)
        mean = self.bits / lines
        variance = max(0.0, self.squares / lines - mean * mean) * lines / max(1, lines - 1)
        half = 1.96 * math.sqrt(variance / lines)
        return {
            "bits": mean,
            "low": mean - half if self.lines > 1 else None,
            "high": mean + half if self.lines > 1 else None,
            "lines": self.lines,
            "scored_tokens": self.tokens,
            "unknown_tokens": self.unknown_tokens,
            "cut_lines": self.cut_lines,
        }


def half_scores(
    scorer: Scorer, lines: Iterable[str], stride: int | None = None
) -> Iterator[HalfScore]:
    """The bits of the second half of each line, in order; `stride` as in `token_losses`."""
    stripped = (line.strip() for line in lines)
    for scored in token_losses(scorer, stripped, stride, MAX_TOKENS):
        yield _half_score(scorer, scored)


def _half_score(scorer: Scorer, scored: ScoredText) -> HalfScore:
    (first_half,) = scorer.encode([scored.text[: len(scored.text) // 2]])
    unscored = 1 - len(scorer.start)  # the line's first token, if no start token precedes it
    first = max(0, len(first_half) - unscored)
    nats = scored.nll[first:].clone()
    read = scored.ids[unscored : unscored + len(scored.nll)]
    unknown = [i for i, token in enumerate(read[first:]) if token == scorer.unknown_id]
    nats[unknown] = math.log(scorer.vocab_size)
    bits = float(nats.sum()) / math.log(2)
    return HalfScore(
        lines=1,
        bits=bits,
        squares=bits * bits,
        tokens=len(nats),
        unknown_tokens=len(unknown),
        cut_lines=int(len(scorer.start) + len(scored.ids) > MAX_TOKENS),
    )


def half_scores_by_source(
    scorer: Scorer, text: TextToScore, stride: int | None
) -> dict[str, HalfScore]:
    """The scores of the lines of each source, in alphabetical order."""
    sources: deque[tuple[str, float]] = deque()

    def lines() -> Iterator[str]:
        for document in text.documents:
            found = [line for line in document.text.split("\n") if line.strip()]
            read = document.read_bytes / max(1, sum(map(len, found)))  # by a character
            for line in found:
                sources.append((document.source, read * len(line)))
                yield line

    sums: dict[str, HalfScore] = {}
    with Progress(tr("evaluating"), text.num_bytes) as progress:
        for score in half_scores(scorer, lines(), stride):
            source, num_bytes = sources.popleft()
            sums[source] = sums.get(source, HalfScore()) + score
            progress.add(num_bytes)
    return {source: sums[source] for source in sorted(sums)}


def half_results(
    scorer: Scorer,
    scores: dict[str, HalfScore],
    stride: int | None,
    training_bytes: int | None,
) -> dict[str, Any]:
    """What is stored as JSON; `training_bytes` is the size of the training text, if known."""
    return {
        "block_size": scorer.block_size,
        "stride": stride or default_stride(scorer.block_size),
        "max_tokens": MAX_TOKENS,
        "training_bytes": training_bytes,
        "sources": {source: score.metrics() for source, score in scores.items()},
        "all": sum(scores.values(), HalfScore()).metrics(),
        "published": {
            "source": SOURCE,
            "text": "FLORES-200",
            "models": [figure._asdict() for figure in PUBLISHED],
        },
    }


def half_report(scorer: Scorer, results: dict[str, Any]) -> str:
    """What is printed of `half_results`: a table with the published figures, and notes."""
    total = results["all"]
    size = results["training_bytes"]
    named = results["sources"] if len(results["sources"]) > 1 else {}
    rows = [
        [tr("this model"), _megabytes(size / 1e6 if size else None), *_bits(total)],
        *(["  " + source, "", *_bits(metrics)] for source, metrics in named.items()),
        *(
            [figure.model, _megabytes(figure.megabytes), f"{figure.bits:.2f}", "", ""]
            for figure in PUBLISHED
        ),
    ]
    heads = [tr("model"), tr("trained on"), tr("bits"), tr("95 % interval"), tr("lines")]
    lines = [
        table(heads, rows),
        tr(
            "bits: of the second half of a line, by characters, given the first; a line is read up "
            "to {tokens:,} tokens, start token included",
            tokens=MAX_TOKENS,
        ),
        tr(
            "published: {source}; they are of the lines of FLORES-200, and compare with yours only "
            "on the same lines",
            source=SOURCE,
        ),
        tr(
            "trained on: MB of Azerbaijani UTF-8; Goldfish's 10mb are 13 MB, and its text is from "
            "the web, not yours"
        ),
    ]
    if total["cut_lines"]:
        lines.append(
            trn(
                "{count:,} line is longer, and was cut: its bits are too few",
                "{count:,} lines are longer, and were cut: their bits are too few",
                total["cut_lines"],
            )
        )
    if not scorer.start:
        lines.append(tr("no start token: the first token of a line is never scored"))
    if total["unknown_tokens"]:
        lines.append(
            trn(
                "{count:,} unknown token; each costs log2 of the vocabulary, as in Goldfish",
                "{count:,} unknown tokens; each costs log2 of the vocabulary, as in Goldfish",
                total["unknown_tokens"],
            )
        )
    return "\n".join(lines)


def _bits(metrics: dict[str, Any]) -> list[str]:
    low, high = metrics["low"], metrics["high"]
    interval = "-" if low is None else tr("{low:.2f} to {high:.2f}", low=low, high=high)
    return [f"{metrics['bits']:.2f}", interval, f"{metrics['lines']:,}"]


def _megabytes(size: float | None) -> str:
    return "?" if size is None else f"{size:,.1f} MB"
