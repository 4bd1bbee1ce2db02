from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_scorer import byte_scorer

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.data.corpus import Document
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.inference.scoring import Scorer, gpt_scorer, load_hf, scorer_of
from azllm_lightning.inference.second_half import (
    HalfScore,
    half_report,
    half_results,
    half_scores,
    half_scores_by_source,
)
from azllm_lightning.inference.text_scores import TextToScore
from azllm_lightning.model.gpt import GPT

pytestmark = [pytest.mark.numerics, pytest.mark.xdist_group("transformers")]

LINES = [
    "Şəhərdə yağış yağır, küçələr boşdur.",
    "  Dəniz ləpələnir.  ",
    "Kitabxanalarımızdakılardan",  # one word, cut within it
    "Ə",
    "Ev",
    "Bakıda külək əsir və gəmilər limanda gözləyir. " * 8,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(LINES * 2, vocab_size=300)


def bits_token_by_token(
    predict: Any, encode: Any, line: str, start: list[int], block_size: int, stride: int
) -> float:
    """The definition, a token at a time: `predict` gives log-probabilities after a context."""
    line = line.strip()
    tokens = start + encode(line)
    tokens = tokens[:512]
    first_half = len(encode(line[: len(line) // 2]))
    total = 0.0
    for i in range(max(1, len(start) + first_half), len(tokens)):
        steps = max(0, math.ceil((i - block_size) / stride))
        context = tokens[max(0, min(len(tokens) - 1, block_size + steps * stride) - block_size) : i]
        total -= float(predict(context)[tokens[i]]) / math.log(2)
    return total


def test_our_model_gives_what_a_plain_loop_gives(model: GPT, tokenizer: Tokenizer) -> None:
    """Its window of 32 tokens is shorter than the last line."""
    model.eval()
    found = list(half_scores(gpt_scorer(model, tokenizer), LINES, stride=16))
    assert len(tokenizer.encode(LINES[-1])) > 32

    def predict(context: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([context]))[0, -1].log_softmax(-1)

    for line, score in zip(LINES, found, strict=True):
        expected = bits_token_by_token(predict, tokenizer.encode, line, [0], 32, 16)
        assert score.bits == pytest.approx(expected, rel=1e-5, abs=1e-9)
    whole_letter = found[3]  # no first half: all of it, given the start token
    assert whole_letter.tokens == len(tokenizer.encode("Ə"))
    assert found[0].bits > 0


def test_a_cut_within_a_token_counts_the_tokens_of_the_first_half_alone() -> None:
    """`ab` is one token, and so is `a`: the one token of the word is context. Cut before `cd`, the
    token `bcd` that begins earlier is scored.
    """
    ids = {"a": 1, "ab": 2, "xabcd": [3, 4], "xa": [3], "xy": [5, 6, 7], "x": [3], "": []}

    def encode(texts: Any) -> list[list[int]]:
        found = (ids[text] for text in texts)
        return [value if isinstance(value, list) else [value] for value in found]

    scorer = constant_scorer(start=[0])._replace(encode=encode)
    scores = list(half_scores(scorer, ["ab", "xabcd", "xy", "x"]))
    assert [score.tokens for score in scores] == [0, 1, 2, 1]
    assert [score.bits for score in scores] == pytest.approx([0, 1, 2, 1])


def constant_scorer(start: list[int]) -> Scorer:
    """A bit per token."""
    return byte_scorer(start, nll=math.log(2), unknown="?", vocab_size=1024)


def test_without_a_start_token_the_first_token_is_never_scored() -> None:
    with_start = list(half_scores(constant_scorer([0]), ["abcd", "abc", "a"]))
    without = list(half_scores(constant_scorer([]), ["abcd", "abc", "a"]))
    assert [score.tokens for score in with_start] == [2, 2, 1]
    assert [score.tokens for score in without] == [2, 2, 0]


def test_lines_are_read_up_to_512_tokens() -> None:
    """With a start token that leaves 511 for the line; its first half is context as always."""
    lines = ["a" * 511, "a" * 512, "a" * 800, "a" * 1100]
    scores = list(half_scores(constant_scorer([0]), lines))
    assert [score.tokens for score in scores] == [256, 255, 111, 0]
    assert [score.cut_lines for score in scores] == [0, 1, 1, 1]


def test_an_unknown_token_costs_the_log_of_the_vocabulary() -> None:
    (score,) = half_scores(constant_scorer([0]), ["a?b?"])
    assert score.bits == pytest.approx(1 + 10)
    assert score.unknown_tokens == 1


def test_a_model_of_transformers_gives_what_a_plain_loop_gives(tmp_path: Path) -> None:
    """Its tokenizer does not split into bytes and knows few words."""
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(tokenizers.models.Unigram())
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<unk>", "[CLS]"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(["Dəniz ləpələnir", "küçələr boşdur", "limanda gəmi var"] * 3, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", cls_token="[CLS]"
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    size = {"vocab_size": core.get_vocab_size(), "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(n_positions=512, **size)).save_pretrained(tmp_path)
    model, tokenizer = load_hf(tmp_path)
    scorer = scorer_of(model, tokenizer, tmp_path)
    assert scorer.start == [1]
    found = list(half_scores(scorer, LINES))

    def encode(text: str) -> list[int]:
        return core.encode(text, add_special_tokens=False).ids

    def predict(context: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logs = model(torch.tensor([context])).logits[0, -1].log_softmax(-1)
        logs[0] = -math.log(scorer.vocab_size)
        return logs

    for line, score in zip(LINES, found, strict=True):
        expected = bits_token_by_token(predict, encode, line, [1], 512, 256)
        assert score.bits == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert sum(score.unknown_tokens for score in found) > 0


def test_lines_of_documents_by_source() -> None:
    documents = [Document("ab\n\n  abcd\n", "xəbər", "val"), Document("abcdef", "nağıl", "val")]
    scores = half_scores_by_source(constant_scorer([0]), TextToScore(documents, "", None), None)
    assert list(scores) == ["nağıl", "xəbər"]
    news = scores["xəbər"]
    assert (news.lines, news.tokens) == (2, 3)
    assert (news.bits, news.squares) == (pytest.approx(3), pytest.approx(5))
    total = sum(scores.values(), HalfScore()).metrics()
    assert (total["bits"], total["lines"]) == (pytest.approx(2), 3)
    assert total["high"] - total["low"] == pytest.approx(2 * 1.96 / math.sqrt(3))


def test_a_single_line_has_no_interval() -> None:
    scorer = constant_scorer([0])
    text = TextToScore([Document("abcd", "a", "val")], "", None)
    results = half_results(scorer, half_scores_by_source(scorer, text, None), None, None)
    total = json.loads(json.dumps(results))["all"]
    assert (total["bits"], total["low"], total["high"]) == (pytest.approx(2), None, None)
    (row,) = [line for line in half_report(scorer, results).splitlines() if "this model" in line]
    assert row.split()[-3:] == ["2.00", "-", "1"]
    several = HalfScore(lines=2, bits=4, squares=10).metrics()
    assert several["high"] > several["low"]
    assert HalfScore().metrics()["low"] is None


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_report_has_the_published_figures(lang: str) -> None:
    use_language(lang)
    scorer = constant_scorer([])
    documents = [Document("abcd?" * 200, "a", "val"), Document("ab?", "b", "val")]
    scores = half_scores_by_source(scorer, TextToScore(documents, "", None), None)
    results = half_results(scorer, scores, None, 5_000_000)
    json.dumps(results)
    text = half_report(scorer, results)
    table = text.splitlines()[:14]
    assert max(map(len, table)) <= 80
    assert [line.split()[:2] for line in table if "10mb" in line] == [["Goldfish", "10mb"]]
    assert "116.45" in text
    assert "tylerachang/goldfish" in text
