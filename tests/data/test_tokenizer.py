from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_texts import make_texts

from azllm_lightning.data.cleaning import EOT
from azllm_lightning.data.tokenizer import Tokenizer

SAMPLES = [
    "",
    "Bakı'dan gəldim, kitab-nın 2024-cü il nəşri: İlqar ƏLİYEV!",
    "emoji 👩‍👩‍👧 😀, CJK 漢字, rus кириллица\n\n\tsətir  başı   \n",
    "<|endoftext|> və <|endoftext|>",
    "ı i İ I ə Ə ğ ş ç ö ü",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))


def test_any_nfc_string_round_trips(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(300):
        points = [
            rng.choice(
                [rng.randint(0, 0x17F), rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x10FFFF)]
            )
            for _ in range(30)
        ]
        text = unicodedata.normalize(
            "NFC", "".join(chr(p) for p in points if unicodedata.category(chr(p)) != "Cn")
        )
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode("utf-8"))


def test_normalizes_to_nfc(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(unicodedata.normalize("NFD", "gözəl şəhər")) == tokenizer.encode(
        "gözəl şəhər"
    )


def test_an_end_of_text_token_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    for each in (tokenizer, again):
        assert each.eot_id not in each.encode(f"a{EOT}b")
        assert each.eot_id not in each.encode_batch([f"a{EOT}b"])[0]
    assert tokenizer.eot_id == 0
    assert tokenizer.token_bytes[0] == 0
    assert tokenizer.decode([0, *tokenizer.encode("su"), 0]) == "su"


def test_splits_keep_azerbaijani_suffixes() -> None:
    text = "Bakı'dan kitab-nın 1995"
    tokenizer = Tokenizer.train([text] * 9, 400)
    pieces = [tokenizer.decode([index]) for index in tokenizer.encode(text)]
    assert pieces == ["Bakı", "'dan", " kitab", "-nın", " ", "1", "9", "9", "5"]


def test_training_is_deterministic_in_any_process(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(make_texts(200), 600).to_json() == tokenizer.to_json()
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from sample_texts import make_texts\n"
        "from azllm_lightning.data.tokenizer import Tokenizer\n"
        "print(Tokenizer.train(make_texts(200), 600).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == tokenizer.fingerprint
    assert Tokenizer.train(make_texts(200, seed=1), 600).fingerprint != tokenizer.fingerprint


def test_file_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.from_file(place)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.vocab_size == tokenizer.vocab_size == len(tokenizer.token_bytes)
        assert again.encode("Bakı şəhəri") == tokenizer.encode("Bakı şəhəri")


def test_case_is_kept(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("İlqar") != tokenizer.encode("ilqar")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "normalizer": lambda parts: parts.update(normalizer=None),
    "pattern": lambda parts: split(parts, 0).update(pattern={"Regex": r"\w+|\W"}),
    "splits": lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
    "behavior": lambda parts: split(parts, 0).update(behavior="MergedWithNext"),
    "space": lambda parts: split(parts, 1).update(add_prefix_space=True),
    "digits": lambda parts: parts["pre_tokenizer"]["pretokenizers"].append(
        {"type": "Digits", "individual_digits": True}
    ),
    "special": lambda parts: parts["added_tokens"][0].update(content="<s>"),
    "plain": lambda parts: parts["added_tokens"][0].update(special=False),
    "model": lambda parts: parts.update(
        model={"type": "WordLevel", "vocab": {EOT: 0, "a": 1}, "unk_token": "a"}
    ),
    "dropout": lambda parts: parts["model"].update(dropout=0.1),
    "bytes": lambda parts: parts["model"].update(vocab={EOT: 0, "a": 1}, merges=[]),
}


def split(parts: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = parts["pre_tokenizer"]["pretokenizers"][index]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("normalizer", "NFC"),
        ("pattern", "a different pattern"),
        ("splits", "words and then bytes"),
        ("special", "special tokens"),
        ("model", "not BPE"),
        ("bytes", "256 bytes"),
        ("dropout", "its model has .*dropout"),
        ("behavior", "words and then bytes"),
        ("space", "words and then bytes"),
        ("digits", "words and then bytes"),
        ("plain", "special tokens"),
    ],
)
def test_tokenizers_of_others_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: str, message: str
) -> None:
    parts = json.loads(tokenizer.to_json())
    CHANGES[change](parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refusal:
        Tokenizer.from_file(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_file_cuts_and_fills_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Core

    core = Core.from_str(tokenizer.to_json())
    core.enable_truncation(max_length=4)
    core.enable_padding(length=9)
    core.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(tmp_path)
    texts = ["Bakı Xəzər dənizinin sahilində yerləşir.", "a"]
    assert again.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert again.encode(texts[0]) == tokenizer.encode(texts[0])
    assert again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": {}}'])
def test_broken_tokenizers_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="not a complete tokenizer"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="no such tokenizer"):
        Tokenizer.from_file(tmp_path / "elsewhere.json")


def test_no_warning_about_parallelism_after_a_fork(tmp_path: Path) -> None:
    code = (
        "import os\nfrom azllm_lightning.data.tokenizer import Tokenizer\n"
        "t = Tokenizer.train(['salam dünya'] * 50, 300); t.encode_batch(['salam'] * 50)\n"
        "pid = os.fork() if hasattr(os, 'fork') else 0\n"
        "t.encode_batch(['salam'] * 50)\n"
        "if pid: os.waitpid(pid, 0)"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"
    }
    # Python 3.12 and later warn of a fork with threads whatever they do.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
