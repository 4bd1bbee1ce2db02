"""What tokens learn from others that are spelled like them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training import batch
from azllm_lightning.training.affixes import PER_TOKEN, Affixes, affixes_of
from azllm_lightning.training.muon import MuonAdamW
from azllm_lightning.training.optimizer import build_optimizer
from azllm_lightning.training.sparse_rows import LONGEST_BAG

pytestmark = pytest.mark.numerics

TEXTS = ["", " ", "\ufffd", "lar", " lar", "Lar", "ların", "lərin", "kitab", " Kitabı", "7", "--"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(write_tales(200_000, 0), 2048)


@pytest.mark.parametrize(
    ("text", "expected", "properties"),
    [
        (" Evdə", "evdə e- ev- evd- -ə -də -vdə", ("after  ", "capital True", "kind letters")),
        (
            "lərindən",
            "lərindən l- lə- lər- ləri- lərin- -n -ən -dən -ndən",
            ("after ", "capital False", "kind letters"),
        ),
        ("İş", "iş i- -ş", ("after ", "capital True", "kind letters")),
        ("Işı", "ışı ı- ış- -ı -şı", ("after ", "capital True", "kind letters")),
        ('"Bu', "bu b- -u", ('after "', "capital True", "kind letters")),
        ("-nın", "nın n- nı- -n -ın", ("after -", "capital False", "kind letters")),
        ("हि", "हि ह- -ि", ("after ", "capital False", "kind letters")),
        ("ीन", "ीन ी- -न", ("after ", "capital False", "kind letters")),
        (" Дом", "дом д- до- -м -ом", ("after  ", "capital True", "kind letters")),
        ("7", "7", ("after ", "capital False", "kind digits")),
        (" ,", ",", ("after  ", "capital False", "kind other")),
        ("?!", "?! ?- -!", ("after ", "capital False", "kind other")),
    ],
)
def test_the_affixes_of_a_token(text: str, expected: str, properties: tuple[str, ...]) -> None:
    whole, *parts = expected.split(" ")
    begins = [f"begins {part[:-1]}" for part in parts if part.endswith("-")]
    ends = [f"ends {part[1:]}" for part in parts if part.startswith("-")]
    assert affixes_of(text) == [f"whole {whole}", *begins, *ends, *properties]


@pytest.mark.parametrize("text", ["--", " ---", "-a", "=a", "\n", "aa", "a-", "’", "’a"])
def test_no_affix_occurs_twice_in_a_token(text: str) -> None:
    found = affixes_of(text)
    assert len(found) == len(set(found)) >= 4


@pytest.mark.parametrize("text", ["", " ", "  ", "\ufffd", " a\ufffd"])
def test_parts_of_characters_and_spaces_have_none(text: str) -> None:
    assert affixes_of(text) == []


def test_they_are_a_matrix_with_rows_of_length_one() -> None:
    affixes = Affixes(TEXTS)
    matrix = affixes.collect(torch.eye(len(TEXTS))).T
    assert torch.equal(affixes.spread(torch.eye(matrix.shape[1])), matrix)
    assert matrix.count_nonzero(dim=0).min() >= 2, "an affix of one token is nothing shared"
    lengths = torch.tensor([1.0 if affixes_of(text) else 0.0 for text in TEXTS])
    torch.testing.assert_close(matrix.norm(dim=1), lengths)
    for row in matrix:
        assert len(row[row > 0].unique()) <= 1
    x = torch.randn(len(TEXTS), 5)
    torch.testing.assert_close(affixes.spread(affixes.collect(x)), matrix @ matrix.T @ x)


def test_long_rows_are_added_up_in_parts() -> None:
    texts = [f"{number}lar" for number in range(300)]  # an ending that all of them have
    affixes = Affixes(texts)
    matrix = affixes.spread(torch.eye(len(affixes.collect(torch.eye(300)))))
    assert matrix.count_nonzero(dim=0).max() == 300 > 4 * LONGEST_BAG
    x = torch.randn(300, 3)
    torch.testing.assert_close(affixes.collect(x), matrix.T @ x)


def test_a_vocabulary_has_about_as_many_as_is_planned_for(tokenizer: Tokenizer) -> None:
    found = Affixes.of(tokenizer).collect(torch.zeros(2048, 1))
    assert len(found) == pytest.approx(PER_TOKEN * 2048, rel=0.2)


def test_a_step_is_one_of_the_tokens_and_one_of_their_affixes() -> None:
    """The table is E + rate * S @ G, and AdamW updates both, with the same decay."""
    torch.manual_seed(0)
    affixes = Affixes(TEXTS)
    matrix = affixes.collect(torch.eye(len(TEXTS))).T
    start = torch.randn(len(TEXTS), 4)
    table = nn.Parameter(start.clone())
    adam = {"lr": 0.01, "betas": (0.5, 0.98), "eps": 1e-6, "weight_decay": 0.1}
    group = {"params": [table], "kind": "adamw", "affix_rate": 0.7, **adam}
    optimizer = MuonAdamW([group], torch.float32, affixes=affixes)
    own, shared = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(matrix.shape[1], 4))
    plain = torch.optim.AdamW([own, shared], **adam)
    for step in range(6):
        if step == 3:  # a skipped one
            optimizer.step()
            continue
        table.grad = torch.randn(len(TEXTS), 4) * 10.0**-step
        own.grad, shared.grad = table.grad.clone(), matrix.T @ table.grad
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
        torch.testing.assert_close(table, own + 0.7 * matrix @ shared)


def test_a_token_moves_with_those_that_are_spelled_like_it() -> None:
    table = nn.Parameter(torch.zeros(len(TEXTS), 1))
    group = {"kind": "adamw", "lr": 0.01, "betas": (0.5, 0.98), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = MuonAdamW(
        [{"params": [table], "affix_rate": 0.5, **group}], torch.float32, affixes=Affixes(TEXTS)
    )
    table.grad = torch.zeros_like(table)
    table.grad[TEXTS.index("ların")] = 1.0
    optimizer.step()
    moved = dict(zip(TEXTS, (-table[:, 0]).tolist(), strict=True))
    assert moved["ların"] > moved["lərin"] > moved["kitab"] > 0 == moved["\ufffd"]
    assert moved["lar"] > moved[" lar"] > 0


def config(**changes: Any) -> OptimizerConfig:
    return replace(compose().optimizer, **changes)


def trained(tokenizer: Tokenizer, settings: OptimizerConfig, steps: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=2048, block_size=8, n_layer=1, n_head=2, n_embd=16))
    optimizer = build_optimizer(net, settings, tokenizer=tokenizer)
    for seed in range(steps):
        take_step(net, optimizer, seed)
    return list(net.parameters())


def take_step(net: GPT, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(2048, (4, 9), generator=torch.Generator().manual_seed(seed))
    net(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_setting_decides(tokenizer: Tokenizer) -> None:
    shipped, without = trained(tokenizer, config()), trained(tokenizer, config(affix_rate=0.0))
    twice = trained(tokenizer, config(affix_rate=1.0))
    assert not torch.equal(shipped[0], without[0])
    assert not torch.equal(shipped[0], twice[0])
    values = config().to_dict()
    del values["affix_rate"]  # as in a run from before there was one
    for ours, theirs in zip(
        trained(tokenizer, OptimizerConfig.read(values, "optimizer")), without, strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"optimizer\.affix_rate=-0\.5 .*at least 0"):
        config(affix_rate=-0.5)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_continues_bit_for_bit(tokenizer: Tokenizer, tied: bool) -> None:
    torch.manual_seed(0)
    shape = GPTConfig(
        vocab_size=2048, block_size=8, n_layer=1, n_head=2, n_embd=16, tie_embeddings=tied
    )
    net = GPT(shape)
    assert isinstance(config(), MuonConfig)
    optimizer = build_optimizer(net, config(), tokenizer=tokenizer)
    for seed in range(3):
        take_step(net, optimizer, seed)
    tables = [p for p in net.parameters() if "affix_exp_avg" in optimizer.state[p]]
    assert [p.shape for p in tables] == [(2048, 16)] * (1 if tied else 2)
    copied = copy.deepcopy(net)
    resumed = build_optimizer(copied, config(), tokenizer=tokenizer)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        take_step(net, optimizer, seed)
        take_step(copied, resumed, seed)
    for ours, theirs in zip(net.parameters(), copied.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_moments_of_other_affixes_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Another version may find other affixes, or the same ones in another order."""
    group = {"kind": "adamw", "lr": 0.01, "betas": (0.5, 0.98), "eps": 1e-8, "weight_decay": 0.0}

    def optimizer(texts: list[str] | None) -> tuple[nn.Parameter, MuonAdamW]:
        table = nn.Parameter(torch.zeros(4, 2))
        groups = [{"params": [table], "affix_rate": 0.5, **group}]
        affixes = Affixes(texts) if texts else None
        return table, MuonAdamW(groups, torch.float32, affixes=affixes)

    def step(table: nn.Parameter, steps: MuonAdamW) -> None:
        table.grad = torch.ones_like(table)
        steps.step()

    table, saved = optimizer(["lar", "lər", "ların", "lərin"])
    step(table, saved)
    for texts, warnings in ((["lar", "lər", "a", "ab"], 1), (None, 0)):
        other, resumed = optimizer(texts)
        resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
        assert len(caplog.records) == warnings
        caplog.clear()
        assert set(resumed.state[other]) == {"step", "exp_avg", "exp_avg_sq"}
        step(other, resumed)
        again = optimizer(texts)
        again[1].load_state_dict(copy.deepcopy(resumed.state_dict()))
        assert set(again[1].state[again[0]]) == set(resumed.state[other])
        assert not caplog.records
    same, resumed = optimizer(["lar", "lər", "ların", "lərin"])
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert set(resumed.state[same]) == set(saved.state[table])


@pytest.mark.parametrize("rates", [(0.0, 0.5), (0.5, 0.0)])
def test_a_run_may_switch_it_on_or_off(
    rates: tuple[float, float], train_tiny: Callable[..., Path]
) -> None:
    first, second = (f"optimizer.affix_rate={rate}" for rate in rates)
    train_tiny(first, "trainer.max_steps=4")
    folder = train_tiny("ckpt_path=last", second, "trainer.max_steps=6")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = state["optimizer_states"][0]["state"].values()
    steps = {float(values["affix_step"]) for values in found if "affix_step" in values}
    assert steps == ({2.0} if rates[1] else set())


def test_memory_is_tried_out_with_their_moments(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def built(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made.append(build_optimizer(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(batch, "build_optimizer", built)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    config = compose(["trainer.accelerator=cpu", "trainer.precision=32-true", "model.n_embd=48"])
    settled = replace(config, model=config.model.for_data(2048, 16, 0))
    assert batch.trial(settled, "cpu", tokenizer=tokenizer)(1)
    assert any("affix_exp_avg" in values for values in made[0].state.values())


def test_a_session_tries_it_out_with_the_tokenizer_of_its_text(
    train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def largest(*args: Any) -> int:
        given.extend(args)
        return 1

    monkeypatch.setattr(batch, "largest_micro_batch", largest)
    folder = train_tiny("trainer.micro_batch_size=auto", "trainer.max_steps=1")
    config = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["azllm"]
    [used] = [value for value in given if isinstance(value, Tokenizer)]
    assert used.to_json() == config["tokenizer"]
