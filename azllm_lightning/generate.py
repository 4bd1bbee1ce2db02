"""python -m azllm_lightning.generate prompt="Azərbaycanın paytaxtı": a checkpoint goes on with your words."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from azllm_lightning import cli
from azllm_lightning.settings import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

BETWEEN_SAMPLES = "\n" + "-" * 40 + "\n"
UNFINISHED = "\ufffd"
"""What the first bytes of a letter decode to, until its last byte is there."""


@dataclass(frozen=True)
class GenerateConfig:
    """The settings of conf/generate.yaml, commented there; `model.sampling` says what is out of range."""

    prompt: str
    ckpt_path: str
    run_name: str | None
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    num_samples: int

    def __post_init__(self) -> None:
        # torch takes a seed modulo 2**64 and refuses others in words of C++.
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} is not a whole number from 0 to {2**64 - 1}")


def main() -> None:
    """The console entrance."""
    cli.main("generate", generate)


def generate(config: dict[str, Any], overrides: list[str] | None = None) -> None:
    """Print what the model of a composed generate config writes: one sample as it comes, several when all are done.

    Raises ValueError where there is no such checkpoint or a setting is out of range.
    """
    settings = from_mapping(GenerateConfig, config, "")
    import torch

    from azllm_lightning.model.io import load
    from azllm_lightning.model.sampling import sample
    from azllm_lightning.training.run import find_checkpoint

    path = find_checkpoint(settings.ckpt_path, settings.run_name)
    print(f"from {path}", file=sys.stderr)
    model, tokenizer = load(path, "cuda" if torch.cuda.is_available() else "cpu")
    num_tokens, block_size = len(tokenizer.encode(settings.prompt)), model.config.block_size
    if num_tokens >= block_size:
        print(
            f"the prompt has {num_tokens} tokens and the model sees {block_size}: it reads only the end of it",
            file=sys.stderr,
        )
    choices = {key: value for key, value in asdict(settings).items() if key not in ("ckpt_path", "run_name")}
    if settings.num_samples == 1:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C ends a text that has gone on for long enough
            for piece in _stream(model, tokenizer, **choices):
                print(piece, end="", flush=True)
        print()
    else:
        print(BETWEEN_SAMPLES.join(sample(model, tokenizer, **choices)))


def _stream(model: GPT, tokenizer: Tokenizer, prompt: str, **choices: Any) -> Iterator[str]:
    """The text of one sample in pieces of whole letters, the prompt first."""
    from azllm_lightning.model.sampling import generate_ids

    ids = tokenizer.encode(prompt)
    steps = generate_ids(model, [model.config.eos_id, *ids], **choices)
    shown = tokenizer.decode(ids)
    yield shown
    for (token,) in steps:
        if token != model.config.eos_id:
            ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(ids)[len(shown) :]


if __name__ == "__main__":
    main()
