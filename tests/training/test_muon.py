"""MuonAdamW: what a step does to matrices and to the other parameters, and what Lightning needs of
it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training import muon
from azllm_lightning.training.muon import MuonAdamW, orthogonalize
from azllm_lightning.training.optimizer import build_optimizer, parameter_groups

pytestmark = pytest.mark.numerics

CONFIG = MuonConfig(
    name="muon",
    lr=0.02,
    weight_decay=0.1,
    momentum=0.9,
    adam_lr=3e-3,
    adam_weight_decay=0.0,
    betas=[0.9, 0.95],
    eps=1e-8,
)
SMALL = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16, tie_embeddings=True)


def muon_group(*parameters: nn.Parameter, **changes: Any) -> dict[str, Any]:
    return {
        "params": list(parameters),
        "kind": "muon",
        "lr": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.9,
        **changes,
    }


def adam_group(*parameters: nn.Parameter) -> dict[str, Any]:
    values = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    return {"params": list(parameters), "kind": "adamw", **values}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 24, 96)])
def test_singular_values_become_about_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    x = u * torch.logspace(0, -2, shape[1]) @ v  # singular values over a hundredfold range
    values = torch.linalg.svdvals(orthogonalize(x, dtype).float())
    assert 0.4 < values.min() <= values.max() < 1.25


@pytest.mark.parametrize(
    ("dtype", "cosine"),
    [(torch.float32, 0.99999), (torch.float16, 0.999), (torch.bfloat16, 0.995)],
)
def test_updates_of_every_size_are_orthogonalized_as_in_fp32(
    dtype: torch.dtype, cosine: float
) -> None:
    """A matrix of an ordinary size in fp32 is the standard, for a gradient of any size."""
    torch.manual_seed(0)
    x = torch.randn(3, 48, 160)
    x[1] *= torch.logspace(0, -2, 48)[:, None]
    x[2, 5, 7] = 1e4  # one huge entry
    standard = orthogonalize(x, torch.float32)
    for size in (1e-34, *(10.0**n for n in range(-10, 5)), 1e30):
        one = orthogonalize(x * size, dtype)
        assert one.dtype == dtype
        turned = torch.cosine_similarity(one.float().flatten(1), standard.flatten(1))
        assert turned.min() > cosine, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_that_are_zero_or_nearly_stay_finite(dtype: torch.dtype) -> None:
    x = torch.zeros(3, 4, 6)
    x[1, 2, 3] = 1e-45  # the smallest number of fp32
    x[2] = torch.eye(4, 6) * 1e-42
    result = orthogonalize(x, dtype)
    assert not result[0].any()
    assert result.isfinite().all()
    assert torch.linalg.svdvals(result.float()).max() < 1.25


def test_a_step_in_fp16_moves_as_in_fp32_by_tiny_gradients() -> None:
    moved = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(64, 192))
        optimizer = MuonAdamW([muon_group(weight)], dtype)
        weight.grad = 1e-8 * torch.randn(64, 192)
        optimizer.step()
        moved.append(weight.detach().flatten())
    assert torch.cosine_similarity(*moved, dim=0) > 0.999


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    x = torch.randn(
        1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).float()
    u, _, v = torch.linalg.svd(x)
    turned = u.mT @ orthogonalize(x, torch.float32) @ v.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_wide_matrices_on_a_cpu_take_a_shorter_way_to_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 24, 64, dtype=torch.float64, generator=generator)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    x = (u * torch.logspace(0, -5, 24, dtype=torch.float64) @ v).float()
    x[1, :4] = 0.0
    exact = orthogonalize(x, torch.float64)
    wide = orthogonalize(x, torch.float32)
    torch.testing.assert_close(wide.double(), exact, rtol=0, atol=1e-3)
    assert wide[1, :4].abs().max() == 0


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_a_step_moves_a_matrix_equally_in_all_directions(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    before = weight.detach().clone()
    optimizer = MuonAdamW([muon_group(weight)], torch.float32)
    weight.grad = torch.randn(shape)
    optimizer.step()
    moved = torch.linalg.svdvals(before - weight.detach())
    expected = 0.1 * math.sqrt(shape[0] / shape[1])
    assert (moved / expected).min() > 0.8
    assert (moved / expected).max() < 1.2
    assert ((before - weight.detach()) * weight.grad).sum() > 0  # downhill


def test_batched_matrices_move_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(8, 8), (8, 24), (24, 8), (8, 24), (8, 8), (8, 24)]

    def trained(batch: int) -> list[Tensor]:
        monkeypatch.setattr(muon, "BATCH_ELEMENTS", batch)
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = MuonAdamW([muon_group(*weights)], torch.float32)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape)
            optimizer.step()
        return [weight.detach() for weight in weights]

    for together, alone in zip(trained(2**25), trained(1), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_momentum_decay_and_nesterov() -> None:
    weight = nn.Parameter(torch.eye(4))
    optimizer = MuonAdamW([muon_group(weight, weight_decay=0.5)], torch.float32)
    first, second = (
        torch.diag(torch.tensor([1.0, 1, 1, 1])),
        torch.diag(torch.tensor([-0.5, 1, 1, 1])),
    )
    weight.grad = first
    optimizer.step()
    after_one = weight.detach().clone()
    torch.testing.assert_close(
        after_one.diagonal(), torch.full((4,), 0.95 - 0.1), atol=0.02, rtol=0
    )
    weight.grad = second
    optimizer.step()
    buffer = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, 0.9 * 0.1 * first + 0.1 * second)
    # The buffer still points forward in the first direction (0.04), 0.1 x gradient + 0.9 x buffer
    # back (-0.014).
    assert weight[0, 0] > 0.95 * after_one[0, 0]
    assert weight[1, 1] < 0.95 * after_one[1, 1]


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.empty(5, 3))
    theirs.data.copy_(ours.data)
    mine = MuonAdamW([adam_group(ours)], torch.float32)
    torchs = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    for _ in range(5):
        ours.grad = torch.randn(5, 3)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    assert torch.equal(ours, theirs)


def test_a_parameter_without_gradient_stays_and_keeps_its_momentum() -> None:
    weight, vector = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    optimizer = MuonAdamW([muon_group(weight, weight_decay=0.5), adam_group(vector)], torch.float32)
    optimizer.step()
    assert torch.equal(weight, torch.ones(4, 4))
    assert torch.equal(vector, torch.ones(4))
    assert not optimizer.state


@pytest.mark.parametrize("tie", [True, False])
def test_hidden_matrices_go_to_muon_and_everything_else_to_adamw(tie: bool) -> None:
    net = GPT(GPTConfig(**{**SMALL.to_dict(), "tie_embeddings": tie}))
    kinds = {
        id(p): group["kind"]
        for group in build_optimizer(net, CONFIG).param_groups
        for p in group["params"]
    }
    grouped = [p for group in parameter_groups(net, CONFIG) for p in group["params"]]
    assert len(grouped) == len(kinds) == len([*net.parameters()])
    groups = parameter_groups(net, replace(CONFIG, weight_decay=0.1, adam_weight_decay=0.2))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        hidden, norm = name.endswith("_proj.weight"), name.endswith("norm.weight")
        assert kinds[id(parameter)] == ("muon" if hidden else "adamw"), name
        assert decay[id(parameter)] == (0.1 if hidden else 0.0 if norm else 0.2), name


def test_a_closure_is_called_with_gradients_on() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = MuonAdamW([muon_group(weight)], torch.float32)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(2))], "kind": "muon"}, "only hold matrices"),
        ({"params": [nn.Parameter(torch.ones(2))], "kind": "sgd"}, "'sgd'"),
        ({"params": [nn.Parameter(torch.ones(2))]}, "None"),
    ],
)
def test_wrong_groups(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MuonAdamW([group], torch.float32)


def test_a_negative_decay_of_tables_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer.adam_weight_decay=-1.0"):
        replace(CONFIG, adam_weight_decay=-1.0)
