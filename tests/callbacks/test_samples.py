"""Texts at each validation: the same prompts, legible, and without effect on the training."""

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
from events import Finished, texts
from lightning.pytorch.loggers import TensorBoardLogger

from azllm_lightning.callbacks import samples
from azllm_lightning.callbacks.samples import MARKDOWN, PROMPTS, Samples
from azllm_lightning.config.callbacks import SamplesConfig
from azllm_lightning.config.compose import compose
from azllm_lightning.formats.load import load
from azllm_lightning.inference.sampling import sample
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars

Train = Callable[..., Path]
SHORT = ["callbacks.samples.max_new_tokens=12"]


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table as TensorBoard shows them, the head first, bold as plain."""
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


def test_the_same_prompts_are_continued_at_each_validation(finished: Finished) -> None:
    found = texts(finished.folder, "samples")
    assert [step for step, _ in found] == [0, 4, 8]
    assert len({text for _, text in found}) == 3
    model, tokenizer = load(step_files(finished.folder / "checkpoints")[0][1])
    greedy = sample(model, tokenizer, PROMPTS["tales"], 12, temperature=0.0)
    drawn = sample(model, tokenizer, PROMPTS["tales"], 12, temperature=0.8, seed=0)
    head, *rows = cells(found[-1][1])
    assert head == ["temperature=0", "temperature=0.8"]
    shown = [
        [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", text.replace("\t", " ")) for text in row]
        for row in zip(greedy, drawn, strict=True)
    ]
    assert [[text.strip() for text in row] for row in rows] == [
        [text.strip() for text in row] for row in shown
    ]
    assert all(
        row[0].startswith(prompt) for row, prompt in zip(rows, PROMPTS["tales"], strict=True)
    )


def test_a_row_of_the_table_is_a_line_whatever_the_text() -> None:
    written = "a" + "".join(map(chr, [*range(32), *range(127, 160), 0x2028, 0x2029])) + "z"
    table = "| x |\n|---|\n| **b**" + written.translate(MARKDOWN) + " |"
    assert len(table.splitlines()) == 3
    ((_,), (cell,)) = cells(table)
    assert (cell[:2], cell[-1], cell.count("\n")) == ("ba", "z", 4)


def test_prompts_of_the_user_and_those_for_other_data(train_tiny: Train) -> None:
    folder = train_tiny(
        *SHORT,
        'callbacks.samples.prompts=["Nə üçün, bilmirəm", ""]',
        "callbacks.samples.temperature=1.5",
        "lang=az",
    )
    head, *rows = cells(texts(folder, "samples")[0][1])
    assert head == ["temperature=0", "temperature=1.5"]
    assert len(rows) == 2
    assert rows[0][0].startswith("Nə üçün, bilmirəm")

    def prompts(own: list[str] | None) -> list[str]:
        config = SamplesConfig(prompts=own, max_new_tokens=1, temperature=0.8)
        return Samples(config, "text").prompts

    assert prompts(None) == PROMPTS["text"]
    assert prompts(["u\u0308zu\u00adm", "B\u0430kı "]) == ["üzum", "Bakı"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prompts=[]", r"callbacks\.samples\.prompts=\[\]"),
        ("max_new_tokens=-1", "max_new_tokens=-1"),
        ("temperature=0", r"temperature=0"),
        ("promt=a", r"samples\.promt"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: str, message: str) -> None:
    plus = "+" if "promt" in setting else ""
    with pytest.raises(ValueError, match=message):
        compose([f"{plus}callbacks.samples.{setting}"])


def boom(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the compiled network was run, which would compile for another shape")


def test_training_does_not_notice(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def watched(net: GPT, *args: Any, **settings: Any) -> list[str]:
        states = []
        net._compiled_call_impl = boom  # torch's own place for what compile() makes
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
    runs = [train_tiny(*overrides) for overrides in (SHORT, ["callbacks.samples.max_new_tokens=0"])]
    ends = [torch.load(step_files(run / "checkpoints")[0][1], weights_only=True) for run in runs]
    assert len(calls) == 6
    assert texts(runs[1], "samples") == []
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_the_time_of_writing_is_no_training_time(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what looks like markup is shown as it was written."""
    odd = " *a* _b_ `c` [d](e) <b>f</b> &amp; | g \\* \x02\x00 **h**\n# i\n- j ~~k~~"
    clock = time.perf_counter
    spent = 0.0

    def slow(
        net: GPT, tokenizer: Any, prompts: list[str], *args: Any, **settings: Any
    ) -> list[str]:
        nonlocal spent
        spent += 1e6
        return [prompt + odd for prompt in prompts]

    monkeypatch.setattr(samples, "sample", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + spent)
    folder = train_tiny("callbacks.samples.max_new_tokens=2")
    assert spent == 6e6
    # 128 tokens in 2 million seconds would be much less:
    assert min(read_scalars(folder)["tokens_per_sec"].values()) > 0.1
    _, *rows = cells(texts(folder, "samples")[0][1])
    shown = odd.replace("\x02\x00", "\ufffd\ufffd")
    assert rows == [[prompt + shown] * 2 for prompt in PROMPTS["tales"]]


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CausalLM", SimpleNamespace)
    monkeypatch.setattr(samples, "sample", boom)
    trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[TensorBoardLogger("nowhere")])
    module: Any = SimpleNamespace()
    config = SamplesConfig(prompts=None, max_new_tokens=1, temperature=0.8)
    Samples(config, "text").on_validation_end(trainer, module)
