"""GGUF files for llama.cpp, and a Modelfile for Ollama."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.data.cleaning import EOT
from azllm_lightning.formats.huggingface import hf_weights
from azllm_lightning.formats.optional import import_optional

if TYPE_CHECKING:
    from azllm_lightning.config.model import GPTConfig
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

Q8_BLOCK = 32
"""Weights that share a scale in q8_0; the rows of a matrix must divide into such blocks."""

SAMPLING = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
"""The settings of `generate`, by the names of llama.cpp and Ollama, whose own defaults cut off
unlikely tokens and penalize repeated ones, and so the suffixes that Azerbaijani has to repeat.
"""


def gguf_name(quant: str) -> str:
    """The file name of a model in `quant` ("f16" or "q8_0")."""
    return f"model-{quant}.gguf"


def write_gguf(model: GPT, tokenizer: Tokenizer, folder: Path, quant: str, name: str) -> None:
    """Write model-<quant>.gguf, with `name` as the model's name inside, and a Modelfile.

    quant="f16" stores matrices in 16 bits, "q8_0" in 8 bits with a scale per 32 weights, falling
    back to 16 bits where rows do not divide by 32. Norms stay in fp32. llama.cpp's pre-tokenizer
    `tekken` splits text as ours does, but does not normalize: its input must be NFC. Ollama 0.12
    to 0.29 ignores the pre-tokenizer of Qwen3 files, and splits by the pattern of Qwen2.

    Raises ValueError without the gguf package.
    """
    gguf = import_optional("gguf")
    matrix_type = {
        "f16": gguf.GGMLQuantizationType.F16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[quant]
    file_type = {
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }[quant]
    with closing(gguf.GGUFWriter(folder / gguf_name(quant), "qwen3")) as writer:
        writer.add_name(name)
        writer.add_languages(["az"])
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model.config)
        _add_tokenizer(writer, tokenizer, gguf.TokenType, model.config.eos_id)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.n_layer)
        for parameter, weight in hf_weights(model).items():
            array = weight.numpy()
            if array.ndim == 1:
                stored = gguf.GGMLQuantizationType.F32
            elif array.shape[1] % Q8_BLOCK:
                stored = gguf.GGMLQuantizationType.F16
            else:
                stored = matrix_type
            data = gguf.quants.quantize(array, stored)
            writer.add_tensor(names.get_name(parameter, (".weight",)), data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    parameters = {"num_ctx": model.config.block_size, **SAMPLING}
    (folder / "Modelfile").write_text(
        f'FROM ./{gguf_name(quant)}\nTEMPLATE """{EOT}{{{{ .Prompt }}}}"""\n'
        + "".join(f"PARAMETER {name} {value:g}\n" for name, value in parameters.items()),
        encoding="utf-8",
    )


def _add_shape(writer: Any, config: GPTConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, token_type: Any, eos_id: int) -> None:
    bpe = json.loads(tokenizer.to_json())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [token_type.CONTROL if token == EOT else token_type.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(eos_id)
    writer.add_eos_token_id(eos_id)
    writer.add_pad_token_id(eos_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
