from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.formats.model_card import (
    gguf_usage,
    hf_usage,
    is_from_scratch,
    model_card,
    ollama_name,
    state_dict_usage,
    training_rows,
)
from azllm_lightning.formats.suite_card import card_section

CONFIG = """run_name: nağıl
data: {name: text, path: ["/home/mən/gizli yer/kitab.txt", "https://ad:gizli@az.example/mətn.txt"]}
"""


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    saved = {
        "config": CONFIG,
        "step": 2000,
        "validated_step": 1500,
        "metrics": {"val_loss": 3.25, "val_bpb": 1.125},
        "teachers": [],
        "started_from": "",
    }
    return {"azllm": saved, "TokenDataModule": {"global_batch_size": 8}}


def card(checkpoint: dict[str, Any], usage: str) -> str:
    shape = GPTConfig(vocab_size=2048, block_size=256, n_layer=4, n_head=2, n_embd=64)
    training = training_rows(checkpoint, 256)
    return model_card("nağıl", shape, "cc-by-4.0", usage, training, is_from_scratch(checkpoint))


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+) \| (.+) \|$", text, re.MULTILINE))


def test_a_card_in_english(checkpoint: dict[str, Any]) -> None:
    text = card(checkpoint, hf_usage("model"))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert rows(body)["val_loss at step 1,500"] == "3.2500 nats per token"
    assert rows(body)["tokens seen"] == "4,096,000 in 2,000 steps"
    assert "trained from scratch" in body
    assert "separated by `<|endoftext|>`: start a prompt with it" in body


def test_a_card_in_azerbaijani(checkpoint: dict[str, Any]) -> None:
    use_language("az")
    text = card(checkpoint, gguf_usage("model", "f16", "nağıl", 256))
    assert rows(text)["val_loss (1,500-cü addımda)"] == "token başına 3.2500 nat"
    assert re.findall("^## (.+)$", text, re.MULTILINE) == ["İstifadə", "Təyinatı", "Lisenziya"]
    english = {"the", "and", "with", "model's", "training", "tokens", "was", "its"}
    code = re.compile("```.*?```|`[^`]*`|---.*?---", re.DOTALL)
    assert english.isdisjoint(code.sub("", text).lower().split())


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"started_from": "kitablar"}, {"initial weights": "kitablar"}),
        ({"teachers": ["a1", "b2"]}, {"teacher models": "2"}),
        ({"started_from": None}, {}),  # a run begun before this was recorded
    ],
)
def test_a_model_that_learned_from_others_is_not_called_from_scratch(
    checkpoint: dict[str, Any], saved: dict[str, Any], expected: dict[str, str]
) -> None:
    before = rows(card(checkpoint, hf_usage("model")))
    checkpoint["azllm"] |= saved
    text = card(checkpoint, hf_usage("model"))
    assert "from scratch" not in text
    assert rows(text) == before | expected


def test_a_card_names_local_text_by_its_last_part(checkpoint: dict[str, Any]) -> None:
    shape = GPTConfig(vocab_size=300, block_size=32, n_layer=1, n_head=2, n_embd=32)
    text = card(checkpoint, state_dict_usage("model", shape))
    assert rows(text)["training text"] == "kitab.txt, https://az.example/mətn.txt"
    assert "gizli" not in text
    checkpoint["azllm"]["config"] = CONFIG.replace("name: text", "name: kitablar")
    text = card(checkpoint, state_dict_usage("model", shape))
    assert rows(text)["training text"].startswith("kitablar, kitab.txt, ")


def test_a_run_of_windows_keeps_its_figures_and_its_paths_to_itself(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    config = yaml.safe_load(CONFIG)
    config["data"]["path"] = r"C:\Users\Aygün\gizli\kitab.txt"
    checkpoint["azllm"]["config"] = yaml.safe_dump(config)
    assert training_rows(checkpoint, 256)["training text"] == "kitab.txt"
    text = {"text": r"C:\gizli\mətn, val", "all": {"val_bpb": 1.5, "tokens_per_word": 2.0}}
    write_suite(tmp_path / "suite.json", r"C:\models\a", 1.5, text=text)
    section = card_section(tmp_path / "a.ckpt")
    assert "1.5000" in section
    assert section.endswith("on mətn, val.\n")


def test_the_name_in_ollama_is_the_runs_name(checkpoint: dict[str, Any]) -> None:
    usage = gguf_usage("model", "q8_0", "nağıl", 256)
    assert "Ollama 0.30 or newer" in usage  # older ones ignore the file's pre-tokenizer
    assert "`ollama create nagil -f Modelfile`" in usage
    assert '`ollama run nagil "Bir gün"`' in usage


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mini", "mini"), ("Şəki, 2-ci cild", "Seki-2-ci-cild"), ("漢字", "azllm"), ("İlıq", "Iliq")],
)
def test_names_are_spelt_as_ollama_takes_them(name: str, expected: str) -> None:
    assert ollama_name(name) == expected


def write_suite(path: Path, model: str, bpb: float, **more: object) -> None:
    share = {"accuracy": 0.6, "low": 0.5, "high": 0.7, "pairs": 200}
    results = {
        "model": f"{model}.ckpt",
        "commit": "abc",
        "text": {"text": "mətn", "all": {"val_bpb": bpb, "tokens_per_word": 2.0}},
        "second_half": {"all": {"bits": 90.0, "low": 80.0, "high": 100.0}},
        "pairs": {"groups": {"grammar": share, "spelling": share}},
        "turkish": {"all": share},
        "samples": None,
        **more,
    }
    path.write_text(json.dumps(results), encoding="utf-8")


def test_a_figure_of_one_line_has_no_interval(tmp_path: Path) -> None:
    half = {"all": {"bits": 90.0, "low": None, "high": None}}
    write_suite(tmp_path / "suite.json", "a", 1.5, second_half=half)
    assert "| 90.00 | - |" in card_section(tmp_path / "a.ckpt")


def test_each_of_several_checkpoints_has_the_figures_of_its_own_suite(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite.json", "models/a", 1.5)
    write_suite(tmp_path / "suite-0123abcd.json", "models/b", 1.25, own_split=True)
    assert "| bits per byte | 1.5000 |" in card_section(tmp_path / "a.ckpt")
    assert "| bits per byte | 1.2500 |" in card_section(tmp_path / "b.ckpt")
    assert card_section(tmp_path / "c.ckpt") == ""


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ({"version": "1.2", "commit": None}, "azllm-lightning 1.2"),  # installed with pip
        ({"version": "1.2", "commit": "abc"}, "azllm-lightning 1.2, commit abc"),
        ({"commit": "abc"}, "azllm-lightning, commit abc"),  # older results
    ],
)
def test_a_card_names_the_code_that_measured(
    tmp_path: Path, code: dict[str, str | None], named: str
) -> None:
    write_suite(tmp_path / "suite.json", "a", 1.5, **code)
    assert f"`evaluate suite=true` of {named}, on mətn." in card_section(tmp_path / "a.ckpt")


def test_a_card_has_no_figures_on_another_text_whatever_the_name_of_its_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "suite-20250131.json"
    for name, is_own in ((path, True), (path, False), (path.with_name("suite.json"), False)):
        path.unlink(missing_ok=True)
        write_suite(name, "a", 1.5, own_split=is_own)
        assert ("1.5000" in card_section(tmp_path / "a.ckpt")) == is_own


def test_weights_of_a_later_step_do_not_have_the_figures_of_an_earlier_one(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    write_suite(tmp_path / "suite.json", "models/best", 1.5, step=500)
    for step, has_figures in ((500, True), (5000, False)):
        torch.save({"azllm": {"format": 1, "tokenizer": "", "step": step}}, best)
        assert ("1.5000" in card_section(best)) == has_figures
