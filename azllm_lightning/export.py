"""python -m azllm_lightning.export out=FOLDER: a checkpoint becomes files that other programs read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.callbacks.words import LANGUAGES, Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.config.strict import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.config.model import GPTConfig


@dataclass(frozen=True)
class ExportConfig:
    """The settings of conf/export.yaml, commented there."""

    out: str | None
    format: str
    quant: str
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    license: str
    lang: str = "en"

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is not given: say which folder to write, out=FOLDER")
        one_of("format", self.format, ("hf", "gguf", "pt"))
        one_of("quant", self.quant, ("f16", "q8_0"))
        one_of("lang", self.lang, LANGUAGES)


def main() -> None:
    """The console entrance."""
    cli.main("export", export)


def export(config: dict[str, Any], overrides: list[str] | None = None) -> Path:
    """Write the folder of a composed export config, a README.md with the run's figures in it, and return it.

    Raises ValueError for wrong settings, an existing folder, no such checkpoint and a missing package, and OSError
    where the folder cannot be written; nothing then stays behind.
    """
    settings = from_mapping(ExportConfig, config, "")
    from azllm_lightning.formats.export import new_folder, write_gguf, write_hf, write_pt
    from azllm_lightning.formats.load import load, read_checkpoint
    from azllm_lightning.runs.folder import find_checkpoint

    path = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    model, tokenizer = load(path)
    out = Path(settings.out or "")
    facts = _facts(read_checkpoint(path), model.config) if path.is_file() else {}
    name = facts.get("run", out.name)
    with new_folder(out) as folder:
        if settings.format == "gguf":
            write_gguf(model, tokenizer, folder, settings.quant, name)
        elif settings.format == "hf":
            write_hf(model, tokenizer, folder)
        else:
            write_pt(model, tokenizer, folder)
        card = _card(name, settings, out.name, model.config, facts)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(Words(settings.lang)("from", path=path))
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size / 1e6:10,.1f} MB  {file}")
    return out


def _facts(checkpoint: dict[str, Any], model: GPTConfig) -> dict[str, str]:
    """What a checkpoint tells of its training, for the table of the card; the run's name under "run"."""
    import yaml

    about = checkpoint["azllm"]
    facts = {}
    config = yaml.safe_load(about["config"])
    if config:  # a plain Trainer leaves none
        facts["run"] = config["run_name"]
        data = config["data"]
        paths = [data["path"]] if isinstance(data["path"], str) else data["path"] or []
        # A card is made to be shown: of the author's own folders it names the last part only.
        shown = [text if "://" in text else Path(text).name for text in paths]
        facts["data"] = ", ".join([data["name"], *shown])
    step = about["step"]
    tokens = step * checkpoint["TokenDataModule"]["global_batch_size"] * model.block_size
    facts["tokens seen"] = f"{tokens:,} in {step:,} steps"
    metrics = about["metrics"]
    if metrics:
        facts[f"val_loss at step {about['validated_step']:,}"] = (
            f"{metrics['val_loss']:.4f} nats a token"
        )
        facts["bits per byte"] = f"{metrics['val_bpb']:.4f} of held-out text"
    return facts


def _card(
    name: str, settings: ExportConfig, folder: str, model: GPTConfig, facts: dict[str, str]
) -> str:
    rows = {
        "parameters": f"{model.num_params():,}",
        "shape": f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd} (Qwen3)",
        "vocabulary": f"{model.vocab_size:,} tokens, byte-level BPE, NFC",
        "context": f"{model.block_size} tokens",
        **{key: value for key, value in facts.items() if key != "run"},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
language: az
license: {json.dumps(settings.license, ensure_ascii=False)}
pipeline_tag: text-generation
tags: [azllm-lightning]
---
# {name}

An Azerbaijani language model, trained from nothing with azllm-lightning.

| | |
|---|---|
{table}

## Use

{_use(settings, folder, model)}

Documents were parted by `<|endoftext|>` in training: a prompt after that token begins a new text.

## Intended use

Study, teaching, experiments, and as the start of further training. The model continues text; it was not taught to
answer or to follow instructions, it repeats the mistakes and prejudices of its training text, and what it tells may
be untrue. Do not use it where somebody relies on it.

## Licence

Of the weights: {settings.license}. The training text has a licence of its own.
"""


def _use(settings: ExportConfig, folder: str, model: GPTConfig) -> str:
    if settings.format == "hf":
        return f"""```python
from transformers import pipeline

write = pipeline("text-generation", model="{folder}")
print(write("<|endoftext|>Bir gün", max_new_tokens=60)[0]["generated_text"])
```"""
    if settings.format == "gguf":
        return f"""```python
from llama_cpp import Llama

llama = Llama("{folder}/model-{settings.quant}.gguf", n_ctx={model.block_size}, verbose=False)
print(llama("<|endoftext|>Bir gün", max_tokens=60)["choices"][0]["text"])
```

With Ollama, whose Modelfile here puts that token before each prompt: `ollama create ada -f Modelfile`, then
`ollama run ada "Bir gün"`. llama.cpp does not normalise text: give it NFC."""
    sizes = ", ".join(f"{key}={value!r}" for key, value in model.to_dict().items())
    return f"""```python
import torch
from azllm_lightning import GPT, GPTConfig, Tokenizer, sample

model = GPT(GPTConfig({sizes}))
model.load_state_dict(torch.load("{folder}/best_model.pt", weights_only=True))
print(sample(model, Tokenizer.from_file("{folder}"), "Bir gün", max_new_tokens=60)[0])
```"""


if __name__ == "__main__":
    main()
