"""Texts at each validation: there, the same prompts, legible, and without a trace in the training."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from events import texts
from lightning.pytorch.loggers import TensorBoardLogger

from azllm_lightning.callbacks import samples
from azllm_lightning.callbacks.samples import PROMPTS, Samples
from azllm_lightning.cli.entrance import compose
from azllm_lightning.config.callbacks import SamplesConfig
from azllm_lightning.formats.load import load
from azllm_lightning.inference.sampling import sample
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.session.build import check

Train = Callable[..., Path]
SHORT = "callbacks.samples.max_new_tokens=12"


def cells(text: str) -> list[list[str]]:
    """The rows of a table in Markdown as TensorBoard shows them, the head first; a letter in bold is one."""
    from tensorboard.plugin_util import markdown_to_safe_html

    html = str(markdown_to_safe_html(text))
    rows = [
        re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    ]
    return [
        [unescape(re.sub(r"</?strong>", "", cell.replace("<br>", "\n"))) for cell in row]
        for row in rows
    ]


def test_the_same_prompts_go_on_at_each_validation(train_tiny: Train) -> None:
    folder = train_tiny(SHORT)
    found = texts(folder, "samples")
    assert [step for step, _ in found] == [0, 4, 8]
    assert len({text for _, text in found}) == 3
    model, tokenizer = load(step_files(folder / "checkpoints")[0][1])
    greedy = sample(model, tokenizer, PROMPTS["tales"], 12, temperature=0.0)
    drawn = sample(model, tokenizer, PROMPTS["tales"], 12, temperature=0.8, seed=0)
    head, *rows = cells(found[-1][1])
    assert head == ["greedy", "temperature 0.8"]
    shown = [
        [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", text) for text in row]
        for row in zip(greedy, drawn, strict=True)
    ]
    assert [[text.strip() for text in row] for row in rows] == [
        [text.strip() for text in row] for row in shown
    ]
    assert all(
        row[0].startswith(prompt) for row, prompt in zip(rows, PROMPTS["tales"], strict=True)
    )


def test_ones_own_prompts_are_taken_and_other_data_have_others(train_tiny: Train) -> None:
    folder = train_tiny(
        SHORT,
        'callbacks.samples.prompts=["Nə üçün, bilmirəm", ""]',
        "callbacks.samples.temperature=1.5",
    )
    head, *rows = cells(texts(folder, "samples")[0][1])
    assert head == ["greedy", "temperature 1.5"]
    assert len(rows) == 2
    assert rows[0][0].startswith("Nə üçün, bilmirəm")
    assert Samples(SamplesConfig(None, 1, 0.8), "text").prompts == PROMPTS["text"]
    assert Samples(SamplesConfig(["u\u0308zu\u0308m"], 1, 0.8), "text").prompts == ["üzüm"]


def test_no_sample_is_written_where_none_is_wanted(train_tiny: Train) -> None:
    assert texts(train_tiny("callbacks.samples.max_new_tokens=0"), "samples") == []


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("prompts=[]", r"callbacks\.samples\.prompts=\[\] has no prompt.*max_new_tokens=0"),
        ("max_new_tokens=-1", "max_new_tokens=-1 must not be negative"),
        ("temperature=0", r"temperature=0\.0 must be above 0"),
        ("promt=a", r"samples\.promt"),
    ],
)
def test_settings_that_make_no_sense_are_told(setting: str, told: str) -> None:
    plus = "+" if "promt" in setting else ""
    with pytest.raises(ValueError, match=told):
        check(compose([f"{plus}callbacks.samples.{setting}"]))


def boom(*args: Any, **kwargs: Any) -> None:
    raise AssertionError(
        "the compiled way was taken, and a compiler would now work on another shape"
    )


def test_training_does_not_notice(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def watched(net: GPT, *args: Any, **settings: Any) -> list[str]:
        states = []
        net._compiled_call_impl = boom
        for _ in range(2):
            modes = {name: module.training for name, module in net.named_modules()}
            generators = (
                torch.get_rng_state().tolist(),
                random.getstate(),
                str(np.random.get_state()),
            )
            states.append((modes, *generators, torch.is_inference_mode_enabled()))
            if len(states) == 1:
                drawn = sample(net, *args, **settings)
        del net._compiled_call_impl
        assert states[0] == states[1]
        calls.append(settings)
        return drawn

    monkeypatch.setattr(samples, "sample", watched)
    ends = [
        torch.load(step_files(train_tiny(*overrides) / "checkpoints")[0][1], weights_only=True)
        for overrides in ([SHORT], ["callbacks.samples.max_new_tokens=0"])
    ]
    assert len(calls) == 6
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_the_time_of_writing_is_no_training_time(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, spent = time.perf_counter, 0.0

    def slow(
        net: GPT, tokenizer: Any, prompts: list[str], *args: Any, **settings: Any
    ) -> list[str]:
        nonlocal spent
        spent += 1e6
        return prompts

    monkeypatch.setattr(samples, "sample", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + spent)
    rates = read_scalars(train_tiny())["tokens_per_sec"]
    assert spent == 6e6
    assert min(rates.values()) > 0.1  # 128 tokens in 2 million seconds would be much less


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CausalLM", SimpleNamespace)
    monkeypatch.setattr(samples, "sample", boom)
    trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[TensorBoardLogger("nowhere")])
    module: Any = SimpleNamespace()
    Samples(SamplesConfig(None, 1, 0.8), "text").on_validation_end(trainer, module)


def test_what_looks_like_markup_is_shown_as_written(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = " *a* _b_ `c` [d](e) <b>f</b> &amp; | g \\* \x02\x00 **h**\n# i\n- j ~~k~~"
    monkeypatch.setattr(
        samples,
        "sample",
        lambda net, tokenizer, prompts, *args, **settings: [p + odd for p in prompts],
    )
    _, *rows = cells(texts(train_tiny(), "samples")[0][1])
    shown = odd.replace("\x02\x00", "\ufffd\ufffd")
    assert rows == [[prompt + shown] * 2 for prompt in PROMPTS["tales"]]
