from dataclasses import replace
from pathlib import Path

import pytest
import torch

from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.model.gpt import GPT

CONF = Path(__file__).parents[2] / "conf" / "model"
VOCAB_SIZE = {"nano": 2048, "tiny": 8192, "small10m": 8192, "laptop": 32000, "course": 32000}
SMALL = GPTConfig(vocab_size=300, block_size=32, n_layer=2, n_head=4, n_embd=64)


def shipped(name: str) -> GPTConfig:
    return compose([f"model={name}"]).model.for_data(VOCAB_SIZE[name], 256, 0)


def test_every_shipped_size_is_counted_here():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(VOCAB_SIZE)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", VOCAB_SIZE)
def test_num_params_is_that_of_the_module(name, tie):
    config = replace(shipped(name), tie_embeddings=tie, n_kv_head=1)
    with torch.device("meta"):
        model = GPT(config)
    counts = {n: p.numel() for n, p in model.named_parameters()}
    assert config.num_params() == sum(counts.values())
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    assert config.num_params(embeddings=False) == sum(
        count for n, count in counts.items() if n not in tables
    )


def test_shipped_sizes():
    millions = {name: round(shipped(name).num_params() / 1e6) for name in VOCAB_SIZE}
    assert millions == {"nano": 2, "tiny": 7, "small10m": 13, "laptop": 58, "course": 134}
    assert round(replace(shipped("course"), tie_embeddings=True).num_params() / 1e6) == 110


def test_flops_count_products_and_attention():
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(SMALL, n_layer=3, vocab_size=500)
    with torch.device("meta"):
        model = GPT(config)
        ids = torch.zeros(1, config.block_size, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter:
        model(ids).sum().backward()
    measured = counter.get_total_flops() / config.block_size
    # Not exact: N counts the weights of norms, and attention's backward pass recomputes the scores.
    assert measured == pytest.approx(config.flops_per_token(), rel=0.02)


def test_defaults_are_settled_and_survive_as_plain_types():
    assert (SMALL.n_kv_head, SMALL.intermediate_size) == (4, 192)
    assert GPTConfig(**SMALL.to_dict()) == SMALL
    assert {type(value) for value in SMALL.to_dict().values()} <= {int, float, bool}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"n_embd": 770, "n_head": 12},
            r"n_embd=770 is not divisible by model.n_head=12; the nearest width that is: 768",
        ),
        ({"n_embd": 60, "n_head": 4}, "heads of width 15"),
        ({"n_head": 4, "n_kv_head": 3}, "n_head=4 is not divisible by model.n_kv_head=3"),
        ({"n_layer": 0}, "n_layer=0 must be above 0"),
        ({"n_kv_head": 0}, "n_kv_head=0 must be above 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"eos_id": 300}, "eos_id=300 must be inside the vocabulary of 300"),
        ({"n_layer": -1, "dropout": -0.1}, "(?s)n_layer=-1.*dropout=-0.1"),
    ],
)
def test_impossible_sizes_are_reported(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)
