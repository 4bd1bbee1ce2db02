"""What `conf/data/*.yaml` says: which text, how it is cut, and how batches are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.config.strict import one_of

MAX_VOCAB_SIZE = 65_536
"""Shards keep a token in 16 bits."""

MIN_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the text and its batches, as commented in conf/data/text.yaml; ValueError on one out of range.

    All but the last four decide what the prepared shards hold.
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
        problems = []
        at_least = {
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
        for key, least in at_least.items():
            value = getattr(self, key)
            if value is not None and value < least:
                problems.append(f"data.{key}={value} is below {least}")
        if self.vocab_size > MAX_VOCAB_SIZE:
            problems.append(
                f"data.vocab_size={self.vocab_size} is above {MAX_VOCAB_SIZE}: a token takes 16 bits"
            )
        if not 0 < self.val_fraction < 1:
            problems.append(f"data.val_fraction={self.val_fraction} is not between 0 and 1")
        if self.name == "tales" and (self.path is not None or self.val_path is not None):
            problems.append(
                f"data.path={self.path or self.val_path} is not read by data=tales, which writes its text itself; "
                "use data=text"
            )
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
    return [] if value is None else [value] if isinstance(value, str) else list(value)
