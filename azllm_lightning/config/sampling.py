"""The settings of sampling."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. The settings are applied in this order:

    - repetition_penalty divides the positive logits of tokens that the text already has, prompt
      included, and multiplies the negative ones (arXiv:1909.05858); end of text is left alone.
    - temperature divides the logits; at 0 the most likely token is taken.
    - top_k keeps the k most likely tokens.
    - top_p keeps, of those, the most likely ones whose probabilities first reach p together
      (arXiv:1904.09751).
    - min_p keeps tokens at least min_p times as likely as the most likely one (arXiv:2407.01082).

    The same seed gives the same samples; with None they differ each time.

    Raises ValueError for settings out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = Problems()
        infinity = float("inf")
        length = self.max_new_tokens
        problems.require(length >= 1, "max_new_tokens", length, tr("at least 1"))
        temperature = self.temperature
        wanted = tr("at least 0 (0: always the most likely token)")
        problems.require(0 <= temperature < infinity, "temperature", temperature, wanted)
        wanted = tr("at least 1, or null for all tokens")
        problems.require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, wanted)
        wanted = tr("above 0 and at most 1, or null for all tokens")
        problems.require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, wanted)
        wanted = tr("from 0 to 1, or null for all tokens")
        problems.require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, wanted)
        penalty = self.repetition_penalty
        wanted = tr("above 0 (1 changes nothing)")
        problems.require(0 < penalty < infinity, "repetition_penalty", penalty, wanted)
        wanted = tr("a whole number from 0 to {highest}, or null", highest=2**64 - 1)
        problems.require(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, wanted)
        problems.raise_if_any()
