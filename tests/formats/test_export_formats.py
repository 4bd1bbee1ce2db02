"""What is exported is read by those it is written for: transformers, the gguf package, llama.cpp, torch."""

import importlib
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.export import new_folder, write_gguf, write_hf, write_pt
from azllm_lightning.formats.load import load
from azllm_lightning.inference.sampling import sample
from azllm_lightning.model.gpt import GPT

TEXTS = [
    "Şəhərdə yağış yağır, uşaqlar evə qaçır.",
    "İstanbuldan Bakı'ya, Bakı’nın küçələrinə: ISTI, ılıq, İlıq.",
    "1918-ci ildə 28 may; 3,14 və 10 %-dən çox",
    "Salam 👋🏽, dünya! 🇦🇿",
    "bir\niki\r\n\n\n  üç\t\tdörd   \n",
    unicodedata.normalize("NFD", "Gözəl şəhər, çöl, güllər və İlıq külək"),
    "  başda iki boşluq, dədə-baba, ABCabc XXIəsr https://az.wikipedia.org/wiki/Bakı?a=b//",
    "Кириллица, 漢字, العربية",
]
PROMPTS = ["Şəhərdə", "Bakı", "Uşaqlar evə", "bir iki", "Salam, dünya"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, vocab_size=400)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, tokenizer) -> GPT:
    """Every setting another than the default, so that a value that is left out is noticed."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=48, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
        intermediate_size=96, tie_embeddings=request.param, rope_theta=5000.0, norm_eps=1e-4, dropout=0.1,
    )  # fmt: skip
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
        model.lm_head.weight[0] = 0.0  # end of text is never likeliest
    return model


@pytest.fixture
def hf(model, tokenizer, tmp_path):
    (tmp_path / "köçürülmüş").mkdir()
    write_hf(model, tokenizer, tmp_path / "köçürülmüş")
    return tmp_path / "köçürülmüş"


def test_transformers_gives_our_logits_and_ids(hf, model, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, their_tokenizer = (
        AutoModelForCausalLM.from_pretrained(hf),
        AutoTokenizer.from_pretrained(hf),
    )
    ids = torch.randint(model.config.vocab_size, (2, 48))
    with torch.no_grad():
        logits = theirs(ids).logits
        torch.testing.assert_close(logits, model(ids), rtol=0, atol=1e-4)
    assert logits.std() > 0.5
    assert next(theirs.parameters()).dtype == torch.float32
    assert (
        theirs.lm_head.weight is theirs.model.embed_tokens.weight
    ) == model.config.tie_embeddings
    assert theirs.config.max_position_embeddings == 48
    for text in TEXTS:
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
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "float32", "vocab_size": 400,
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2,
        "intermediate_size": 96, "max_position_embeddings": 48, "rope_theta": 5000.0, "rope_scaling": None,
        "rms_norm_eps": 1e-4, "hidden_act": "silu", "attention_bias": False, "use_sliding_window": False,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    assert {key: config.get(key, "absent") for key in expected} == expected
    assert generation["do_sample"]
    assert generation["top_k"] == 0
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_pipeline_writes_what_we_write(hf, model, tokenizer):
    from transformers import pipeline

    write = pipeline("text-generation", model=str(hf), device="cpu")
    for prompt in PROMPTS:
        theirs = write("<|endoftext|>" + prompt, max_new_tokens=20, do_sample=False)[0][
            "generated_text"
        ]
        assert theirs == "<|endoftext|>" + sample(model, tokenizer, prompt, 20, temperature=0)[0]


def test_load_reads_it_back_and_what_transformers_saves(hf, model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(tmp_path / "onların")
    AutoTokenizer.from_pretrained(hf).save_pretrained(tmp_path / "onların")
    ids = torch.randint(model.config.vocab_size, (2, 48))
    for folder in (hf, tmp_path / "onların"):
        found, found_tokenizer = load(folder)
        assert found.config == replace(model.config, dropout=0.0)
        assert torch.equal(found(ids), model(ids))
        assert found_tokenizer.fingerprint == tokenizer.fingerprint
        assert not found.training


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is not a whole config\.json"),
        ("config.json", "[]", r"config\.json is not a whole config\.json"),
        ("config.json", '{"model_type": "llama"}', "model of another kind .*model_type='llama'"),
        ("config.json", {"rope_scaling": {"type": "yarn"}}, "another kind .*rope_scaling"),
        ("config.json", {"head_dim": 32}, "another kind .*head_dim=32"),
        ("config.json", {"num_hidden_layers": 3}, "do not fit the sizes"),
        (
            "config.json",
            {"num_hidden_layers": "iki"},
            r"config\.json\.n_layer='iki' is not a whole number",
        ),
        ("tokenizer.json", None, "no tokenizer at"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "tokenizer.json"),
        ("model.safetensors", None, r"has no model\.safetensors"),
        ("model.safetensors", "zibil" * 100, r"model\.safetensors is cut short or damaged"),
    ],
)
def test_broken_and_foreign_folders_are_told(hf, file, content, message):
    if content is None:
        (hf / file).unlink()
    else:
        if isinstance(content, dict):
            content = json.dumps(json.loads((hf / file).read_text(encoding="utf-8")) | content)
        (hf / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(hf)


def gguf_fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_gguf_holds_the_model_and_its_tokenizer(model, tokenizer, tmp_path, quant):
    import gguf

    write_gguf(model, tokenizer, tmp_path, quant, "adı")
    reader = gguf.GGUFReader(tmp_path / f"model-{quant}.gguf")
    fields, config = gguf_fields(reader), model.config
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
    ours = dict(model.named_parameters())  # a tied head once
    layer = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
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
        error = (
            0
            if is_norm
            else {"f16": 2**-11, "q8_0": 0.5 / 127 + 2**-11}[quant] * np.abs(weight).max()
        )
        np.testing.assert_allclose(tensors[f"{theirs}.weight"], weight, rtol=0, atol=error + 1e-9)
    modelfile = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert f"FROM ./model-{quant}.gguf\n" in modelfile
    assert "PARAMETER num_ctx 48\n" in modelfile


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tokenizer, tmp_path):
    import gguf

    model = GPT(
        GPTConfig(
            tokenizer.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=40, intermediate_size=64
        )
    )
    write_gguf(model, tokenizer, tmp_path, "q8_0", "dar")
    kinds = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model-q8_0.gguf").tensors
    }
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


@pytest.mark.slow
def test_llama_cpp_gives_our_ids_and_our_words(model, tokenizer, tmp_path):
    """By llama-cpp-python, if it is installed: it is built from source, and the build takes long."""
    llama_cpp = pytest.importorskip("llama_cpp")

    learn_by_heart(model, tokenizer)  # a random model's likeliest tokens are too close for 16 bits
    write_gguf(model, tokenizer, tmp_path, "f16", "sınaq")
    llama = llama_cpp.Llama(str(tmp_path / "model-f16.gguf"), n_ctx=48, n_threads=1, verbose=False)
    entries = [tokenizer.decode([i]) for i in range(1, tokenizer.vocab_size)]
    for text in [*TEXTS, *(entry for entry in entries if "\ufffd" not in entry)]:
        normal = unicodedata.normalize("NFC", text)
        assert llama.tokenize(normal.encode(), add_bos=True) == tokenizer.encode(text)
    written = []
    for text in TEXTS[:5]:
        prompt = text.split(" ")[0]
        theirs = llama.generate(
            [0, *tokenizer.encode(prompt)], top_k=1, temp=0.0, repeat_penalty=1.0
        )
        ids = [
            token for token, _ in zip(iter(theirs.__next__, 0), range(40), strict=False)
        ]  # up to end of text
        written.append(prompt + tokenizer.decode(ids))
        assert written[-1] == sample(model, tokenizer, prompt, 40, temperature=0)[0]
    assert written[0] == TEXTS[0]


def learn_by_heart(model, tokenizer):
    rows = [[0, *tokenizer.encode(text)][:49] for text in TEXTS]
    ids = torch.tensor([row + [0] * (49 - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


def test_a_state_dict_is_all_that_a_pt_file_holds(model, tokenizer, tmp_path):
    write_pt(model, tokenizer, tmp_path)
    found = torch.load(tmp_path / "best_model.pt", weights_only=True)
    assert found.keys() == model.state_dict().keys()
    other = GPT(model.config)
    other.load_state_dict(found)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    assert Tokenizer.from_file(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "yeni" / "qovluq"
    with new_folder(out) as folder:
        (folder / "fayl").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["qovluq"]
    with pytest.raises(ValueError, match="qovluq exists already"), new_folder(out):
        pass
    assert (out / "fayl").read_text() == "a"
    for error in (KeyboardInterrupt, ValueError, OSError(28, "No space left on device")):
        with pytest.raises((KeyboardInterrupt, ValueError, OSError)):
            fail_in(tmp_path / "o", error)
    assert [path.name for path in tmp_path.iterdir()] == ["yeni"]


def fail_in(out, error):
    with new_folder(out) as folder:
        (folder / "fayl").write_text("a")
        raise error


@pytest.mark.parametrize("write", [write_hf, write_gguf, write_pt])
def test_a_full_disk_is_told_and_leaves_nothing(model, tokenizer, tmp_path, write):
    """The system refuses to let a file grow past 64 KiB, in the midst of the weights."""
    resource = pytest.importorskip("resource")

    def write_where_there_is_no_room():
        with new_folder(tmp_path / "model") as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
            try:
                write(model, tokenizer, folder, *(["f16", "ad"] if write is write_gguf else []))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        OSError, match=r"out=.*model cannot be written \(.*(too large|requested).*\): make room"
    ):
        write_where_there_is_no_room()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("write", "package"), [(write_hf, "safetensors"), (write_gguf, "gguf")])
def test_a_missing_package_is_told(model, tokenizer, tmp_path, monkeypatch, write, package):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        write(model, tokenizer, tmp_path, *(["f16", "ad"] if write is write_gguf else []))
    assert list(tmp_path.iterdir()) == []
