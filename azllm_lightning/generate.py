"""python -m azllm_lightning.generate prompt="Bir gün": a model continues your text."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.strict import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.inference.sampling import SamplingConfig
    from azllm_lightning.model.gpt import GPT

BETWEEN_SAMPLES = "\n" + "-" * 40 + "\n"


@dataclass(frozen=True)
class GenerateConfig:
    """The settings of conf/generate.yaml, commented there, without those of `SamplingConfig`."""

    prompt: str | None
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    num_samples: int
    stop: str | list[str] | None
    lang: str | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, with a line break for \\n, which a shell passes as two characters."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text.replace("\\n", "\n") for text in given]


def main() -> None:
    """The console entrance."""
    entrance.main("generate", generate)


def generate(config: dict[str, Any], overrides: list[str] | None = None) -> None:
    """Print texts by a trained model: the first as it is written, further samples after it.

    Without a prompt it asks for one after the other at a terminal; elsewhere the model begins by
    itself. Raises ValueError if there is no such checkpoint or a setting is out of range.
    """
    own = [field.name for field in fields(GenerateConfig)]
    settings = from_mapping(GenerateConfig, {key: config[key] for key in own if key in config}, "")
    use_language(settings.lang)
    import torch

    from azllm_lightning.formats.load import load
    from azllm_lightning.inference.sampling import SamplingConfig
    from azllm_lightning.runs.folder import find_checkpoint

    choices = from_mapping(
        SamplingConfig, {key: value for key, value in config.items() if key not in own}, ""
    )
    path = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    print(tr("from {path}", path=path), file=sys.stderr)
    model, tokenizer = load(path, "cuda" if torch.cuda.is_available() else "cpu")
    if settings.prompt is not None or not sys.stdin.isatty():
        _write(model, tokenizer, settings.prompt or "", settings, choices)
        return
    print(
        tr("Type the beginning of a text. Empty line: quit. Ctrl+C: stop the current text."),
        file=sys.stderr,
    )
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while prompt := input("> "):
            _write(model, tokenizer, prompt, settings, choices)


def _write(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: GenerateConfig, choices: SamplingConfig
) -> None:
    """Print the texts that begin with `prompt`; Ctrl+C ends them early."""
    from azllm_lightning.inference.sampling import stream

    num_tokens = len(tokenizer.encode(prompt))
    block_size = model.config.block_size
    if num_tokens >= block_size:
        message = tr(
            "the prompt has {tokens} tokens and the model's context is {context}: only the end "
            "of the prompt is used",
            tokens=num_tokens,
            context=block_size,
        )
        print(message, file=sys.stderr)
    texts = [""] * settings.num_samples
    steps = stream(model, tokenizer, prompt, choices, settings.num_samples, settings.stops)
    with contextlib.suppress(KeyboardInterrupt):
        for pieces in steps:
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            print(pieces[0], end="", flush=True)
    print(BETWEEN_SAMPLES.join(["", *texts[1:]]))


if __name__ == "__main__":
    main()
