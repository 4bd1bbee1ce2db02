"""A model becomes files that others read: a Hugging Face folder, a GGUF with a Modelfile, or a plain state_dict."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.tokenizer import EOT
from azllm_lightning.formats.load import HF_CONFIG, HF_FIXED, HF_NAMES, HF_WEIGHTS, optional
from azllm_lightning.model.gpt import GPT

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling to write into: it becomes `out` when all is written, and else nothing stays behind.

    Raises ValueError where `out` exists, and OSError where it cannot be written.
    """
    if out.exists():
        raise ValueError(f"out={out} exists already: remove it, or choose another name")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # torch's writer hides what the system said behind a RuntimeError.
        told = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(told, OSError):
            raise OSError(
                f"out={out} cannot be written ({told}): make room, or choose another folder"
            ) from error
        raise


def write_hf(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what transformers' AutoModelForCausalLM and AutoTokenizer read, the weights as they are, in fp32.

    Every value that Qwen3Config has another default for is written out. Raises ValueError without the safetensors
    package.
    """
    safetensors = optional("safetensors.torch")
    config, eos_id = model.config, model.config.eos_id
    ids = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    _write_json(folder / HF_CONFIG, {**_qwen3_config(config), **ids})
    _write_json(
        folder / "generation_config.json",
        {**ids, "do_sample": True, "temperature": 0.8, "top_k": 0},
    )
    tokenizer.save(folder / "tokenizer.json")
    token = {
        "content": EOT,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # left out, transformers 5 takes Qwen2's and other ids
            "added_tokens_decoder": {str(eos_id): {**token, "special": True}},
            "bos_token": EOT,
            "eos_token": EOT,
            "pad_token": EOT,
            "model_max_length": config.block_size,
            "clean_up_tokenization_spaces": False,
        },
    )
    try:
        safetensors.save_file(_weights(model), folder / HF_WEIGHTS, metadata={"format": "pt"})
    except optional("safetensors").SafetensorError as error:
        raise OSError(str(error)) from None


def write_pt(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write best_model.pt, `model.state_dict()` and nothing else, with tokenizer.json beside it."""
    with (folder / "best_model.pt").open("wb") as file:
        torch.save(model.state_dict(), file)
    tokenizer.save(folder / "tokenizer.json")


def write_gguf(model: GPT, tokenizer: Tokenizer, folder: Path, quant: str, name: str) -> None:
    """Write model-<quant>.gguf, called `name` inside, and a Modelfile for Ollama.

    With quant "f16" matrices are in 16 bits; with "q8_0" in blocks of 32 weights of 8 bits and a scale, where rows
    divide into such; norms stay in fp32. llama.cpp splits text as our tokenizer does under the name `tekken`, but
    normalises nothing: its reader gives it NFC. Raises ValueError without the gguf package.
    """
    gguf = optional("gguf")
    config = model.config
    kind = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[quant]
    file_type = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[
        quant
    ]
    with closing(gguf.GGUFWriter(folder / f"model-{quant}.gguf", "qwen3")) as writer:
        writer.add_name(name)
        writer.add_languages(["az"])
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
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
        _add_tokenizer(writer, tokenizer, gguf.TokenType, config.eos_id)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
        for parameter, weight in _weights(model).items():
            array = weight.numpy()
            if array.ndim == 1:
                stored = gguf.GGMLQuantizationType.F32
            else:
                stored = kind if array.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F16
            data = gguf.quants.quantize(array, stored)
            writer.add_tensor(names.get_name(parameter, (".weight",)), data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    (folder / "Modelfile").write_text(
        f'FROM ./model-{quant}.gguf\nTEMPLATE """{EOT}{{{{ .Prompt }}}}"""\n'
        f"PARAMETER num_ctx {config.block_size}\nPARAMETER temperature 0.8\n",
        encoding="utf-8",
    )


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


def _qwen3_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **HF_FIXED,
        **{theirs: getattr(config, ours) for ours, theirs in HF_NAMES.items()},
        "head_dim": config.head_dim,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "sliding_window": None,
        "max_window_layers": config.n_layer,
        "use_cache": True,
        "dtype": "float32",
    }


def _weights(model: GPT) -> dict[str, torch.Tensor]:
    """The weights by their names in transformers, on the CPU; a tied head is not there twice."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    return weights


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
