"""The law of the loss: which validation loss a model of some size reaches on a text of some size.

The form is that of Hoffmann et al. 2022 (arXiv:2203.15556), with the effective data of Muennighoff
et al. 2023 (arXiv:2305.16264) for text that is read several times:

    bpb = floor - induction + A / parameters^alpha + B / data^beta
    data = unique x (1 + worth (1 - exp(-(passes - 1) / worth)))
    worth = R x unique^rho, at most MOST_WORTH

Both the loss and the text are counted in bytes, so that vocabularies can be compared. Little text
is memorized sooner, so its repetition is worth less; the runs show it. Attention that starts able
to copy saves about as many bits per byte in all runs. The law holds for the settings of
`planning.rule`. `coefficients.json` has the numbers, fitted to the runs in `runs.tsv` by
benchmarks/law.py, with how well these determine them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr

COEFFICIENTS = Path(__file__).with_name("coefficients.json")
RUNS = Path(__file__).with_name("runs.tsv")

SLACK = 1.3
"""A size this many times outside those of the runs still counts as inside."""

MOST_WORTH = 15.4
"""How many times a large text is worth itself again if it is read ever more often: that is R_D* of
Muennighoff et al. 2023, since our runs on little text do not determine it.
"""

COMMON_TOKENS = 512
"""In a vocabulary of this size tokens would gain nothing from others that are like them; with each
doubling, a share of B. Of the forms tried it fits best (benchmarks/README.md).
"""

FAR = 1.0
"""Growth of the error, relative to that within the range, per factor e outside of it."""


DOCUMENT_SPREAD = 0.15
"""Standard deviation between documents of the bits per byte that a model needs for them, as a share
of their mean, where `planning.survey` cannot tell: 0.06 to 0.17 within articles, laws and tutorials
(benchmarks/README.md). The val_loss of a few documents is so much, divided by the root of their
number, from that of many.
"""


@dataclass(frozen=True)
class Size:
    """The sizes that decide the loss of a run."""

    parameters: int
    """That are multiplied: with one token table if the head is tied, and if it is not."""
    unique_tokens: float
    """Of the training text."""
    tokens: float
    """That the run reads, repetitions included."""
    text_bytes: float
    """Of the training text."""
    vocab_size: int
    bytes_per_token: float
    """Of the validation text."""
    is_tied: bool = False
    """Whether the head is the token table."""
    shares_affixes: bool = True
    """Whether tokens learn from those that are spelled like them (optimizer.affix_rate)."""
    starts_from_neighbors: bool = True
    """Whether embeddings start from the neighbors of tokens (init_embeddings)."""
    starts_with_induction: bool = True
    """Whether two heads start able to continue what the text repeats (init_attention)."""

    @property
    def passes(self) -> float:
        """How often the text is read."""
        return self.tokens / self.unique_tokens

    @property
    def parameters_per_token(self) -> float:
        """Of the text, each token counted once."""
        return self.parameters / self.unique_tokens

    @property
    def different_bytes(self) -> float:
        """Text that the run reads, each byte counted once."""
        return self.text_bytes * min(1.0, self.passes)


@dataclass(frozen=True)
class Prediction:
    """What a run should reach, and how exactly that is known."""

    val_loss: float
    """In nats per token."""
    val_bpb: float
    error: float
    """Of both, as a share of them: two runs of three are closer."""
    outside: tuple[str, ...] = ()
    """What lies outside the range of the runs that the law is fitted to, for people."""


@dataclass(frozen=True)
class Coefficients:
    """The numbers of the law, and where they come from."""

    values: Mapping[str, float]
    error: float
    """The relative error of runs that were left out of the fit, root mean square."""
    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest parameters, different_bytes, passes, vocab_size and parameters_per_token
    of the runs.
    """

    @classmethod
    def read(cls, path: Path = COEFFICIENTS) -> Coefficients:
        """The coefficients in a JSON file."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ranges = {name: (low, high) for name, (low, high) in content["ranges"].items()}
        return cls(content["values"], content["error"], ranges)


@cache
def coefficients() -> Coefficients:
    """Those of the package."""
    return Coefficients.read()


def predict(
    size: Size,
    scale: float = 1.0,
    known: Coefficients | None = None,
    val_documents: float = math.inf,
    document_spread: float = DOCUMENT_SPREAD,
) -> Prediction:
    """The loss of a run of `size`.

    `scale` is how many bits per byte the text has for each one of the text of the runs,
    `val_documents` the number of documents that the loss is measured on, and `document_spread` how
    much they differ: see `planning.survey`.
    """
    known = known or coefficients()
    # The law of a very short run is above the loss of a guess among all tokens.
    guess = math.log2(size.vocab_size) / size.bytes_per_token
    bpb = min(scale * bits_per_byte(size, known.values), guess)
    outside = beyond(size, known)
    distance = sum(factor for _, factor in outside)
    # A text of another kind follows the law less closely.
    error = known.error * (1 + FAR * distance) + 0.5 * abs(math.log(scale))
    return Prediction(
        val_loss=bpb * math.log(2) * size.bytes_per_token,
        val_bpb=bpb,
        error=math.hypot(error, sampling_error(val_documents, document_spread)),
        outside=tuple(text for text, _ in outside),
    )


def sampling_error(val_documents: float, document_spread: float) -> float:
    """How far the loss of so few documents is from that of many, as a share of it."""
    return document_spread / math.sqrt(max(1.0, val_documents))


def bits_per_byte(size: Size, values: Mapping[str, float]) -> float:
    """The law itself, for the text of the runs."""
    worth = min(MOST_WORTH, values["R"] * (size.text_bytes / 1e6) ** values["rho"])
    data = effective_data(size.text_bytes, size.passes, worth)
    weight = values["B"] * (1 + values["tied"] * size.is_tied)
    # The larger the vocabulary, the rarer its tokens, and the more they gain from each other.
    doublings = max(0.0, math.log2(size.vocab_size / COMMON_TOKENS))
    weight *= 1 - doublings * values["affixes"] * size.shares_affixes
    weight *= 1 - doublings * values["neighbors"] * size.starts_from_neighbors
    return float(
        values["floor"]
        - values["induction"] * size.starts_with_induction
        + values["A"] * (size.parameters / 1e6) ** -values["alpha"]
        + weight * (data / 1e6) ** -values["beta"]
    )


def effective_data(unique: float, passes: float, most: float) -> float:
    """New text worth as much as `unique` bytes or tokens read `passes` times, at most `most` + 1
    times as much.
    """
    if passes <= 1:
        return unique * passes
    return unique * (1 + most * (1 - math.exp(-(passes - 1) / most)))


def beyond(size: Size, known: Coefficients) -> list[tuple[str, float]]:
    """What is outside the range of the runs, for people, and how far: the log of the factor."""
    found: list[tuple[str, float]] = []
    for name, value, text in (
        ("parameters", size.parameters, tr("parameters")),
        ("different_bytes", size.different_bytes, tr("text")),
        ("passes", size.passes, tr("passes")),
        ("vocab_size", size.vocab_size, tr("vocabulary")),
        ("parameters_per_token", size.parameters_per_token, tr("parameters per token of the text")),
    ):
        low, high = known.ranges[name]
        factor = max(low / SLACK / value, value / (high * SLACK))
        if factor > 1:
            found.append((text, math.log(factor)))
    return found
