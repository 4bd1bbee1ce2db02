"""A student and its teachers: what it learns, and that it resumes with the same ones only."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training_runs import curve

from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.formats.load import load, read_checkpoint, tokenizer_of
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.teachers import Teachers, teachers_of
from azllm_lightning.training.threads import mean_loss

Train = Callable[..., Path]


@pytest.fixture
def pair(train_tiny: Train) -> list[str]:
    """Run folders of two teachers, of other sizes than the student."""
    folders = []
    for seed, width in ((1, 32), (2, 64)):
        size = [f"model.n_embd={width}", "model.n_head=2", "trainer.max_steps=1"]
        folders.append(train_tiny("run_name=teacher", f"seed={seed}", *size))
    return [str(folder) for folder in folders]


def named(teachers: list[str]) -> str:
    return f"teachers=[{','.join(teachers)}]"


@pytest.mark.numerics
def test_a_resumed_student_equals_the_uninterrupted_one(
    train_tiny: Train, pair: list[str], tmp_path: Path
) -> None:
    shared = ["trainer.micro_batch_size=2", "model.dropout=0.1", "schedule.total_steps=8"]
    settings = [named(pair), *shared]
    straight = train_tiny("run_name=straight", *settings)
    plain = train_tiny("run_name=plain", *shared)
    train_tiny("run_name=student", "trainer.max_steps=4", *settings)
    moved = [shutil.move(path, tmp_path / str(k)) for k, path in enumerate(pair)]
    resume = ["run_name=student", "ckpt_path=last", "trainer.max_steps=8"]
    with pytest.raises(ValueError, match=r"version_0: no such .* folder\. This run learns"):
        train_tiny(*resume)
    shutil.copytree(moved[0], Path(pair[0]).with_name("version_7"))
    with pytest.raises(ValueError, match=r"did you mean .*version_7\? This run learns"):
        train_tiny(*resume)
    with pytest.raises(ValueError, match=f"teachers: {re.escape(str(moved[1]))} has other weights"):
        train_tiny(*resume, named([str(path) for path in reversed(moved)]))
    for fewer in ("teachers=null", named([str(moved[0])])):
        with pytest.raises(ValueError, match="learns from 2 models: give their places"):
            train_tiny(*resume, fewer)
    for key, before in (("teacher_share", 0.5), ("teacher_temperature", 1.0)):
        with pytest.raises(ValueError, match=rf"{key}: {before} .*, 0\.4 requested"):
            train_tiny(*resume, f"{key}=0.4", named([str(path) for path in moved]))
    resumed = train_tiny(*resume, named([str(path) for path in moved]))
    losses = curve(straight)["train_loss"], curve(resumed)["train_loss"]
    assert losses[0] == losses[1]
    # The first step has the weights and the text of a run without teachers, so also its mean NLL.
    without = curve(plain)["train_loss"]
    assert losses[0][1] == pytest.approx(without[1])
    assert losses[0][8] != without[8]
    weights = [load(folder)[0].state_dict() for folder in (straight, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_without_teachers_cannot_have_them_later(train_tiny: Train, pair: list[str]) -> None:
    train_tiny("run_name=alone", "trainer.max_steps=4")
    with pytest.raises(ValueError, match="this run began without any"):
        train_tiny("run_name=alone", "ckpt_path=last", "trainer.max_steps=5", named(pair))


def test_another_tokenizer_is_refused_before_the_run_begins(
    train_tiny: Train, pair: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"another tokenizer.*data\.tokenizer=.*version_0") as told:
        train_tiny("run_name=student", "data.vocab_size=320", named(pair))
    folder = Path(str(told.value).rpartition("data.tokenizer=")[2])
    assert (folder / "tokenizer.json").is_file()
    assert not (Path(pair[0]).parent.parent / "student").exists()


def test_teachers_are_looked_at_before_the_text(train_tiny: Train, tmp_path: Path) -> None:
    good, other = train_tiny("run_name=a"), train_tiny("run_name=b", "data.vocab_size=320")
    broken = tmp_path / "teacher.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    text = ["data=text", "data.path=nowhere.txt"]
    for paths, wrong in (
        ([good, other], f"{re.escape(str(other))} and .* different tokenizers"),
        ([good, broken], r"teachers: .*teacher\.gguf is not a complete checkpoint.*step_\*\.ckpt$"),
        ([good, tmp_path / "yox"], r"^teachers=.*yox: no such file .* an exported folder$"),
    ):
        with pytest.raises(ValueError, match=wrong):
            train_tiny("run_name=student", *text, named([str(path) for path in paths]))


@pytest.mark.thorough
def test_teachers_that_change_meanwhile_are_still_those_of_the_start(
    train_tiny: Train, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt, after memory ran out, has what the first had read."""
    settings = ["trainer.micro_batch_size=4", named(pair)]
    calm = train_tiny("run_name=calm", *settings)
    step = CausalLM.training_step

    def crowded(module: CausalLM, batch: Any, index: int) -> Any:
        if module.trainer.global_step == 3 and len(batch) > 2:
            for path in pair:
                shutil.rmtree(path, ignore_errors=True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(module, batch, index)

    monkeypatch.setattr(CausalLM, "training_step", crowded)
    student = train_tiny("run_name=student", *settings)
    assert not Path(pair[0]).exists()
    losses = curve(student)["train_loss"], curve(calm)["train_loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    checkpoint = next((student / "checkpoints").glob("step_*.ckpt"))
    assert len(read_checkpoint(checkpoint)["azllm"]["teachers"]) == 2


def test_machines_with_other_teachers_are_refused(train_tiny: Train, pair: list[str]) -> None:
    config = compose([named(pair)])
    tokenizer = tokenizer_of(pair[0])
    same = Teachers(pair, 0.5, tokenizer, 32).digests
    config = replace(config, data=replace(config.data, block_size=32))
    found = teachers_of(config, tokenizer, same)
    assert found is not None
    assert found.digests == same
    with pytest.raises(ValueError, match="have other weights than on the first machine"):
        teachers_of(config, tokenizer, same[::-1])


def test_a_shorter_context_is_refused(train_tiny: Train, pair: list[str]) -> None:
    with pytest.raises(ValueError, match=r"context of 32 tokens, .* 64.*data\.block_size=32"):
        train_tiny("run_name=student", "data.block_size=64", named(pair))


def test_threads_divide_a_student_as_any_model(pair: list[str]) -> None:
    tokenizer = load(pair[0])[1]
    teachers = Teachers(pair, 0.7, tokenizer, 32)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32
    )
    torch.manual_seed(0)
    net = GPT(config)
    windows = torch.randint(config.vocab_size, (4, 33))
    inputs, labels = windows[:, :-1], windows[:, 1:]
    loss_of = partial(teachers.losses, net)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            losses = mean_loss(net, inputs, labels, loss_of)
        finally:
            torch.set_num_threads(1)
        losses[0].backward()
        found.append([losses.detach(), *(p.grad for p in net.parameters())])
        net.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for teacher in teachers.nets for p in teacher.parameters())


def test_a_temperature_makes_the_teachers_less_sure(pair: list[str]) -> None:
    net, tokenizer = load(pair[0])
    torch.manual_seed(0)
    windows = torch.randint(tokenizer.vocab_size, (4, 33))
    inputs, labels = windows[:, :-1], windows[:, 1:]
    with torch.no_grad():
        logits = [load(path)[0](inputs).flatten(0, 1) / 3 for path in pair]
        target = 0.7 * torch.stack([F.softmax(x, dim=1) for x in logits]).mean(0)
        target += 0.3 * F.one_hot(labels.flatten(), tokenizer.vocab_size)
        expected = F.cross_entropy(net(inputs).flatten(0, 1), target)
        found = Teachers(pair, 0.7, tokenizer, 32, temperature=3.0).losses(net, inputs, labels)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", ["0", "-1"])
def test_a_temperature_that_is_none_is_refused(temperature: str) -> None:
    with pytest.raises(ValueError, match=rf"teacher_temperature={temperature}.*above 0"):
        compose([f"teacher_temperature={temperature}", "teachers=[a]"])


@pytest.mark.parametrize("share", ["0", "-0.1", "1.1"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match=rf"teacher_share={share}.*above 0 and at most 1"):
        compose([f"teacher_share={share}", "teachers=[a]"])


def test_the_experiment_of_a_student_wants_its_teachers() -> None:
    settings = ["experiment=distil", "data.path=a"]
    with pytest.raises(ValueError, match="teachers is empty"):
        compose(settings)
    assert compose([*settings, "teachers=b"]).teacher_paths == ["b"]
    assert not compose([*settings, "ckpt_path=last"]).teacher_paths  # those of the run


@pytest.mark.parametrize("key", ["teacher_share", "teacher_temperature"])
def test_a_setting_of_teachers_without_any_is_reported(key: str) -> None:
    assert any(key in text for text in compose([f"{key}=0.4"]).ignored())
    assert not compose([f"{key}=0.4", "teachers=a"]).ignored()
