"""How often a model prefers the correct sentence of a minimal pair, by three scores.

total      the log-probability of the sentence, as in BLiMP and MultiBLiMP. It asks which of the two
           the model would rather write, and favors the shorter one.
per_byte   the same divided by the UTF-8 bytes of the sentence. It asks which is the more ordinary
           for its length, and favors a long one whose end follows from its beginning.
word       the log-probability of the words that differ, given what comes before them. It asks which
           form the model expects there, and says nothing where what decides comes later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from azllm_lightning.azerbaijani.pairs import (
    is_decided_before,
    minimal_pairs,
    phenomenon_group,
    phenomenon_name,
    turkish_pairs,
)
from azllm_lightning.cli.messages import language, tr
from azllm_lightning.data.progress import Progress
from azllm_lightning.inference.pair_files import SentencePair, read_pairs
from azllm_lightning.inference.scoring import token_losses
from azllm_lightning.inference.tables import table

if TYPE_CHECKING:
    from azllm_lightning.inference.scoring import ScoredText, Scorer

SCORES = ("total", "per_byte", "word")
_TRAILING = re.compile(r"(?<=\w)[^\w\s]+$")
TURKISH = "turkish"
"""The value of `pairs` that means the list of Turkish interference."""


class SentenceLoss(NamedTuple):
    """The losses of a sentence in nats: of all of it, per byte, and of the words that differ."""

    total: float
    per_byte: float
    word: float


def pairs_to_score(pairs: bool | str) -> list[SentencePair]:
    """Our minimal pairs (True), those of Turkish interference (TURKISH), or those of a file."""
    if isinstance(pairs, str) and pairs != TURKISH:
        return read_pairs(pairs)
    own = turkish_pairs() if pairs == TURKISH else minimal_pairs()
    return [SentencePair(pair.phenomenon, pair.right, pair.wrong) for pair in own]


def pair_results(
    scorer: Scorer, pairs: Sequence[SentencePair], stride: int | None, own: bool
) -> dict[str, Any]:
    """The accuracy on the pairs of each phenomenon and on all, with 95 % intervals.

    `own` pairs have groups of phenomena, and phenomena for which `word` is no score.
    """
    sentences = sentence_losses(scorer, pairs, stride)
    found: dict[str, list[tuple[SentenceLoss, SentenceLoss]]] = {}
    for pair, right, wrong in zip(pairs, sentences[::2], sentences[1::2], strict=True):
        found.setdefault(pair.group, []).append((right, wrong))
    phenomena = {
        name: _accuracies(scored, has_word=not own or is_decided_before(name))
        for name, scored in found.items()
    }
    results = {"all": _together(found, own), "phenomena": phenomena}
    if own:
        groups: dict[str, dict[str, list[tuple[SentenceLoss, SentenceLoss]]]] = {}
        for name, scored in found.items():
            groups.setdefault(phenomenon_group(name), {})[name] = scored
        results["groups"] = {name: _together(group, own) for name, group in groups.items()}
    return results


def sentence_losses(
    scorer: Scorer, pairs: Sequence[SentencePair], stride: int | None
) -> list[SentenceLoss]:
    """The right and the wrong sentence of each pair, in turn."""
    texts = [text for pair in pairs for text in (pair.right, pair.wrong)]
    spans = [span for pair in pairs for span in differing_words(pair.right, pair.wrong)]
    sentences = []
    with Progress(tr("evaluating"), sum(len(text.encode("utf-8")) for text in texts)) as progress:
        for scored, span in zip(token_losses(scorer, texts, stride), spans, strict=True):
            num_bytes = len(scored.text.encode("utf-8"))
            total = float(scored.nll.sum())
            word = _word_loss(scorer, scored, *span)
            sentences.append(SentenceLoss(total, total / max(1, num_bytes), word))
            progress.add(num_bytes)
    return sentences


def differing_words(right: str, wrong: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the words that differ begin and end, in characters, in each of two sentences.

    What precedes and follows them is the same words in both. A word that only one of them has
    comes with the next one, or at the end of the sentence with the one before it. Punctuation after
    a word does not belong to it, unless it is all that differs: punctuation that only one of them
    has comes with the next word, too.
    """
    words = [list(re.finditer(r"\S+", text)) for text in (right, wrong)]
    texts = [[word[0] for word in each] for each in words]
    shorter = min(map(len, texts))
    before = 0
    while before < shorter and texts[0][before] == texts[1][before]:
        before += 1
    after = 0
    while after < shorter - before and texts[0][-1 - after] == texts[1][-1 - after]:
        after += 1
    if before + after == shorter:  # one of them has nothing between
        after, before = (after - 1, before) if after else (after, max(0, before - 1))
    starts = [each[before].start() for each in words]
    whole = [each[len(each) - after - 1].end() for each in words]
    bare = [
        start + len(_TRAILING.sub("", text[start:end]))
        for text, start, end in zip((right, wrong), starts, whole, strict=True)
    ]
    if right[starts[0] : bare[0]] != wrong[starts[1] : bare[1]]:
        ends = bare
    elif after and (whole[0] == bare[0] or whole[1] == bare[1]):  # one of them has no punctuation
        ends = [each[len(each) - after].end() for each in words]
    else:
        ends = whole
    return (starts[0], ends[0]), (starts[1], ends[1])


def _word_loss(scorer: Scorer, scored: ScoredText, start: int, end: int) -> float:
    """The loss of the tokens that the text from `start` to `end` has a part in."""
    first = _tokens_within(scorer, scored, scored.text[:start].rstrip())
    head = scorer.encode([scored.text[:end]])[0]
    last = _tokens_within(scorer, scored, scored.text[:end])
    if last < len(head):  # a token goes beyond the end
        last += 1
    unscored = len(scored.ids) - len(scored.nll)
    return float(scored.nll[max(0, first - unscored) : max(0, last - unscored)].sum())


def _tokens_within(scorer: Scorer, scored: ScoredText, beginning: str) -> int:
    """How many tokens of a text are those of its beginning alone."""
    alone = scorer.encode([beginning])[0] if beginning else []
    number = 0
    while number < min(len(alone), len(scored.ids)) and alone[number] == scored.ids[number]:
        number += 1
    return number


def _together(
    found: dict[str, list[tuple[SentenceLoss, SentenceLoss]]], own: bool
) -> dict[str, Any]:
    """The accuracies of several phenomena; the score of words counts those that have it."""
    everything = [pair for scored in found.values() for pair in scored]
    with_word = [
        pair
        for name, scored in found.items()
        if not own or is_decided_before(name)
        for pair in scored
    ]
    return {**_accuracies(everything, has_word=False), **_word_scores(with_word)}


def _accuracies(scored: list[tuple[SentenceLoss, SentenceLoss]], has_word: bool) -> dict[str, Any]:
    rows = {
        score: _accuracy([getattr(a, score) < getattr(b, score) for a, b in scored])
        for score in ("total", "per_byte")
    }
    total = rows["total"]
    word = _word_scores(scored if has_word else [])
    return {**(total or {}), "pairs": len(scored), **rows, **word}


def _word_scores(scored: list[tuple[SentenceLoss, SentenceLoss]]) -> dict[str, Any]:
    """The accuracy at the words that differ, and the mean difference there in bits."""
    gains = [(wrong.word - right.word) / math.log(2) for right, wrong in scored]
    return {"word": _accuracy([gain > 0 for gain in gains]), "word_bits": _mean(gains)}


def _accuracy(correct: list[bool]) -> dict[str, float] | None:
    if not correct:
        return None
    low, high = wilson_interval(sum(correct), len(correct))
    return {"accuracy": sum(correct) / len(correct), "low": low, "high": high}


def _mean(values: list[float]) -> dict[str, float | None] | None:
    """The mean with its 95 % interval; that of a single value is None to None."""
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = 1.96 * math.sqrt(spread / len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927); within [0, 1] for any counts."""
    z = 1.959963984540054
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def pair_report(scorer: Scorer, results: dict[str, Any]) -> str:
    """What is printed of `pair_results`: a table, and what its columns say."""
    heads = [tr("phenomenon"), tr("total"), tr("per byte"), tr("word"), tr("bits"), tr("pairs")]
    groups = {"grammar": tr("grammar"), "spelling": tr("spelling"), TURKISH: tr("Turkish")}
    own = results.get("groups", {})
    rows = [_row(named(key) if own else key, row) for key, row in results["phenomena"].items()]
    rows += [_row(groups[key], row) for key, row in own.items() if len(own) > 1]
    rows.append(_row(tr("all"), results["all"]))
    lines = [
        table(heads, rows),
        tr("share of pairs in which the correct sentence wins, with 95 % interval; chance is 50 %"),
        tr("total: its log-probability is higher; favors the shorter sentence"),
        tr("per byte: it is higher per byte; favors long words that are easy to guess"),
        tr(
            "word: that of the words that differ is, given those before; nothing where what "
            "decides comes later"
        ),
        tr("bits: by how much, on average"),
    ]
    if "spelling" in own:
        lines.append(
            tr(
                "grammar: length, single words and neighbors decide exactly half; spelling: a "
                "model may know the words by heart"
            )
        )
    if not scorer.start:
        lines.append(tr("no start token: the first token of each sentence is not scored"))
    return "\n".join(lines)


def named(phenomenon: str) -> str:
    """The name of one of our phenomena in the language in use."""
    lang: Literal["en", "az"] = "az" if language() == "az" else "en"
    return phenomenon_name(phenomenon, lang)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    bits = row["word_bits"]
    return [
        name,
        *(_share(row[score]) for score in SCORES),
        f"{bits['mean']:+.1f}" if bits else "",
        f"{row['pairs']:,}",
    ]


def _share(row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    return f"{row['accuracy']:.0%} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
