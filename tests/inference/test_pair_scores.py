from __future__ import annotations

import pytest
import torch

from azllm_lightning.azerbaijani.pairs import minimal_pairs
from azllm_lightning.inference.pair_scores import pair_report, pair_results, wilson_interval
from azllm_lightning.inference.scoring import Scorer


def judge(prefers_correct: bool, start: list[int]) -> Scorer:
    """A scorer that gives each correct sentence the higher probability, or the opposite."""
    correct = {pair.right for pair in minimal_pairs()}
    return Scorer(
        token_nll=lambda input_ids, labels: labels.float(),
        encode=lambda texts: [
            [3, 1 if (text in correct) == prefers_correct else 2] for text in texts
        ],
        start=start,
        unscored_bytes=lambda text: 0,
        unknown_id=None,
        vocab_size=256,
        block_size=8,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("prefers_correct", "expected"), [(True, 1.0), (False, 0.0)])
def test_a_pair_is_correct_if_the_correct_sentence_is_likelier(
    prefers_correct: bool, expected: float
) -> None:
    results = pair_results(judge(prefers_correct, start=[0]), None)
    assert len(results["phenomena"]) >= 12
    assert {row["accuracy"] for row in results["phenomena"].values()} == {expected}
    assert results["all"]["accuracy"] == expected
    assert results["all"]["pairs"] == len(minimal_pairs())


def test_a_report_has_a_row_per_phenomenon() -> None:
    scorer = judge(True, start=[])
    results = pair_results(scorer, None)
    lines = pair_report(scorer, results).splitlines()
    assert max(map(len, lines[: len(results["phenomena"]) + 2])) <= 80
    assert lines[len(results["phenomena"]) + 1].split()[:2] == ["all", "100.0%"]
    assert lines[-2].startswith("a pair counts as correct if the correct sentence has the higher")
    assert lines[-1] == "no start token: the first token of each sentence is not scored"


def test_wilson_interval() -> None:
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(100, 100) == pytest.approx((0.9630, 1.0), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
