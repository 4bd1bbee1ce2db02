"""Hugging Face folders, which transformers reads and writes as Qwen3ForCausalLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.data.cleaning import EOT
from azllm_lightning.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from azllm_lightning.model.gpt import GPT

HF_CONFIG = "config.json"
HF_WEIGHTS = "model.safetensors"
TOKENIZER = "azllm_tokenizer"
"""Key of the tokenizer's fingerprint in config.json: tokenizer.json is easily replaced."""

QWEN3_NAMES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "eos_id": "eos_token_id",
}
"""The fields of GPTConfig by their names in transformers' Qwen3Config."""

QWEN3_FIXED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
}
"""The fields of Qwen3Config that a GPTConfig cannot vary."""


def write_hf(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that AutoModelForCausalLM and AutoTokenizer read; weights are in fp32.

    Every value for which Qwen3Config has another default is written out.

    Raises OSError where the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = model.config
    eos_id = config.eos_id
    ids = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    values = {**_qwen3_config(config), **ids, TOKENIZER: tokenizer.fingerprint}
    _write_json(folder / HF_CONFIG, values)
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
            # Without it transformers 5 uses Qwen2's tokenizer, which gives different ids.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {str(eos_id): {**token, "special": True}},
            "bos_token": EOT,
            "eos_token": EOT,
            "pad_token": EOT,
            "model_max_length": config.block_size,
            "clean_up_tokenization_spaces": False,
            # Without it transformers 4 adds token_type_ids, which `generate` refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",  # a text is continued at its right end
        },
    )
    try:
        # One key only: with two, their order in the file would change from export to export.
        save_file(hf_weights(model), folder / HF_WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None


def hf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights by their names in transformers, on the CPU; a tied head is left out."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    return weights


def read_hf(folder: Path) -> tuple[GPTConfig, dict[str, Tensor], Tokenizer]:
    """Config, state_dict and tokenizer of a folder that `write_hf` or transformers wrote.

    Raises ValueError if a file is missing or damaged, the model is not a Qwen3 of our shape, or the
    tokenizer is not the one that the weights were trained with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_config(folder)
    tokenizer = Tokenizer.from_file(folder)
    try:
        weights: dict[str, Tensor] = load_file(folder / HF_WEIGHTS)
    except FileNotFoundError:
        raise ValueError(
            tr("{folder} has no {file}: copy the complete folder", folder=folder, file=HF_WEIGHTS)
        ) from None
    except SafetensorError as error:
        raise ValueError(
            tr(
                "{path} is truncated or damaged ({error}): copy it again",
                path=folder / HF_WEIGHTS,
                error=error,
            )
        ) from None
    # A folder of another program has no fingerprint; then the number of tokens must do.
    fingerprint = json.loads((folder / HF_CONFIG).read_text(encoding="utf-8")).get(TOKENIZER)
    same_size = tokenizer.vocab_size == config.vocab_size
    if not same_size or fingerprint not in (None, tokenizer.fingerprint):
        raise ValueError(
            tr(
                "{folder}: tokenizer.json ({found:,} tokens) is not the tokenizer that these "
                "weights ({expected:,} tokens) were trained with: copy the complete folder again",
                folder=folder,
                found=tokenizer.vocab_size,
                expected=config.vocab_size,
            )
        )
    if config.tie_embeddings:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return config, weights, tokenizer


def _read_config(folder: Path) -> GPTConfig:
    path = folder / HF_CONFIG
    try:
        values: dict[str, Any] = {
            "rope_scaling": None,
            **json.loads(path.read_text(encoding="utf-8")),
        }
    except (ValueError, TypeError) as error:
        raise ValueError(
            tr("{path} is damaged ({error}): export the model again", path=path, error=error)
        ) from None
    values |= values.get("rope_parameters") or {}  # transformers 5 keeps rope_theta there
    foreign = [
        f"{key}={values.get(key)!r}"
        for key, expected in QWEN3_FIXED.items()
        if values.get(key) != expected
    ]
    if not foreign:
        ours = {name: values[theirs] for name, theirs in QWEN3_NAMES.items() if theirs in values}
        config = from_mapping(GPTConfig, ours, str(path))
        if values.get("head_dim") == config.head_dim:
            return config
        foreign = [f"head_dim={values.get('head_dim')}"]
    raise ValueError(
        tr(
            "{folder} contains a different kind of model ({settings}): only Qwen3 models of the "
            "shape that azllm-lightning trains can be loaded",
            folder=folder,
            settings=", ".join(foreign),
        )
    )


def _qwen3_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **QWEN3_FIXED,
        **{theirs: getattr(config, ours) for ours, theirs in QWEN3_NAMES.items()},
        "head_dim": config.head_dim,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "sliding_window": None,
        "max_window_layers": config.n_layer,
        "use_cache": True,
        "dtype": "float32",
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
