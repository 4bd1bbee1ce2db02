"""init_from: whether a model's weights can be the start of a run on this data."""

from __future__ import annotations

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import tokenizer_folder
from azllm_lightning.runs.model_paths import read_tokenizer


def check_tokens(path: str, ours: Tokenizer) -> None:
    """Raise ValueError if the model at `path` has as many tokens as `ours`, but other ones.

    Its embeddings would be those of other pieces of text. A model with another number of tokens is
    refused with all that differs, when its weights are loaded.
    """
    theirs = read_tokenizer("init_from", path)
    if theirs.vocab_size != ours.vocab_size or theirs.fingerprint == ours.fingerprint:
        return
    raise ValueError(
        tr(
            "init_from={path} was trained with a different tokenizer of the same size "
            "({tokens:,} tokens), so its weights are those of other tokens: prepare the text with "
            "its tokenizer, data.tokenizer={folder}",
            path=path,
            tokens=ours.vocab_size,
            folder=tokenizer_folder(path),
        )
    )
