"""python -m azllm_lightning.generate prompt="Azərbaycanın paytaxtı": a checkpoint goes on with your words."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.config.strict import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.inference.sampling import SamplingConfig
    from azllm_lightning.model.gpt import GPT

BETWEEN_SAMPLES = "\n" + "-" * 40 + "\n"


@dataclass(frozen=True)
class GenerateConfig:
    """The settings of conf/generate.yaml, commented there, but for those of `model.sampling.SamplingConfig`."""

    prompt: str | None
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    num_samples: int
    stop: str | list[str] | None
    lang: str = "en"

    @property
    def stops(self) -> list[str]:
        """The stop strings; a shell passes a line break most easily as \\n."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text.replace("\\n", "\n") for text in given]


def main() -> None:
    """The console entrance."""
    cli.main("generate", generate)


def generate(config: dict[str, Any], overrides: list[str] | None = None) -> None:
    """Print what the model of a composed generate config writes: the first sample as it comes, the others after it.

    Without a prompt it asks for one after the other where a person sits at the terminal, and else begins by itself.
    Raises ValueError where there is no such checkpoint or a setting is out of range.
    """
    own = [field.name for field in fields(GenerateConfig)]
    settings = from_mapping(GenerateConfig, {key: config[key] for key in own if key in config}, "")
    words = Words(settings.lang)
    import torch

    from azllm_lightning.formats.load import load
    from azllm_lightning.inference.sampling import SamplingConfig
    from azllm_lightning.runs.folder import find_checkpoint

    choices = from_mapping(
        SamplingConfig, {key: value for key, value in config.items() if key not in own}, ""
    )
    path = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    print(words("from", path=path), file=sys.stderr)
    model, tokenizer = load(path, "cuda" if torch.cuda.is_available() else "cpu")
    if settings.prompt is not None or not sys.stdin.isatty():
        _write(model, tokenizer, settings.prompt or "", settings, choices)
        return
    print(words("ask"), file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while prompt := input("> "):
            _write(model, tokenizer, prompt, settings, choices)


def _write(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: GenerateConfig, choices: SamplingConfig
) -> None:
    from azllm_lightning.inference.sampling import stream

    num_tokens, block_size = len(tokenizer.encode(prompt)), model.config.block_size
    if num_tokens >= block_size:
        print(
            Words(settings.lang)("long_prompt", tokens=num_tokens, context=block_size),
            file=sys.stderr,
        )
    texts = [""] * settings.num_samples
    steps = stream(model, tokenizer, prompt, choices, settings.num_samples, settings.stops)
    with contextlib.suppress(
        KeyboardInterrupt
    ):  # Ctrl+C ends a text that has gone on for long enough
        for pieces in steps:
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            print(pieces[0], end="", flush=True)
    print(BETWEEN_SAMPLES.join(["", *texts[1:]]))


if __name__ == "__main__":
    main()
