from __future__ import annotations

import pytest
from byte_scorer import byte_scorer

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.inference.scoring import Score, Scorer
from azllm_lightning.inference.text_scores import (
    TextToScore,
    score_by_source,
    text_report,
    text_results,
)

TEXTS = [("xəbər", "Nazir getdi"), ("nağıl", "Bir gün"), ("nağıl", "Tülkü meşəyə getdi")]


def scorer(start: list[int]) -> Scorer:
    return byte_scorer(start, nll=1.0, unknown="g", vocab_size=256)


def test_scores_are_summed_by_source() -> None:
    scores = score_by_source(scorer([0]), TextToScore(TEXTS, "mətn", None), stride=4)
    assert list(scores) == ["nağıl", "xəbər"]
    assert (scores["nağıl"].documents, scores["xəbər"].documents) == (2, 1)
    assert scores["nağıl"].nll == len("Bir günTülkü meşəyə getdi".encode())
    results = text_results(scorer([0]), scores, 4)
    assert results["all"] == (scores["nağıl"] + scores["xəbər"]).metrics()
    assert (results["block_size"], results["stride"]) == (8, 4)
    assert text_results(scorer([0]), scores, None)["stride"] == 4


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_table_fits_80_columns(lang: str) -> None:
    """With the largest figures that are likely, and names that differ at their ends."""
    use_language(lang)
    score = Score(90_000, 50_000_000, 350_000_000, 100_000_000, 0, 100_000_000, 350_000_000, 1e9)
    names = [f"çox uzun bir mənbənin adı {i}" for i in range(2)]
    results = text_results(scorer([0]), dict.fromkeys(names, score), None)
    lines = text_report(scorer([0]), results).splitlines()[:4]
    assert max(map(len, lines)) <= 80
    assert len(set(lines)) == 4


def test_what_a_report_says_of_the_model() -> None:
    def notes(start: list[int]) -> list[str]:
        model = scorer(start)
        scores = score_by_source(model, TextToScore(TEXTS, "mətn", None), None)
        report = text_report(model, text_results(model, scores, None)).splitlines()
        return [*report[4:8], " ".join(report[8:])]

    *_, unknown = notes([0])
    assert notes([0])[0] == "windows of 8 tokens, stride 4, fp32"
    assert ("3 unknown tokens, for text that the tokenizer cannot represent: the bpb of") in unknown
    *_, no_start = notes([])
    assert "the first token of each document is not scored (3 tokens, 3 bytes)" in no_start
