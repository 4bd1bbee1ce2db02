"""The learning rate by step, and which parameters decay."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.schedule import lr_factor

COSINE = ScheduleConfig(
    name="cosine", warmup_steps=10, total_steps=110, decay_ratio=1.0, min_lr_ratio=0.1
)
ADAMW = AdamWConfig(name="adamw", lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95], eps=1e-8)


def test_the_rate_rises_to_its_peak_in_the_warm_up() -> None:
    assert [lr_factor(step, COSINE) for step in range(10)] == pytest.approx(
        [(step + 1) / 10 for step in range(10)]
    )
    assert lr_factor(10, COSINE) == 1.0
    assert lr_factor(0, replace(COSINE, warmup_steps=0)) == 1.0


@pytest.mark.parametrize(
    ("name", "halfway", "quarter"),
    [
        ("power", 0.5**0.6, 0.75**0.6),
        ("linear", 0.5, 0.75),
        ("cosine", 0.5, 0.5 * (1 + math.cos(math.pi / 4))),
        ("sqrt", 1 - math.sqrt(0.5), 0.5),
    ],
)
def test_the_rate_falls_to_its_floor_and_stays(name: str, halfway: float, quarter: float) -> None:
    config = replace(COSINE, name=name)
    assert lr_factor(60, config) == pytest.approx(0.1 + 0.9 * halfway)
    assert lr_factor(35, config) == pytest.approx(0.1 + 0.9 * quarter)
    assert [lr_factor(step, config) for step in (110, 111, 5000)] == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("name", ["power", "linear", "cosine", "sqrt"])
def test_the_rate_stays_at_its_peak_until_the_last_share_of_the_steps(name: str) -> None:
    config = replace(COSINE, name=name, decay_ratio=0.2)
    assert {lr_factor(step, config) for step in range(10, 89)} == {1.0}
    assert lr_factor(89, config) < 1.0
    assert lr_factor(110, config) == pytest.approx(0.1)
    shape = {"power": 0.5**0.6, "linear": 0.5, "cosine": 0.5, "sqrt": 1 - math.sqrt(0.5)}[name]
    assert lr_factor(99, config) == pytest.approx(0.1 + 0.9 * shape)
    rates = [
        lr_factor(step, replace(config, warmup_steps=100)) for step in range(111)
    ]  # no room: it falls at once
    assert rates[99] == 1.0
    assert rates == sorted(rates[:101]) + sorted(rates[101:], reverse=True)


def test_a_constant_rate_warms_up_and_stays() -> None:
    config = replace(COSINE, name="constant")
    assert [lr_factor(step, config) for step in (4, 9, 10, 110, 5000)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("total_steps", [1, 10, 11])
def test_a_run_shorter_than_its_warm_up_has_rates_all_the_same(total_steps: int) -> None:
    rates = [lr_factor(step, replace(COSINE, total_steps=total_steps)) for step in range(30)]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "cos"}, "schedule.name=cos must be one of"),
        ({"warmup_steps": -1}, "schedule.warmup_steps=-1"),
        ({"total_steps": 0}, "schedule.total_steps=0"),
        ({"decay_ratio": 0.0}, "schedule.decay_ratio=0.0"),
        ({"decay_ratio": 1.1}, "schedule.decay_ratio=1.1"),
        ({"min_lr_ratio": 1.5}, "schedule.min_lr_ratio=1.5"),
    ],
)
def test_wrong_schedules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(COSINE, **change)


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(tie: bool) -> None:
    net = GPT(
        GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16, tie_embeddings=tie)
    )
    optimizer = build_optimizer(net, ADAMW)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters()}
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in net.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("norm.weight") else 0.1), name


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    ("head_lr", "head_eps"), [(1e-3, 1e-4), (1e-3, None), (None, 1e-4), (None, None)]
)
def test_a_head_of_its_own_has_its_own_rate_and_eps(
    tie: bool, head_lr: float | None, head_eps: float | None
) -> None:
    config = GPTConfig(
        vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=16, tie_embeddings=tie
    )
    net = GPT(config)
    optimizer = OptimizerConfig.read(
        {**compose([]).optimizer.to_dict(), "head_lr": head_lr, "head_eps": head_eps}, "optimizer"
    )
    assert isinstance(optimizer, MuonConfig)
    groups = build_optimizer(net, optimizer).param_groups
    of = {id(p): (group["lr"], group.get("eps")) for group in groups for p in group["params"]}
    shared = (optimizer.adam_lr, optimizer.eps)
    assert of[id(net.model.embed_tokens.weight)] == shared
    assert of[id(net.model.norm.weight)] == shared
    assert of[id(net.model.layers[0].self_attn.q_proj.weight)] == (optimizer.lr, None)  # Muon's
    if not tie:
        own = (head_lr or optimizer.adam_lr, head_eps or optimizer.eps)
        assert of[id(net.lm_head.weight)] == own
    # Without either the groups are those of the runs that began before these were settings.
    assert len(groups) == (3 if tie or not (head_lr or head_eps) else 4)


@pytest.mark.parametrize("setting", ["head_lr", "head_eps"])
def test_a_run_from_before_a_setting_of_the_head_continues_without_it(setting: str) -> None:
    stored = compose([]).optimizer.to_dict()
    assert stored.pop(setting) is not None
    read = OptimizerConfig.read(stored, "optimizer")
    assert isinstance(read, MuonConfig)
    assert setting[5:] not in read.head_settings()
    assert len(read.head_settings()) == 1


@pytest.mark.parametrize("setting", ["head_lr", "head_eps"])
def test_a_setting_of_the_head_is_above_0(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{setting}.*0"):
        compose([f"optimizer.{setting}=0"])


def test_frozen_parameters_are_left_out() -> None:
    net = GPT(GPTConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=16))
    frozen = next(net.parameters()).requires_grad_(False)
    grouped = [p for group in build_optimizer(net, ADAMW).param_groups for p in group["params"]]
    assert all(p is not frozen for p in grouped)


def test_the_settings_arrive() -> None:
    optimizer = build_optimizer(
        torch.nn.Linear(2, 2), replace(ADAMW, lr=0.5, betas=[0.8, 0.7], eps=1e-3)
    )
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.7), 1e-3, 0.5)
        assert group["fused"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "sgd"}, "optimizer.name=sgd must be one of"),
        ({"lr": 0.0}, "optimizer.lr=0.0"),
        ({"lr": math.nan}, "optimizer.lr=nan"),
        ({"eps": -1e-8}, "optimizer.eps"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1"),
        ({"betas": [0.9]}, "optimizer.betas"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas"),
    ],
)
def test_wrong_optimizers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ADAMW, **change)


def test_muons_settings_are_refused_with_adamw_and_the_way_out_works() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.adam_weight_decay"):
        compose(["optimizer=adamw", "optimizer.adam_weight_decay=3"])
    typed = ["+experiment=small_text", "data.path=x", "optimizer=adamw"]
    with pytest.raises(
        ValueError, match=r"no adam_weight_decay: add ~optimizer\.adam_weight_decay"
    ) as raised:
        compose(typed)
    way_out = str(raised.value).partition("add ")[2]
    assert compose([*typed, way_out]).optimizer.name == "adamw"
