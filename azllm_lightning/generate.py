"""python -m azllm_lightning.generate prompt="Bir gün": a model continues your text."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import GenerateConfig

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT

SAMPLE_SEPARATOR = "\n" + "-" * 40 + "\n"


def main() -> None:
    """Command-line entry point."""
    entrance.main("generate", generate, GenerateConfig.from_mapping)


def generate(config: GenerateConfig) -> None:
    """Print texts by a trained model: the first as it is generated, further samples after it.

    Without a prompt it is interactive at a terminal; elsewhere the prompt is what standard input
    has. Raises ValueError if there is no such checkpoint.
    """
    use_language(config.lang)
    from azllm_lightning.formats.load import load, origin, trained_on
    from azllm_lightning.inference.device import best_device
    from azllm_lightning.inference.interactive import converse
    from azllm_lightning.runs.folder import find_checkpoint

    path = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    print(tr("from {path}", path=origin(path)), file=sys.stderr)
    model, tokenizer = load(path, best_device())
    if config.prompt is not None or sys.stdin is None or not sys.stdin.isatty():
        prompts = config.prompts if config.prompt is not None else [_piped_prompt()]
        _write(model, tokenizer, prompts, config)
        return
    if trained_on(path) == "tales":
        message = tr(
            "This model has read only short tales: it can begin and continue tales like those, "
            "and nothing else."
        )
        print(message, file=sys.stderr)
    converse(lambda prompt: _write(model, tokenizer, [prompt], config), input)


def _piped_prompt() -> str:
    """What standard input has, without its last line break; "" where it is empty or closed."""
    if sys.stdin is None:
        return ""
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # not a file of the system
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # whoever waits for its end should know
            print(tr("reading the prompt from standard input"), file=sys.stderr)
    text = sys.stdin.buffer.read().decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").removesuffix("\n")


def _write(model: GPT, tokenizer: Tokenizer, prompts: list[str], config: GenerateConfig) -> None:
    """Print the texts that begin with each of `prompts`; Ctrl+C ends them early."""
    from azllm_lightning.inference.sampling import cut_message, stream

    if message := cut_message(model, tokenizer, prompts):
        print(message, file=sys.stderr)
    num_samples = config.num_samples if config.temperature else 1  # more would be the same text
    texts = [""] * num_samples * len(prompts)
    steps = stream(model, tokenizer, prompts, config, num_samples, config.stops)
    with contextlib.suppress(KeyboardInterrupt):
        for pieces in steps:
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            print(pieces[0], end="", flush=True)
    print(SAMPLE_SEPARATOR.join(["", *texts[1:]]))


if __name__ == "__main__":
    main()
