"""README.md of an exported model: what it is, how it was trained, how to use it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.local_paths import last_part
from azllm_lightning.config.verbs import UNKNOWN
from azllm_lightning.data.cleaning import EOT
from azllm_lightning.data.downloads import shown
from azllm_lightning.formats.gguf import SAMPLING, gguf_name
from azllm_lightning.formats.load import stored_config
from azllm_lightning.formats.markdown import markdown_table
from azllm_lightning.formats.state_dict import STATE_DICT

if TYPE_CHECKING:
    from azllm_lightning.config.model import GPTConfig

PROMPT = "Bir gün"
"""The prompt of the examples."""

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the identifiers of licenses on the hub look: mit, cc-by-sa-4.0, openrail++, other."""


def model_card(
    name: str,
    model: GPTConfig,
    license: str,
    usage: str,
    training: dict[str, str],
    from_scratch: bool = False,
    evaluation: str = "",
    picture: str | None = None,
) -> str:
    """The card of model `name` in the language in use, with Hugging Face's front matter.

    `usage` is a section of Markdown (`hf_usage`, `gguf_usage`, `state_dict_usage`), and `training`
    the rows of `training_rows`; `from_scratch` is what `is_from_scratch` says. `evaluation` is
    another section (`suite_card.card_section`). `picture` is the file next to the card that shows
    the training.
    """
    rows = {
        tr("parameters"): f"{model.num_params():,}",
        tr("shape"): tr(
            "layers: {layers}, heads: {heads}, width: {width} (Qwen3)",
            layers=model.n_layer,
            heads=model.n_head,
            width=model.n_embd,
        ),
        tr("vocabulary"): tr("{tokens:,} tokens, byte-level BPE, NFC", tokens=model.vocab_size),
        tr("context"): tr("{tokens:,} tokens", tokens=model.block_size),
        **training,
    }
    separator = tr(
        "Training documents were separated by `{token}`: start a prompt with it to begin a new "
        "text.",
        token=EOT,
    )
    intended_use = tr(
        "Study, teaching, experiments, and a starting point for further training. The model "
        "continues text. It was not trained to answer questions or to follow instructions, it "
        "repeats the mistakes and biases of its training text, and its output may be false. Not "
        "for use where anyone relies on its output."
    )
    kind = tr("An Azerbaijani language model, trained with azllm-lightning.")
    if from_scratch:
        kind = tr("An Azerbaijani language model, trained from scratch with azllm-lightning.")
    return f"""---
language: az
license: {json.dumps(license, ensure_ascii=False)}
pipeline_tag: text-generation
tags: [azllm-lightning]
---
# {name}

{kind}

{markdown_table(("", ""), rows.items())}

{"" if picture is None else f"![{tr('training and validation loss by step')}]({picture})"}

## {tr("Usage")}

{usage}

{separator}

{evaluation}{chr(10) if evaluation else ""}## {tr("Intended use")}

{intended_use}

## {tr("License")}

{_license(license)}
"""


def _license(name: str) -> str:
    if name == UNKNOWN:
        return tr(
            "The authors have not chosen a license for the weights yet: ask them before you use or "
            "share this model. The training text has its own license."
        )
    return tr("Weights: {license}. The training text has its own license.", license=name)


def license_note(name: str) -> str:
    """What to say of a license as it was given: that none was chosen, or that it is no identifier;
    "" where there is nothing to say.
    """
    if name == UNKNOWN:
        return tr(
            "license=unknown: the model card says that the license is not chosen yet. Choose one "
            "that the license of the training text allows: license=apache-2.0, cc-by-sa-4.0, ..."
        )
    if LICENSE_ID.fullmatch(name):
        return ""
    return tr(
        "license={license}: the Hugging Face hub accepts only identifiers in a model card, such as "
        "apache-2.0, cc-by-sa-4.0 or other",
        license=name,
    )


def code_of(usage: str) -> str:
    """The code of a section `usage`, without its Markdown."""
    return usage.partition("```python\n")[2].partition("\n```")[0]


def is_from_scratch(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint says that it began with random weights, and learned from text alone."""
    saved = checkpoint["azllm"]
    return saved.get("started_from") == "" and not saved.get("teachers")


def training_rows(checkpoint: dict[str, Any], block_size: int) -> dict[str, str]:
    """Rows of the card's table: training text, the models it began with and learned from, tokens
    seen, and the losses of the last validation.

    Of local files only the name is shown, and no password: cards are made to be published.
    """
    rows = {}
    config = stored_config(checkpoint)
    if config:
        data = config["data"]
        paths = [data["path"]] if isinstance(data["path"], str) else data["path"] or []
        files = [shown(path) if "://" in path else last_part(path) for path in paths]
        is_named = data["name"] != DataConfig().name or not files  # data=text says nothing
        rows[tr("training text")] = ", ".join([*([data["name"]] if is_named else []), *files])
    saved = checkpoint["azllm"]
    if saved.get("started_from"):
        rows[tr("initial weights")] = saved["started_from"]
    if saved.get("teachers"):
        rows[tr("teacher models")] = str(len(saved["teachers"]))
    windows = saved["step"] * checkpoint["TokenDataModule"]["global_batch_size"]
    rows[tr("tokens seen")] = trn(
        "{tokens:,} in {count:,} step",
        "{tokens:,} in {count:,} steps",
        saved["step"],
        tokens=windows * block_size,
    )
    metrics = saved["metrics"]
    if metrics:
        rows[tr("val_loss at step {step:,}", step=saved["validated_step"])] = tr(
            "{loss:.4f} nats per token", loss=metrics["val_loss"]
        )
        rows[tr("bits per byte")] = tr("{bpb:.4f} on held-out text", bpb=metrics["val_bpb"])
    return rows


def hf_usage(folder: str) -> str:
    """How to use what `write_hf` wrote into `folder`."""
    return f"""```python
from transformers import pipeline

write = pipeline("text-generation", model="{folder}")
print(write("{EOT}{PROMPT}", max_new_tokens=60)[0]["generated_text"])
```"""


def gguf_usage(folder: str, quant: str, name: str, block_size: int) -> str:
    """How to use what `write_gguf` wrote into `folder`; `name` gives the model's name in Ollama."""
    ollama = ollama_name(name)
    note = tr(
        "With Ollama 0.30 or newer, whose Modelfile adds that token to each prompt: `ollama create "
        '{name} -f Modelfile`, then `ollama run {name} "{prompt}"`. Older ones split words at an '
        "apostrophe in a way that the model has not learned. llama.cpp does not normalize text: "
        "its input must be NFC.",
        name=ollama,
        prompt=PROMPT,
    )
    sampling = ", ".join(f"{name}={value}" for name, value in SAMPLING.items())
    return f"""```python
from llama_cpp import Llama

llama = Llama("{folder}/{gguf_name(quant)}", n_ctx={block_size}, verbose=False)
sampling = dict({sampling})
print(llama("{EOT}{PROMPT}", max_tokens=60, **sampling)["choices"][0]["text"])
```

{note}"""


def state_dict_usage(folder: str, model: GPTConfig) -> str:
    """How to use what `write_state_dict` wrote into `folder`."""
    sizes = ", ".join(f"{key}={value!r}" for key, value in model.to_dict().items())
    return f"""```python
import torch
from azllm_lightning import GPT, GPTConfig, Tokenizer, sample

model = GPT(GPTConfig({sizes}))
model.load_state_dict(torch.load("{folder}/{STATE_DICT}", weights_only=True))
print(sample(model, Tokenizer.from_file("{folder}"), "{PROMPT}", max_new_tokens=60)[0])
```"""


def ollama_name(name: str) -> str:
    """`name` in ASCII letters, digits, dots, hyphens and underscores, which Ollama requires."""
    ascii_name = unicodedata.normalize("NFKD", name.translate(str.maketrans("əƏı", "eEi")))
    ascii_name = ascii_name.encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name).strip("-._") or "azllm"
