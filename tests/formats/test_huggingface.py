"""Hugging Face folders, read by transformers and by ourselves."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import pytest
import torch

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import read_hf, write_hf
from azllm_lightning.formats.load import load
from azllm_lightning.inference.sampling import sample

pytestmark = pytest.mark.xdist_group("transformers")

PROMPTS = ["Şəhərdə", "Bakı", "Uşaqlar evə", "bir iki", "Salam, dünya"]


def test_transformers_gives_our_logits_and_ids(hf, net, tokenizer, texts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(hf)
    their_tokenizer = AutoTokenizer.from_pretrained(hf)
    ids = torch.randint(net.config.vocab_size, (2, 48))
    with torch.no_grad():
        logits = theirs(ids).logits
        torch.testing.assert_close(logits, net(ids), rtol=0, atol=1e-4)
    assert logits.std() > 0.5
    assert next(theirs.parameters()).dtype == torch.float32
    is_tied = theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert is_tied == net.config.tie_embeddings
    assert theirs.config.max_position_embeddings == 48
    for text in texts:
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
        assert their_tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    for name in ("bos", "eos", "pad"):
        assert getattr(their_tokenizer, f"{name}_token_id") == 0
        assert getattr(theirs.generation_config, f"{name}_token_id") == 0
    assert their_tokenizer("<|endoftext|>Bakı")["input_ids"] == [0, *tokenizer.encode("Bakı")]


def test_nothing_is_left_to_the_defaults_of_readers(hf):
    config = json.loads((hf / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((hf / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer_config = json.loads((hf / "tokenizer_config.json").read_text(encoding="utf-8"))
    expected = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": 400,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 48,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-4,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    assert {key: config.get(key, "absent") for key in expected} == expected
    assert generation["do_sample"]
    assert generation["top_k"] == 0
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    # Transformers 4 adds token_type_ids of its own accord, and any version pads on the right.
    assert tokenizer_config["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer_config["padding_side"] == "left"


def test_transformers_continues_each_of_several_prompts_as_alone(hf):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(hf)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    prompts = ["<|endoftext|>Bakı", "<|endoftext|>Uşaqlar evə qaçır, yağış yağır"]

    def continued(texts: list[str]) -> list[str]:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=12, do_sample=False)
        new = ids[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True)

    alone = [continued([prompt])[0] for prompt in prompts]
    assert alone[0] != alone[1]
    assert continued(prompts) == alone


def test_the_pipeline_writes_what_we_write(hf, net, tokenizer):
    from transformers import pipeline

    write = pipeline("text-generation", model=str(hf), device="cpu")
    for prompt in PROMPTS:
        start = "<|endoftext|>" + prompt
        theirs = write(start, max_new_tokens=20, do_sample=False)[0]["generated_text"]
        assert theirs == "<|endoftext|>" + sample(net, tokenizer, prompt, 20, temperature=0)[0]


def test_load_reads_it_back_and_what_transformers_saves(hf, net, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(tmp_path / "onların")
    AutoTokenizer.from_pretrained(hf).save_pretrained(tmp_path / "onların")
    ids = torch.randint(net.config.vocab_size, (2, 48))
    for folder in (hf, tmp_path / "onların"):
        found, found_tokenizer = load(folder)
        assert found.config == replace(net.config, dropout=0.0)
        assert torch.equal(found(ids), net(ids))
        assert found_tokenizer.fingerprint == tokenizer.fingerprint
        assert not found.training


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is damaged"),
        ("config.json", "[]", r"config\.json is damaged"),
        ("config.json", '{"model_type": "llama"}', "different kind of model .*model_type='llama'"),
        ("config.json", {"rope_scaling": {"type": "yarn"}}, "different kind .*rope_scaling"),
        ("config.json", {"head_dim": 32}, "different kind .*head_dim=32"),
        ("config.json", {"num_hidden_layers": 3}, "do not match the model's stored sizes"),
        (
            "config.json",
            {"num_hidden_layers": "iki"},
            r"config\.json\.n_layer='iki' is not a whole number",
        ),
        ("tokenizer.json", None, "no such tokenizer"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "tokenizer.json"),
        ("model.safetensors", None, r"has no model\.safetensors"),
        ("model.safetensors", "zibil" * 100, r"model\.safetensors is truncated or damaged"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(
    untied, tokenizer, tmp_path, file, content, message
):
    hf = tmp_path
    write_hf(untied, tokenizer, hf)
    if content is None:
        (hf / file).unlink()
    else:
        if isinstance(content, dict):
            content = json.dumps(json.loads((hf / file).read_text(encoding="utf-8")) | content)
        (hf / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(hf)


@pytest.mark.parametrize("size", [600, 300])
def test_a_replaced_tokenizer_is_refused(untied, tokenizer, tmp_path, size):
    """Also one of the same size, and one that gives fewer ids than there are embeddings."""
    other = Tokenizer.train([f"{n * 7919} kitab dəftər qələm" for n in range(400)], size)
    assert other.fingerprint != tokenizer.fingerprint
    write_hf(untied, tokenizer, tmp_path)
    read_hf(tmp_path)
    other.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json \(\d+ tokens\) is not the tokenizer"):
        read_hf(tmp_path)
