"""The settings that follow from the sizes of a text, a model and a run: batch, warm-up, decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from azllm_lightning.training.schedule import BRANCH_SHARE

BATCH_TOKENS = 4096
"""Tokens per step of a run of BATCH_RUN tokens (benchmarks/LOG.md)."""

BATCH_RUN = 1.6e6
BATCH_POWER = 0.4
"""The best batch grows with the tokens of the run; karpathy/nanochat found 0.38."""

MOST_BATCH_TOKENS = 65_536

WARMUP_STEPS = 40
WARMUP_SHARE = 0.1
"""Steps of warm-up, and the share of a short run that they may take."""

DECAY = 0.1
STRONG_DECAY = 3.0
"""Weight decay for text that is read once, and for text that is read STRONG_PASSES times."""

STRONG_PASSES = 4.0

LINEAR_DECAY = 1.0
"""Weight decay from which on the learning rate falls in a line."""

NOTHING_MEMORIZED = 10.0
ALL_MEMORIZED = 40.0
"""Passes times parameters per token of text: up to the first, decay only costs (5 passes of 1.9
lost 0.22 nats by it), and from the second, it is as strong as its passes want
(benchmarks/LOG.md, 2026-11-26).
"""

DROPOUT = 0.1
DROPOUT_PASSES = 2.0
"""Dropout of a text read that often or more. 0.2 costs where decay and replaced tokens already keep
a model from memorizing (benchmarks/LOG.md, 2026-11-27, dropout and depth).
"""

REPLACED = 0.1
"""Share of the input tokens that are replaced by random ones when text is read REPLACED_PASSES
times or more (benchmarks/LOG.md).
"""

REPLACED_PASSES = 8.0

BRANCHES = 2
BRANCHED_PASSES = 15.0
"""Branches of a run that reads its text that often or more besides them. Two of the last fifth gain
as much as twice the passes; what they gain below is not known (benchmarks/LOG.md).
"""

VOCABULARIES = ((300_000, 2048), (100_000_000, 8192), (500_000_000, 16_384))
"""Up to so many bytes of text, this vocabulary. From a megabyte 8192 has 4 % fewer bits per byte
than 4096, and from a quarter of one 4 % more than 2048 (benchmarks/LOG.md, 2026-11-27,
vocabularies).
"""

LARGEST_VOCABULARY = 32_000

SHORT_CONTEXT = 256
LONG_CONTEXT = 512
LONG_TEXT_BYTES = 100_000_000


@dataclass(frozen=True)
class Regularization:
    """What keeps a model from memorizing its text."""

    weight_decay: float
    """Of the matrices in the layers."""
    table_decay: float
    """Of the token tables."""
    dropout: float
    replaced: float = 0.0
    """Share of the input tokens that are replaced."""

    @property
    def is_linear(self) -> bool:
        """Whether the learning rate falls in a line: with a strong decay the loss falls as the rate
        does, and a later fall, as of "power", gains nothing (benchmarks/LOG.md).
        """
        return self.weight_decay >= LINEAR_DECAY


def regularization(passes: float, parameters_per_token: float = math.inf) -> Regularization:
    """Decay and dropout for a text that is read `passes` times by a model with so many parameters
    per token of the text; infinity is a model that can memorize all of it.
    """
    strength = min(1.0, math.log(max(1.0, passes)) / math.log(STRONG_PASSES))
    memorized = passes * parameters_per_token / NOTHING_MEMORIZED
    if memorized < ALL_MEMORIZED / NOTHING_MEMORIZED:
        strength *= math.log(max(1.0, memorized)) / math.log(ALL_MEMORIZED / NOTHING_MEMORIZED)
    decay = _rounded(DECAY * (STRONG_DECAY / DECAY) ** strength)
    dropout = DROPOUT if passes >= DROPOUT_PASSES else 0.0
    table_decay = decay if strength > 0.25 else 0.0
    replaced = REPLACED if is_replacing(passes) else 0.0
    return Regularization(decay, table_decay, dropout, replaced)


def is_replacing(passes: float) -> bool:
    """Whether input tokens are replaced when a text is read `passes` times."""
    return passes >= REPLACED_PASSES


def branches(passes: float) -> int:
    """Branches of a run that reads its text `passes` times to the end of the first."""
    return BRANCHES if passes >= BRANCHED_PASSES else 1


def steps_with_branches(steps: int, branches: int) -> int:
    """All steps of a run whose first branch ends after `steps`."""
    return steps + (branches - 1) * round(BRANCH_SHARE * steps)


def steps_and_interval(steps: int, branches: int, validations: int) -> tuple[int, int]:
    """All steps of a run whose first branch is to end after about `steps`, and those between two of
    its about `validations` validations, of which one is at the end of each branch.
    """
    if branches == 1:
        return steps, max(1, -(-steps // validations))
    branch = max(1, round(BRANCH_SHARE * steps))
    wanted = steps_with_branches(steps, branches) / validations
    every = max(1, round(branch / max(1, round(branch / wanted))))
    branch = every * max(1, round(branch / every))
    return branch * (round(1 / BRANCH_SHARE) + branches - 1), every


def vocab_size(text_bytes: float) -> int:
    """Tokens in the vocabulary of a text of `text_bytes`."""
    return next((size for most, size in VOCABULARIES if text_bytes <= most), LARGEST_VOCABULARY)


def block_size(text_bytes: float) -> int:
    """Context of a model of a text of `text_bytes`."""
    return SHORT_CONTEXT if text_bytes < LONG_TEXT_BYTES else LONG_CONTEXT


def batch_sequences(tokens: float, block_size: int) -> int:
    """Windows of `block_size` per step, a power of two, of a run of `tokens` tokens."""
    wanted = BATCH_TOKENS * (tokens / BATCH_RUN) ** BATCH_POWER
    return int(2 ** max(0, round(math.log2(min(wanted, MOST_BATCH_TOKENS) / block_size))))


def warmup_steps(steps: int) -> int:
    """Steps of warm-up of a run of `steps`."""
    return max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * steps)))


def _rounded(value: float) -> float:
    """`value` to two digits, as people type it."""
    return float(f"{value:.2g}")
