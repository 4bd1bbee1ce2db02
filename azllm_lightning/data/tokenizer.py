"""Byte-level BPE: text to token ids and back, stored in a single tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import with_near_path
from azllm_lightning.data.cleaning import EOT

if TYPE_CHECKING:
    import tokenizers

EOT_ID = 0

_LIBRARY_THREADS = "TOKENIZERS_PARALLELISM"

# The pattern of `tekken` in llama.cpp (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_TEKKEN), so that a
# GGUF file can name it and its reader splits text the same way. It has no English contractions,
# keeps `'dan` and `-nın` together, and makes each digit a token of its own.
SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

_ANY: dict[str, Any] = {"pattern": None, "trim_offsets": None}

_SPLITS = [
    {"type": "Split", "behavior": "Isolated", "invert": False, **_ANY},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, **_ANY},
]
"""How text is split, but for the pattern, and for what changes no tokens."""

_MODEL_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
"""Options of a BPE with which the same vocabulary gives other tokens; ours has none."""

_ADDED = [(EOT_ID, EOT, True)]


class Tokenizer:
    """A byte-level BPE with NFC and one end-of-text token; any NFC string round-trips."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        # Forked workers warn, and may hang, after the library has used threads of its own.
        os.environ.setdefault(_LIBRARY_THREADS, "false")
        self._core = core
        self._core.encode_special_tokens = True  # "<|endoftext|>" within a text is plain text
        # transformers leaves in the file what its last call cut and filled texts to.
        self._core.no_truncation()
        self._core.no_padding()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer.

        It has fewer tokens if the texts have fewer pairs of tokens that occur at least twice.
        """
        from tokenizers import (
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            trainers,
        )

        core = Tokenizer(models.BPE())
        core.normalizer = normalizers.NFC()
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[EOT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with _library_threads():
            core.train_from_iterator(texts, trainer)
        return cls(core)

    @classmethod
    def from_json(cls, text: str, where: str = "tokenizer.json") -> Tokenizer:
        """Parse a tokenizer.json; ValueError, naming `where`, if it is broken or not ours."""
        from tokenizers import Tokenizer

        try:
            parts = json.loads(text)
            core = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise _incomplete(where, error) from error
        difference = _difference(parts)
        if difference:
            raise ValueError(
                tr(
                    "{path} was not trained by azllm-lightning ({difference}); "
                    "set data.tokenizer=null to train a tokenizer",
                    path=where,
                    difference=difference,
                )
            )
        return cls(core)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer.json, or that of a folder; ValueError if missing, broken or not ours."""
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():  # neither is a pipe, which would be waited for
            message = tr("{path}: no such tokenizer", path=path)
            raise ValueError(with_near_path(message, path, _may_be_tokenizer))
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _incomplete(str(path), error) from error
        return cls.from_json(text, str(path))

    def to_json(self) -> str:
        """The content of a tokenizer.json, readable by transformers and tokenizers."""
        return self._core.to_str(pretty=True)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json to the file `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8", newline="\n")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, normalized to NFC, without an end-of-text token."""
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each text, on one core, without holding the GIL: use one thread per core."""
        return [
            encoding.ids
            for encoding in self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without end-of-text tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._core.decode(list(ids))

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the end-of-text token."""
        return self._core.get_vocab_size()

    @property
    def eot_id(self) -> int:
        """The id of the end-of-text token."""
        return EOT_ID

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes per id, int32 (vocab_size,); 0 for the end-of-text token."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, index in self._core.get_vocab(with_added_tokens=False).items():
            if token != EOT:
                lengths[index] = len(token)  # one character per byte in a byte-level token
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids, independent of the version of the library."""
        model = json.loads(self.to_json())["model"]
        decisive = [
            SPLIT_PATTERN,
            sorted(model["vocab"].items(), key=lambda item: item[1]),
            model["merges"],
        ]
        canonical = json.dumps(decisive, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@contextmanager
def _library_threads() -> Iterator[None]:
    before = os.environ.get(_LIBRARY_THREADS, "false")
    os.environ[_LIBRARY_THREADS] = "true"
    try:
        yield
    finally:
        os.environ[_LIBRARY_THREADS] = before


def _may_be_tokenizer(path: Path) -> bool:
    return (path / "tokenizer.json").is_file() or (path.is_file() and path.suffix == ".json")


def _incomplete(path: str, error: Exception) -> ValueError:
    return ValueError(
        tr("{path} is not a complete tokenizer.json ({error})", path=path, error=error)
    )


def _difference(parts: dict[str, Any]) -> str | None:
    """How the tokenizer.json `parts` differs from one of ours; None if it does not."""
    from tokenizers import pre_tokenizers

    model = parts["model"]
    splits = (parts.get("pre_tokenizer") or {}).get("pretokenizers", [])
    added = [
        (token["id"], token["content"], token["special"]) for token in parts.get("added_tokens", [])
    ]
    options = {key: model[key] for key in _MODEL_OPTIONS if model.get(key)}
    if model.get("type") != "BPE":
        return tr("its model is {type}, not BPE", type=model.get("type"))
    if options:
        return tr("its model has {options}", options=options)
    if [{**split, **_ANY} for split in splits] != _SPLITS:
        return tr("it does not split text into words and then bytes")
    if splits[0]["pattern"] != {"Regex": SPLIT_PATTERN}:
        return tr("it splits words by a different pattern")
    if (parts.get("normalizer") or {}).get("type") != "NFC":
        return tr("it does not normalize text to NFC")
    if added != _ADDED:
        return tr("its special tokens are {tokens}, not {expected}", tokens=added, expected=_ADDED)
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= set(parts["model"]["vocab"]):
        return tr("it lacks some of the 256 bytes")
    return None
