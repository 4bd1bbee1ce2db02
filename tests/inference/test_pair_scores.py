from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from azllm_lightning.azerbaijani.pairs import is_decided_before, minimal_pairs, phenomenon_group
from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.inference.pair_files import SentencePair
from azllm_lightning.inference.pair_scores import (
    differing_words,
    pair_report,
    pair_results,
    pairs_to_score,
    wilson_interval,
)
from azllm_lightning.inference.scoring import Scorer, gpt_scorer
from azllm_lightning.model.gpt import GPT

OWN = [pair for i, pair in enumerate(pairs_to_score(True)) if i % 200 < 2]
"""A couple of each phenomenon."""

TURKISH = pairs_to_score("turkish")[::50]


def scorer_by(cost: Callable[[str], int], start: list[int]) -> Scorer:
    """A scorer whose tokens are letters, of which those that `cost` numbers cost as many nats."""
    return Scorer(
        token_nll=lambda input_ids, labels: labels.float(),
        encode=lambda texts: [[cost(letter) for letter in text] for text in texts],
        start=start,
        unscored_bytes=lambda text: 0,
        unknown_id=None,
        vocab_size=256,
        block_size=512,
        device=torch.device("cpu"),
    )


def judge(prefers_correct: bool, start: list[int]) -> Scorer:
    """A scorer that gives each correct sentence the higher probability, or the opposite."""
    correct = {pair.right for pair in [*OWN, *TURKISH]}
    return scorer_by(len, start)._replace(
        encode=lambda texts: [
            [3, 1 if (text in correct) == prefers_correct else 2] for text in texts
        ]
    )


@pytest.mark.parametrize(("prefers_correct", "expected"), [(True, 1.0), (False, 0.0)])
def test_a_pair_is_correct_if_the_correct_sentence_is_likelier(
    prefers_correct: bool, expected: float
) -> None:
    # A sentence of a crossed couple is never right and wrong, so that this judge exists.
    assert {pair.right for pair in OWN}.isdisjoint(pair.wrong for pair in OWN)
    results = pair_results(judge(prefers_correct, start=[0]), OWN, None, own=True)
    assert {row["accuracy"] for row in results["phenomena"].values()} == {expected}
    assert {row["total"]["accuracy"] for row in results["phenomena"].values()} == {expected}
    assert results["all"]["accuracy"] == expected
    assert results["all"]["pairs"] == len(OWN)
    assert results["groups"]["grammar"]["pairs"] + results["groups"]["spelling"]["pairs"] == len(
        OWN
    )


def test_three_scores_answer_three_questions() -> None:
    """The wrong sentence is the shorter one: total prefers it, per byte and the word do not."""
    pairs = [SentencePair("a", "x dddd", "x f")]
    scorer = scorer_by({"x": 9, " ": 1, "d": 2, "f": 3}.__getitem__, start=[0])
    row = pair_results(scorer, pairs, None, own=False)["phenomena"]["a"]
    # right: 9 + 1 + 8 nats in 6 bytes, wrong: 9 + 1 + 3 in 3
    assert row["total"]["accuracy"] == 0
    assert row["per_byte"]["accuracy"] == 1
    assert row["word"]["accuracy"] == 0
    assert row["word_bits"]["mean"] == pytest.approx((4 - 9) / math.log(2))


def test_the_score_of_a_word_is_that_of_its_tokens_after_what_precedes_them(model: GPT) -> None:
    texts = ["Mən dünən gecikdim, sonra getdim.", "Mən dünən gecikdik, sonra getdim."]
    tokenizer = Tokenizer.train(texts * 3, vocab_size=290)
    scorer = gpt_scorer(model.eval(), tokenizer)
    (row,) = pair_results(scorer, [SentencePair("a", *texts)], None, own=False)[
        "phenomena"
    ].values()
    losses = []
    for text in texts:
        ids = [0, *tokenizer.encode(text)]
        word = text.split()[2].rstrip(",")
        begin = 1 + len(tokenizer.encode("Mən dünən"))
        end = 1 + len(tokenizer.encode(f"Mən dünən {word}"))
        with torch.no_grad():
            logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        losses.append(-sum(float(logs[i - 1, ids[i]]) for i in range(begin, end)))
    assert row["word_bits"]["mean"] == pytest.approx(
        (losses[1] - losses[0]) / math.log(2), rel=1e-4
    )


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("Mən gəldim.", "Mən gəldin.", ("gəldim", "gəldin")),
        ("Əgər sən gəlsən, gedərəm.", "Əgər sən gəlsəm, gedərəm.", ("gəlsən", "gəlsəm")),
        ("O nə gördü?", "O gördü?", ("nə gördü", "gördü")),
        ("O gördü nə", "O gördü", ("gördü nə", "gördü")),
        ("iki yeni ev tikdi", "iki köhnə evlər tikdi", ("yeni ev", "köhnə evlər")),
        ("a a a", "a a", ("a a", "a")),
        # where only punctuation differs, it is what is scored
        ("Sən haradasan?", "Sən haradasan.", ("haradasan?", "haradasan.")),
        ("Haradasan? Gəl.", "Haradasan. Gəl.", ("Haradasan?", "Haradasan.")),
        ("Gəldi, getdi.", "Gəldi getdi.", ("Gəldi, getdi.", "Gəldi getdi.")),
        ("Gəl, Əli, gedək!", "Gəl, Əli gedək.", ("Əli, gedək", "Əli gedək")),
        ("Hə...", "Hə", ("Hə...", "Hə")),
    ],
)
def test_the_words_that_differ(right: str, wrong: str, words: tuple[str, str]) -> None:
    first, second = differing_words(right, wrong)
    assert (right[slice(*first)], wrong[slice(*second)]) == words


def test_a_pair_that_differs_in_punctuation_has_a_score_of_its_word() -> None:
    scorer = scorer_by({"x": 9, "?": 2, ".": 5}.__getitem__, start=[0])
    row = pair_results(scorer, [SentencePair("a", "x?", "x.")], None, own=False)["phenomena"]["a"]
    assert row["word"]["accuracy"] == 1
    assert row["word_bits"]["mean"] == pytest.approx(3 / math.log(2))


def test_our_pairs_differ_in_the_word_that_they_name() -> None:
    for pair in minimal_pairs()[::20]:
        first, second = differing_words(pair.right, pair.wrong)
        found = pair.right[slice(*first)], pair.wrong[slice(*second)]
        assert found[0][1:] == pair.right_form[1:]
        assert found[1][1:] == pair.wrong_form[1:]


def test_a_word_is_no_score_where_what_decides_comes_later() -> None:
    results = pair_results(judge(True, start=[0]), OWN, None, own=True)
    without = {name for name, row in results["phenomena"].items() if row["word"] is None}
    assert without == {name for name in results["phenomena"] if not is_decided_before(name)}
    assert "case_government" in without
    assert all(phenomenon_group(name) == "grammar" for name in without)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_report_has_a_row_per_phenomenon(lang: str) -> None:
    use_language(lang)
    scorer = judge(True, start=[])
    for pairs, groups in ((OWN, 2), (TURKISH, 0)):
        results = pair_results(scorer, pairs, None, own=True)
        lines = pair_report(scorer, results).splitlines()
        rows = lines[: len(results["phenomena"]) + groups + 2]
        assert max(map(len, rows)) <= 80
        assert rows[-1].split()[1] == "100%"
    use_language("en")
    assert pair_report(scorer, results).endswith("the first token of each sentence is not scored")


def test_the_bits_of_a_single_pair_have_no_interval() -> None:
    scorer = judge(True, start=[0])
    one = pair_results(scorer, OWN[:1], None, own=True)["all"]["word_bits"]
    assert (abs(one["mean"]) > 1, one["low"], one["high"]) == (True, None, None)
    bits = pair_results(scorer, OWN, None, own=True)["all"]["word_bits"]
    assert bits["low"] <= bits["mean"] <= bits["high"]


def test_wilson_interval() -> None:
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(100, 100) == pytest.approx((0.9630, 1.0), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
