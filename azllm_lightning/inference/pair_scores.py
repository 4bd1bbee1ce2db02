"""How much grammar a model knows: how often it prefers the correct sentence of a minimal pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from azllm_lightning.azerbaijani.pairs import minimal_pairs, phenomenon_name
from azllm_lightning.cli.messages import language, tr
from azllm_lightning.data.progress import Progress
from azllm_lightning.inference.scoring import score
from azllm_lightning.inference.tables import table

if TYPE_CHECKING:
    from azllm_lightning.inference.scoring import Scorer


def pair_results(scorer: Scorer, stride: int | None) -> dict[str, Any]:
    """The accuracy on the pairs of each phenomenon and on all, with 95 % intervals.

    A pair counts as correct if the correct sentence has the higher total log-probability.
    """
    pairs = minimal_pairs()
    sentences = [sentence for pair in pairs for sentence in (pair.right, pair.wrong)]
    num_bytes = sum(len(sentence.encode("utf-8")) for sentence in sentences)
    nll = []
    with Progress(tr("evaluating"), num_bytes) as progress:
        for sentence_score in score(scorer, sentences, stride):
            nll.append(sentence_score.nll)
            progress.add(sentence_score.num_bytes)
    correct: dict[str, list[bool]] = {}
    for pair, right, wrong in zip(pairs, nll[::2], nll[1::2], strict=True):
        correct.setdefault(pair.phenomenon, []).append(right < wrong)
    return {
        "all": _accuracy([outcome for outcomes in correct.values() for outcome in outcomes]),
        "phenomena": {phenomenon: _accuracy(outcomes) for phenomenon, outcomes in correct.items()},
    }


def pair_report(scorer: Scorer, results: dict[str, Any]) -> str:
    """What is printed of `pair_results`: a table, and how it was measured."""
    heads = [tr("phenomenon"), tr("accuracy"), tr("95 % interval"), tr("pairs")]
    lang: Literal["en", "az"] = "az" if language() == "az" else "en"
    named = [(phenomenon_name(key, lang), row) for key, row in results["phenomena"].items()]
    rows = [
        [
            name,
            f"{row['accuracy']:.1%}",
            tr("{low:.1%} to {high:.1%}", low=row["low"], high=row["high"]),
            f"{row['pairs']:,}",
        ]
        for name, row in [*named, (tr("all"), results["all"])]
    ]
    lines = [
        table(heads, rows),
        tr(
            "a pair counts as correct if the correct sentence has the higher total "
            "log-probability; chance is 50 %"
        ),
    ]
    if not scorer.start:
        lines.append(tr("no start token: the first token of each sentence is not scored"))
    return "\n".join(lines)


def _accuracy(correct: list[bool]) -> dict[str, float]:
    low, high = wilson_interval(sum(correct), len(correct))
    return {
        "accuracy": sum(correct) / len(correct),
        "low": low,
        "high": high,
        "pairs": len(correct),
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927); within [0, 1] for any counts."""
    z = 1.959963984540054
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
