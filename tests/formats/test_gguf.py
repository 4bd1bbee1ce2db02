"""GGUF files, read by the gguf package and by llama.cpp."""

from __future__ import annotations

import json
import re
import unicodedata

import numpy as np
import pytest
import torch

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.formats.gguf import write_gguf
from azllm_lightning.formats.model_card import gguf_usage
from azllm_lightning.inference.sampling import sample
from azllm_lightning.model.gpt import GPT


def gguf_fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_gguf_holds_the_model_and_its_tokenizer(net, tokenizer, tmp_path, quant):
    import gguf

    write_gguf(net, tokenizer, tmp_path, quant, "adı")
    reader = gguf.GGUFReader(tmp_path / f"model-{quant}.gguf")
    fields, config = gguf_fields(reader), net.config
    expected = {
        "general.architecture": "qwen3",
        "general.name": "adı",
        "qwen3.vocab_size": config.vocab_size,
        "qwen3.context_length": 48,
        "qwen3.block_count": 2,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.rope.freq_base": 5000.0,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-4),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        **{f"tokenizer.ggml.{name}_token_id": 0 for name in ("bos", "eos", "padding")},
    }
    assert {name: fields.get(name) for name in expected} == expected
    bpe = json.loads(tokenizer.to_json())["model"]
    assert {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])} == bpe["vocab"]
    assert [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]] == bpe["merges"]
    assert fields["tokenizer.ggml.token_type"] == [3] + [1] * (config.vocab_size - 1)

    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    ours = dict(net.named_parameters())  # a tied head once
    layer = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    names |= {} if config.tie_embeddings else {"output": "lm_head"}
    names |= {
        f"blk.{i}.{theirs}": f"model.layers.{i}.{name}"
        for i in range(2)
        for theirs, name in layer.items()
    }
    assert tensors.keys() == {f"{name}.weight" for name in names}
    assert len(ours) == len(names)
    for theirs, name in names.items():
        weight = ours[f"{name}.weight"].detach().numpy()
        is_norm = weight.ndim == 1
        assert kinds[f"{theirs}.weight"] == ("F32" if is_norm else quant.upper())
        precision = {"f16": 2**-11, "q8_0": 0.5 / 127 + 2**-11}[quant]
        error = 0 if is_norm else precision * np.abs(weight).max()
        np.testing.assert_allclose(tensors[f"{theirs}.weight"], weight, rtol=0, atol=error + 1e-9)
    modelfile = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert f"FROM ./model-{quant}.gguf\n" in modelfile
    parameters = dict(re.findall(r"^PARAMETER (\w+) (\S+)$", modelfile, re.MULTILINE))
    assert parameters.pop("num_ctx") == "48"
    samples_as_generate({name: float(value) for name, value in parameters.items()})


def samples_as_generate(theirs: dict[str, float]) -> None:
    """All that llama.cpp and Ollama would otherwise set by themselves is set as in `generate`."""
    ours = SamplingConfig()
    assert ours.top_k is ours.top_p is ours.min_p is None
    assert theirs == {
        "temperature": ours.temperature,
        "top_k": 0,  # in both, 0 is all tokens
        "top_p": 1,
        "min_p": 0,
        "repeat_penalty": ours.repetition_penalty,
    }


def test_the_card_of_a_gguf_samples_as_generate() -> None:
    usage = gguf_usage("model", "q8_0", "nağıl", 256)
    (typed,) = re.findall(r"^sampling = dict\((.+)\)$", usage, re.MULTILINE)
    samples_as_generate(
        {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", typed)}
    )
    assert ", **sampling)" in usage


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tokenizer, tmp_path):
    import gguf

    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=8,
        n_layer=1,
        n_head=2,
        n_embd=40,
        intermediate_size=64,
    )
    net = GPT(config)
    write_gguf(net, tokenizer, tmp_path, "q8_0", "dar")
    reader = gguf.GGUFReader(tmp_path / "model-q8_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


@pytest.mark.slow
def test_llama_cpp_gives_our_ids_and_our_words(net, tokenizer, texts, tmp_path):
    """With llama-cpp-python, if it is installed: it is built from source, which takes long."""
    llama_cpp = pytest.importorskip("llama_cpp")

    memorise(net, tokenizer, texts)  # a random model's likeliest tokens are too close for 16 bits
    write_gguf(net, tokenizer, tmp_path, "f16", "sınaq")
    llama = llama_cpp.Llama(str(tmp_path / "model-f16.gguf"), n_ctx=48, n_threads=1, verbose=False)
    entries = [tokenizer.decode([i]) for i in range(1, tokenizer.vocab_size)]
    for text in [*texts, *(entry for entry in entries if "\ufffd" not in entry)]:
        normal = unicodedata.normalize("NFC", text)
        assert llama.tokenize(normal.encode(), add_bos=True) == tokenizer.encode(text)
    written = []
    for text in texts[:5]:
        prompt = text.split(" ")[0]
        theirs = llama.generate(
            [0, *tokenizer.encode(prompt)], top_k=1, temp=0.0, repeat_penalty=1.0
        )
        # Up to end-of-text, at most 40 tokens.
        ids = [token for token, _ in zip(iter(theirs.__next__, 0), range(40), strict=False)]
        written.append(prompt + tokenizer.decode(ids))
        assert written[-1] == sample(net, tokenizer, prompt, 40, temperature=0)[0]
    assert written[0] == texts[0]


def memorise(net, tokenizer, texts):
    rows = [[0, *tokenizer.encode(text)][:49] for text in texts]
    ids = torch.tensor([row + [0] * (49 - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(100):
        loss = net(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
