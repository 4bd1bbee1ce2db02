"""Byte-level BPE: text to token ids and back, kept as one tokenizer.json and nothing else."""

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

if TYPE_CHECKING:
    import tokenizers

EOT = "<|endoftext|>"
EOT_ID = 0

# llama.cpp's own form of `tekken` (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_TEKKEN): a GGUF file names this pattern,
# and its reader then splits as we do. No English contractions, `'dan` and `-nın` stay whole, each digit stands alone.
SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


class Tokenizer:
    """A byte-level BPE with NFC inside and one end-of-text token: any NFC string round-trips."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        # Forked workers warn, and may hang, where the library's own threads have run: callers bring their threads.
        os.environ.setdefault(_LIBRARY_THREADS, "false")
        self._core = core
        self._core.encode_special_tokens = True  # a text that spells <|endoftext|> does not end

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most `vocab_size` tokens from `texts`; the same texts give the same tokenizer.

        Fewer tokens come out where the texts hold fewer pairs that occur twice.
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
        """Read the content of a tokenizer.json; ValueError, naming `where`, if it is broken or not of our kind."""
        from tokenizers import Tokenizer

        try:
            parts = json.loads(text)
            core = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{where} is not a whole tokenizer.json ({error})") from error
        difference = _difference(parts)
        if difference:
            raise ValueError(
                f"{where} is a foreign tokenizer ({difference}); needed is one that azllm-lightning trained: "
                "leave data.tokenizer=null to train one"
            )
        return cls(core)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json, or the one in the folder `path`; ValueError if it is missing, broken or foreign."""
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(f"there is no tokenizer at {path}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a whole tokenizer.json ({error})") from error
        return cls.from_json(text, str(path))

    def to_json(self) -> str:
        """The content of a tokenizer.json, as transformers and tokenizers read it."""
        return self._core.to_str(pretty=True)

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json to the file `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8", newline="\n")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, normalised to NFC, without an end-of-text token."""
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text. Runs outside Python's lock on one core: give each core a batch from its own thread."""
        return [
            encoding.ids
            for encoding in self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-text tokens are left out, and bytes that are not UTF-8 become U+FFFD."""
        return self._core.decode(list(ids))

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end-of-text token included."""
        return self._core.get_vocab_size()

    @property
    def eot_id(self) -> int:
        """Id of the end-of-text token."""
        return EOT_ID

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id, int32 of shape (vocab_size,); 0 for the end-of-text token."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, index in self._core.get_vocab(with_added_tokens=False).items():
            if token != EOT:
                lengths[index] = len(token)  # a byte-level token spells each byte as one character
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids; equal tokenizers have equal ones, whichever library version wrote them."""
        model = json.loads(self.to_json())["model"]
        decisive = [
            SPLIT_PATTERN,
            sorted(model["vocab"].items(), key=lambda item: item[1]),
            model["merges"],
        ]
        canonical = json.dumps(decisive, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


_LIBRARY_THREADS = "TOKENIZERS_PARALLELISM"


@contextmanager
def _library_threads() -> Iterator[None]:
    before = os.environ.get(_LIBRARY_THREADS, "false")
    os.environ[_LIBRARY_THREADS] = "true"
    try:
        yield
    finally:
        os.environ[_LIBRARY_THREADS] = before


def _difference(parts: dict[str, Any]) -> str | None:
    """What tells the tokenizer.json `parts` from one of ours, or None."""
    from tokenizers import pre_tokenizers

    splits = (parts.get("pre_tokenizer") or {}).get("pretokenizers", [])
    added = [(token["id"], token["content"]) for token in parts.get("added_tokens", [])]
    if parts["model"].get("type") != "BPE":
        return f"its model is {parts['model'].get('type')}, not BPE"
    if [split["type"] for split in splits] != ["Split", "ByteLevel"]:
        return "it does not split into words, then bytes"
    if splits[0]["pattern"] != {"Regex": SPLIT_PATTERN}:
        return "it splits by another pattern"
    if (parts.get("normalizer") or {}).get("type") != "NFC":
        return "it does not normalise to NFC"
    if added != [(EOT_ID, EOT)]:
        return f"its special tokens are {added}, not {EOT} with id {EOT_ID}"
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= set(parts["model"]["vocab"]):
        return "it lacks some of the 256 bytes"
    return None
