"""The settings in conf/data/*.yaml: the text, its tokenizer, and how it is cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import one_of

MAX_VOCAB_SIZE = 65_536
"""Shards store a token in 16 bits."""

MIN_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""

MINIMA = {
    "max_bytes": 1,
    "max_document_bytes": 64,
    "vocab_size": MIN_VOCAB_SIZE,
    "tokenizer_sample_bytes": 1,
    "tales_bytes": 1,
    "tales_seed": 0,
    "prepare_workers": 1,
    "block_size": 1,
    "val_windows": 1,
    "num_workers": 0,
}
"""The smallest value of each number; null is allowed wherever the type allows it."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the text and its windows; conf/data/text.yaml explains each.

    All but the last three decide the content of the prepared shards (`dir` and `prepare_workers`
    aside). Raises ValueError, with all problems in one message, for values out of range.
    """

    name: str = "text"
    path: str | list[str] | None = None
    val_path: str | list[str] | None = None
    dir: str | None = None
    text_field: str = "text"
    source_field: str | None = None
    txt_documents: str = "blank_lines"
    on_bad_utf8: str = "replace"
    max_bytes: int | None = None
    max_document_bytes: int = 16_384
    val_fraction: float = 0.05
    vocab_size: int = 8192
    tokenizer: str | None = None
    tokenizer_sample_bytes: int = 200_000_000
    tales_bytes: int = 2_000_000
    tales_seed: int = 0
    prepare_workers: int | None = None
    block_size: int = 256
    val_windows: int | None = 512
    num_workers: int = 0

    def __post_init__(self) -> None:
        one_of("data.txt_documents", self.txt_documents, ("blank_lines", "file"))
        one_of("data.on_bad_utf8", self.on_bad_utf8, ("replace", "refuse"))
        problems = [
            tr(
                "data.{key}={value}: must be at least {minimum}",
                key=key,
                value=getattr(self, key),
                minimum=minimum,
            )
            for key, minimum in MINIMA.items()
            if getattr(self, key) is not None and getattr(self, key) < minimum
        ]
        if self.vocab_size > MAX_VOCAB_SIZE:
            problems.append(
                tr(
                    "data.vocab_size={value}: must be at most {maximum} (a token takes 16 bits)",
                    value=self.vocab_size,
                    maximum=MAX_VOCAB_SIZE,
                )
            )
        if not 0 < self.val_fraction < 1:
            problems.append(
                tr(
                    "data.val_fraction={value}: must be above 0 and below 1",
                    value=self.val_fraction,
                )
            )
        if self.name == "tales":
            problems += [
                tr(
                    "data.{key}={value}: data=tales generates its own text and reads no files; "
                    "add data=text",
                    key=key,
                    value=", ".join(paths),
                )
                for key, paths in (("path", self.paths), ("val_path", self.val_paths))
                if paths
            ]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def paths(self) -> list[str]:
        """data.path as a list, empty if null."""
        return _as_list(self.path)

    @property
    def val_paths(self) -> list[str]:
        """data.val_path as a list, empty if null."""
        return _as_list(self.val_path)


def _as_list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
