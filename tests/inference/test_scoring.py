from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import write_hf
from azllm_lightning.inference import free_samples, scoring
from azllm_lightning.inference.free_samples import hf_length, hf_samples
from azllm_lightning.inference.scoring import (
    MAX_BLOCK_SIZE,
    Score,
    Scorer,
    gpt_scorer,
    load_hf,
    score,
    scorer_of,
)
from azllm_lightning.model.gpt import GPT

pytestmark = [pytest.mark.numerics, pytest.mark.xdist_group("transformers")]

TEXTS = [
    "Şəhərdə yağış yağır.",
    "Ə",
    "Bakıda külək əsir, dəniz ləpələnir, gəmilər limanda gözləyir. " * 4,
    "Uşaqlar evə qaçır.",
    "İ. Nənə çay süzür. " * 11,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300)


@pytest.fixture
def scorer(model: GPT, tokenizer: Tokenizer) -> Scorer:
    return gpt_scorer(model.eval(), tokenizer)


def nll_one_by_one(model: GPT, ids: list[int], stride: int) -> float:
    """Each token after its own context: those before it, as far back as its window reaches."""
    block = model.config.block_size
    total = 0.0
    tokens = [model.config.eos_id, *ids]
    for i in range(1, len(tokens)):
        # How often the window has moved when it reaches token i.
        steps = max(0, math.ceil((i - block) / stride))
        end = min(len(tokens) - 1, block + steps * stride)
        context = torch.tensor([tokens[max(0, end - block) : i]])
        with torch.no_grad():
            total -= float(model(context)[0, -1].log_softmax(-1)[tokens[i]])
    return total


@pytest.mark.parametrize("stride", [1, 7, 16, 32])
def test_each_token_is_scored_once_after_what_its_window_shows(
    model: GPT, tokenizer: Tokenizer, scorer: Scorer, stride: int
) -> None:
    found = list(score(scorer, TEXTS, stride))
    for text, one in zip(TEXTS, found, strict=True):
        ids = tokenizer.encode(text)
        assert one.nll == pytest.approx(nll_one_by_one(model, ids, stride), rel=1e-5)
        assert (one.tokens, one.scored_tokens) == (len(ids), len(ids))
        assert (one.num_bytes, one.scored_bytes) == (len(text.encode()), len(text.encode()))
        assert (one.documents, one.words) == (1, len(text.split()))
    assert max(one.tokens for one in found) > 3 * model.config.block_size


def test_the_default_stride_is_half_a_window(scorer: Scorer) -> None:
    assert list(score(scorer, TEXTS)) == list(score(scorer, TEXTS, 16))


def test_every_token_but_the_first_windows_has_the_tokens_before_it_in_sight(
    scorer: Scorer,
) -> None:
    """The model answers with the number of tokens before each one, which shows the context."""

    def count(input_ids: Tensor, labels: Tensor) -> Tensor:
        return torch.arange(1, input_ids.shape[1] + 1).expand(input_ids.shape).float()

    counter = scorer._replace(token_nll=count)
    text = TEXTS[2]
    (one,) = score(counter, [text], stride=8)
    first = sum(range(1, 33))
    later = one.nll - first
    num_later = one.tokens - 32
    assert num_later > 50
    assert 32 - 8 < later / num_later <= 32
    windows, rest = divmod(num_later, 8)
    assert later == windows * sum(range(25, 33)) + sum(range(33 - rest, 33))


@pytest.mark.parametrize("tokens_at_once", [1, 100, 100_000])
def test_results_do_not_depend_on_the_batch(scorer: Scorer, tokens_at_once: int) -> None:
    texts = [text[:end] for text in TEXTS for end in range(1, len(text), 5)]
    others = score(scorer, texts, tokens_at_once=tokens_at_once)
    for one, other in zip(score(scorer, texts), others, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-5)
        assert replace(one, nll=0.0) == replace(other, nll=0.0)


def test_scores_of_long_texts_come_while_others_wait(scorer: Scorer) -> None:
    """So that progress does not wait for dozens of books."""
    text = " ".join(TEXTS)
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        for _ in range(4):
            asked += 1
            yield text * (scoring.CHARACTERS_AT_ONCE // len(text) + 1)

    scores = score(scorer._replace(token_nll=lambda x, y: torch.zeros(x.shape)), texts())
    next(scores)
    assert asked == 1
    assert sum(1 for _ in scores) == 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()]
)
def test_batches_become_smaller_when_memory_runs_out(scorer: Scorer, error: Exception) -> None:
    """Nothing is scored twice or left out; only a single window has to fit."""

    def narrow(input_ids: Tensor, labels: Tensor) -> Tensor:
        if len(input_ids) > most:
            raise error
        return scorer.token_nll(input_ids, labels)

    texts = TEXTS * 3
    most = 2
    for one, other in zip(
        score(scorer._replace(token_nll=narrow), texts), score(scorer, texts), strict=True
    ):
        assert one.nll == pytest.approx(other.nll, rel=1e-5)
    most = 0
    with pytest.raises(type(error)):
        list(score(scorer._replace(token_nll=narrow), texts))


def test_batches_stay_within_the_tokens_they_are_allowed(scorer: Scorer) -> None:
    shapes = []

    def note(input_ids: Tensor, labels: Tensor) -> Tensor:
        shapes.append(input_ids.shape)
        return torch.zeros(input_ids.shape)

    list(score(scorer._replace(token_nll=note), TEXTS, tokens_at_once=64))
    assert max(shape.numel() for shape in shapes) == 64
    assert len({shape[1] for shape in shapes}) > 1, "short texts are not padded to whole windows"


def test_figures() -> None:
    total = Score(2, 4, 30, 10, 1, 8, 24, 16 * math.log(2)) + Score(1, 1, 10, 10, 0, 8, 8, 0.0)
    figures = total.metrics()
    assert figures["val_loss"] == pytest.approx(math.log(2))
    assert figures["val_ppl"] == pytest.approx(2)
    assert figures["val_bpb"] == pytest.approx(16 / 32)
    assert figures["tokens_per_word"] == 4
    assert figures["bytes_per_token"] == 2
    counts = {
        "documents": 3,
        "bytes": 40,
        "tokens": 20,
        "scored_tokens": 16,
        "scored_bytes": 32,
        "unknown_tokens": 1,
    }
    assert {key: figures[key] for key in counts} == counts
    assert Score(scored_tokens=1, nll=1e4).metrics()["val_ppl"] == math.inf


@pytest.mark.parametrize("stride", [0, 33])
def test_a_stride_out_of_range_is_refused(scorer: Scorer, stride: int) -> None:
    with pytest.raises(
        ValueError, match=f"stride={stride} is out of range: it must be from 1 to block_size=32"
    ):
        score(scorer, TEXTS, stride)


def test_the_window_can_be_shorter_but_not_longer(model: GPT, tokenizer: Tokenizer) -> None:
    (short,) = score(gpt_scorer(model, tokenizer, 8), TEXTS[:1])
    (full,) = score(gpt_scorer(model, tokenizer), TEXTS[:1])
    assert short.tokens == full.tokens > 8
    assert short.nll != full.nll
    with pytest.raises(
        ValueError, match="block_size=33 is out of range: this model takes 1 to 32 tokens"
    ):
        gpt_scorer(model, tokenizer, 33)


@pytest.fixture
def hf_folder(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The same weights and ids as a folder of transformers."""
    folder = tmp_path / "hf modeli"
    folder.mkdir()
    write_hf(model, tokenizer, folder)
    return folder


def hf_scorer(folder: Path, block_size: int | None = None) -> Scorer:
    return scorer_of(*load_hf(folder), folder, block_size)


def without(folder: Path, name: str, key: str) -> Path:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**values, key: None}), encoding="utf-8")
    return folder


def test_a_model_of_transformers_takes_the_same_path(hf_folder: Path, scorer: Scorer) -> None:
    peer = hf_scorer(hf_folder)
    assert (peer.block_size, peer.start, peer.unknown_id) == (32, [0], None)
    for ours, theirs in zip(score(scorer, TEXTS), score(peer, TEXTS), strict=True):
        assert theirs.nll == pytest.approx(ours.nll, rel=1e-5)
        assert (theirs.tokens, theirs.scored_bytes) == (ours.tokens, ours.scored_bytes)


def test_without_a_start_token_the_first_token_and_its_bytes_are_left_out(
    hf_folder: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    # config.json has the start token too.
    assert hf_scorer(without(hf_folder, "tokenizer_config.json", "bos_token")).start == [0]
    peer = hf_scorer(without(hf_folder, "config.json", "bos_token_id"))
    assert peer.start == []
    for text, one in zip(TEXTS, score(peer, TEXTS), strict=True):
        ids = tokenizer.encode(text)
        assert (one.tokens, one.scored_tokens) == (len(ids), len(ids) - 1)
        first = tokenizer.decode(ids[:1])
        # The bytes of a letter that is split between two tokens count for the second token.
        expected = 0 if "\ufffd" in first else len(first.encode())
        expected = expected if len(ids) > 1 else len(text.encode())
        assert one.num_bytes - one.scored_bytes == expected
    short = TEXTS[3]
    ids = tokenizer.encode(short)[:32]
    with torch.no_grad():
        nll = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), reduction="none")
    (found,) = score(peer, [tokenizer.decode(ids)])
    assert found.nll == pytest.approx(float(nll.sum()), rel=1e-5)


def test_a_model_that_sees_images_too(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration has that of the text in a part of its own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text = {"vocab_size": 300, "max_position_embeddings": 48, "bos_token_id": 7}
    vision = {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**size, **heads, **text},
        vision_config={**size, **vision},
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_json(), encoding="utf-8")
    PreTrainedTokenizerFast(tokenizer_file=str(file)).save_pretrained(tmp_path)
    model, its_tokenizer = load_hf(tmp_path)
    assert type(model) is Gemma3ForConditionalGeneration
    scorer = scorer_of(model, its_tokenizer, tmp_path)
    assert (scorer.start, scorer.block_size) == ([7], 48)
    (one,) = score(scorer, TEXTS[:1])
    assert one.nll / one.scored_tokens == pytest.approx(math.log(300), abs=1)
    assert hf_length(model, scorer.start) == 47
    monkeypatch.setattr(free_samples, "NUM_SAMPLES", 2)
    assert len(set(hf_samples(model, its_tokenizer, scorer.start, 8))) == 2


def test_a_long_context_is_not_used_in_full(hf_folder: Path) -> None:
    path = hf_folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "max_position_embeddings": 40_960}), encoding="utf-8")
    assert hf_scorer(hf_folder).block_size == MAX_BLOCK_SIZE
    assert hf_scorer(hf_folder, block_size=4000).block_size == 4000


def test_code_in_the_folder_is_not_run(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked about it, either; where transformers knows the model, it is not needed."""
    path = hf_folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    (hf_folder / "own.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    values["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    path.write_text(json.dumps(values), encoding="utf-8")
    assert hf_scorer(hf_folder).start == [0]
    path.write_text(json.dumps({**values, "model_type": "unknown"}), encoding="utf-8")
    with pytest.raises(ValueError, match="code from a model folder is never run here") as raised:
        hf_scorer(hf_folder)
    assert "trust_remote_code" not in str(raised.value)


def test_a_folder_that_cannot_be_loaded_is_refused(
    tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"hf=.*yoxdur: no config\.json there; give a folder"):
        hf_scorer(tmp_path / "yoxdur")
    (hf_folder / "model.safetensors").write_bytes(b"yarim")
    with pytest.raises(ValueError, match="transformers cannot load this model"):
        hf_scorer(hf_folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="this needs the package transformers"):
        hf_scorer(hf_folder)
