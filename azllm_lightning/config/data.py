"""The settings of conf/data: which text, and how it is cut into windows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.local_paths import LocalPath, OutputPath, TextPath, check_folder_name
from azllm_lightning.config.strict import Problems

MAX_VOCAB_SIZE = 65_536
"""Shards store a token in 16 bits."""

MIN_VOCAB_SIZE = 257
"""256 bytes and the end-of-text token."""

AT_LEAST = {
    "max_bytes": 1,
    "max_document_bytes": 64,
    "repeated_lines": 2,
    "vocab_size": MIN_VOCAB_SIZE,
    "tokenizer_sample_bytes": 1,
    "tales_bytes": 1,
    "tales_seed": 0,
    "prepare_workers": 1,
    "block_size": 1,
    "val_windows": 1,
    "num_workers": 0,
}
"""The smallest value of each number that may be set."""

MIN_SIMILARITY = 0.3
"""Of near-duplicates; below it, nearly all documents would be compared with each other."""

_LANGUAGE = re.compile("[a-z]{2,3}")


@dataclass(frozen=True)
class Weight:
    """How much of a source a pass over the training text has: all of it `value` times, or, if
    `is_share`, so much that it is that part of the whole.
    """

    value: float
    is_share: bool = False


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the text and its windows, as conf/data/text.yaml explains them.

    All but `dir` and the last seven decide what the prepared shards contain.

    Raises ValueError for a value out of range.
    """

    name: str = "text"
    path: TextPath | list[TextPath] | None = None
    val_path: TextPath | list[TextPath] | None = None
    dir: OutputPath | None = None
    text_field: str = "text"
    source_field: str | None = None
    txt_documents: str = "blank_lines"
    encoding: str | None = None
    on_bad_utf8: str = "replace"
    max_bytes: int | None = None
    max_document_bytes: int = 16_384
    val_fraction: float = 0.05
    languages: str | list[str] | None = None
    near_duplicates: float | None = None
    repeated_lines: int | None = None
    vocab_size: int = 8192
    tokenizer: LocalPath | None = None
    tokenizer_sample_bytes: int = 200_000_000
    tales_bytes: int = 2_000_000
    tales_seed: int = 0
    prepare_workers: int | None = None
    verify: str = "once"
    mix: str | None = None
    token_replacement: float = 0.0
    block_size: int = 256
    val_windows: int | None = 512
    num_workers: int = 0

    def __post_init__(self) -> None:
        problems = Problems("data")
        problems.attempt(lambda: check_folder_name("data.name", self.name))
        problems.require_choice("txt_documents", self.txt_documents, ("blank_lines", "file"))
        problems.require_choice("on_bad_utf8", self.on_bad_utf8, ("replace", "refuse"))
        problems.require_choice("verify", self.verify, ("once", "always"))
        known = self.encoding is None or _is_encoding(self.encoding)
        problems.require(known, "encoding", self.encoding, tr("the name of an encoding: cp1254"))
        for key, least in AT_LEAST.items():
            value = getattr(self, key)
            wanted = tr("at least {least}", least=least)
            problems.require(value is None or value >= least, key, value, wanted)
        wanted = tr("at most {most}: shards store a token in 16 bits", most=MAX_VOCAB_SIZE)
        vocab = self.vocab_size
        problems.require(vocab <= MAX_VOCAB_SIZE, "vocab_size", vocab, wanted)
        share = self.val_fraction
        problems.require(0 < share < 1, "val_fraction", share, tr("between 0 and 1"))
        replaced = self.token_replacement
        problems.require(0 <= replaced < 1, "token_replacement", replaced, tr("in [0, 1)"))
        smallest = MIN_SIMILARITY
        similarity = 1.0 if self.near_duplicates is None else self.near_duplicates
        wanted = tr("between {least} and 1", least=smallest)
        problems.require(smallest <= similarity <= 1, "near_duplicates", similarity, wanted)
        codes = self.language_codes
        known = self.languages is None or (bool(codes) and all(map(_LANGUAGE.fullmatch, codes)))
        wanted = tr("a language code such as az, or a list of them, such as [az,tr]")
        problems.require(known, "languages", self.languages, wanted)
        problems.attempt(lambda: self.weights)
        problems.raise_if_any()

    @property
    def weights(self) -> dict[str, Weight]:
        """data.mix as a mapping from sources to weights; empty if null."""
        weights: dict[str, Weight] = {}
        for name, number, unweighted in _MIX_ENTRY.findall(self.mix or ""):
            if unweighted and not unweighted.strip(" ,"):  # a comma at the end
                continue
            name, number = name.strip(" ,"), number.strip()
            is_share = number.endswith("%")
            try:
                value = float(number.removesuffix("%")) / (100 if is_share else 1)
            except ValueError:
                value = -1.0
            if not name or not 0 <= value < math.inf or name in weights:
                raise ValueError(
                    tr(
                        "data.mix={mix}: write it as SOURCE: TIMES or SOURCE: SHARE%, separated by "
                        "commas, such as kitab.txt: 4, turk.txt: 10%",
                        mix=self.mix,
                    )
                )
            weights[name] = Weight(value, is_share)
        return weights

    def check_source(self) -> None:
        """Raise ValueError if data.path is set but ignored.

        Not a rule of every config: what is typed for a resume is composed over the defaults, and
        their data=tales is not the data of that run.
        """
        if self.name == "tales" and (self.path is not None or self.val_path is not None):
            raise ValueError(
                tr(
                    "data.path={path} is not read, because data.name=tales generates its own "
                    "text: add data=text",
                    path=self.path or self.val_path,
                )
            )

    @property
    def paths(self) -> list[str]:
        """data.path as a list, empty if null."""
        return as_list(self.path)

    @property
    def val_paths(self) -> list[str]:
        """data.val_path as a list, empty if null."""
        return as_list(self.val_path)

    @property
    def has_filters(self) -> bool:
        """Whether any of the filters of documents and lines is on."""
        filters = (self.languages, self.near_duplicates, self.repeated_lines)
        return any(setting is not None for setting in filters)

    @property
    def language_codes(self) -> list[str]:
        """data.languages as a list, empty if null."""
        return as_list(self.languages)


_MIX_ENTRY = re.compile(r"(.+?):([^,:]*)(?:,|$)|(.+)", re.DOTALL)
"""SOURCE: WEIGHT up to the next comma, where SOURCE may have commas and colons; else the rest."""


def _is_encoding(name: str) -> bool:
    try:
        "ə".encode(name, errors="replace")  # of text: "hex" is an encoding of bytes
    except (LookupError, UnicodeError, ValueError):
        return False
    return True


def as_list(value: str | list[str] | None) -> list[str]:
    """One text as a list of one; None as an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
