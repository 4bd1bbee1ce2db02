from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.data.shards import VERSION, Manifest, ShardWriter
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.inference import free_samples
from azllm_lightning.inference.free_samples import sample_report, sample_results

READ = [
    "Bir gün tülkü meşəyə getdi və orada böyük bir göl gördü. Gölün kənarında qurbağa oturmuşdu, "
    "o da tülküdən qorxub suya tullandı. Tülkü evə qayıtdı.",
    "Nənəm bizə hər axşam nağıl danışırdı, biz də qulaq asırdıq.",
]
HELD_OUT = ["Uşaqlar həyətdə top oynayırdı, bir gün yağış yağdı.", "Bir gün nənəm bizə gəldi."]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Prepared data: READ is the training text, HELD_OUT the validation text."""
    tokenizer = Tokenizer.train([*READ, *HELD_OUT], vocab_size=300)
    splits = {}
    for split, texts in (("train", READ), ("val", HELD_OUT)):
        with ShardWriter(tmp_path, split) as writer:
            for text in texts:
                tokens = np.array([*tokenizer.encode(text), tokenizer.eot_id])
                writer.write(tokens, 1, len(text.encode()))
            splits[split] = writer.close()
    Manifest(VERSION, tokenizer.fingerprint, tokenizer.vocab_size, splits, (), {}, {}).write(
        tmp_path
    )
    tokenizer.save(tmp_path / "tokenizer.json")
    return tmp_path


def test_a_model_that_recites_is_seen_to_recite(prepared: Path) -> None:
    recited = sample_results([READ[0], READ[1]], prepared)["figures"]
    assert recited["longest"] == len(READ[0])
    assert recited["longest_text"] == READ[0]
    # the second text is shorter than what counts as recited
    assert recited["recited"] == 0.5
    assert recited["in_training_text"] == 1
    made_up = sample_results(["Tülkü gölün kənarında nağıl danışırdı.", READ[1][:20]], prepared)
    assert made_up["figures"]["recited"] == 0
    assert made_up["figures"]["longest"] == pytest.approx(20, abs=3)
    assert made_up["held_out"]["longest"] < 20


def test_held_out_text_has_the_number_and_the_length_of_the_samples(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(prepared)
    results = sample_results(["Bir gün", READ[1], READ[0]], prepared)
    assert results["held_out"]["texts"] == 2
    cut = tokenizer.decode(tokenizer.encode(HELD_OUT[0])[: len(tokenizer.encode("Bir gün"))])
    assert results["held_out"]["words"] == len(cut.split()) + len(HELD_OUT[1].split())


def test_words_exist_by_the_morphology_or_in_the_training_text(prepared: Path) -> None:
    # evlərimizdən has an analysis, qurbağa was read, zırtpırt is neither
    found = sample_results(["Evlərimizdən QURBAĞA, zırtpırt zırtpırt"], prepared)["figures"]
    assert found["known_words"] == 0.5
    assert found["in_training_text"] == 0.25
    assert found["unknown"] == ["zırtpırt"]
    alone = sample_results(["Evlərimizdən zırtpırt"], None)
    assert alone["figures"]["known_words"] == 0.5
    assert alone["figures"]["in_training_text"] is None
    assert alone["figures"]["longest"] is None
    assert alone["held_out"] is None


def test_repetition_is_within_a_text() -> None:
    found = sample_results(["bir iki üç dörd beş", "bir iki bir iki bir"], None)["figures"]
    assert found["distinct_2"] == pytest.approx((1 + 2 / 4) / 2)
    assert found["distinct_4"] == pytest.approx((1 + 1) / 2)
    short = sample_results(["", "bir", "bir bir bir"], None)["figures"]
    assert (short["distinct_2"], short["distinct_4"]) == (0.5, None)


def test_a_model_that_writes_nothing_has_no_shares(prepared: Path) -> None:
    results = sample_results(["", " "], prepared)
    rows = [line.split("  ") for line in sample_report(results).splitlines()[1:7]]
    assert [[cell for cell in row if cell.strip()][1].strip() for row in rows] == ["0", *"-----"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_table_fits_80_columns(lang: str, prepared: Path) -> None:
    use_language(lang)
    results = sample_results([READ[0], "zırtpırt"], prepared)
    json.dumps(results)
    lines = sample_report(results).splitlines()
    assert max(map(len, lines[:10])) <= 80
    assert "zırtpırt" in lines[-2]
    assert READ[0][:100] in lines[-1]
    sample_report(sample_results(["a"], None))


@pytest.mark.xdist_group("transformers")
def test_a_model_of_transformers_writes_the_same_texts_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Letters:
        def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
            return ["".join(chr(97 + token) for token in row) for row in ids.tolist()]

    monkeypatch.setattr(free_samples, "NUM_SAMPLES", 2)
    size = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()
    state = torch.get_rng_state()
    length = free_samples.hf_length(model, [0])
    assert length == 15  # the context without the start token
    first = free_samples.hf_samples(model, Letters(), [0], length)
    assert first == free_samples.hf_samples(model, Letters(), [0], length)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(first)) == 2
    own = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 3, "min_p": 0.9}
    model.generation_config.update(**own)  # as some folders have it
    assert free_samples.hf_samples(model, Letters(), [0], length) == first
    assert max(map(len, first)) <= 15
    monkeypatch.setattr(free_samples, "MAX_NEW_TOKENS", 4)
    assert free_samples.hf_length(model, [0]) == 4
