"""Muon's matrices shared out over processes: every process ends with the same weights, those of one
process alone, having orthogonalized only its share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from training_runs import quick_start_method

from azllm_lightning.training import muon
from azllm_lightning.training.affixes import Affixes
from azllm_lightning.training.muon import (
    MuonAdamW,
    batches,
    orthogonalization_flops,
    orthogonalize,
    shared_out,
)

pytestmark = pytest.mark.numerics

PROCESSES = 3
TOKENS = ["kitab", "kitabı", " kitab", "kitablar", " evlər", "evdə", ".", "1", "12"]
STEPS = 5
SKIPPED = 2
"""The step in which no parameter has a gradient."""
SHAPES = [(16, 16), (16, 40), (40, 16), (16, 16), (8, 16), (40, 16), (16, 40), (16, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def trained(dtype: torch.dtype, group: dist.ProcessGroup | None) -> dict[str, Any]:
    """Weights and state after STEPS steps with gradients that depend on the step alone, and how
    many matrices were orthogonalized here.
    """
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    table = nn.Parameter(torch.randn(len(TOKENS), 16, generator=generator))
    muon_group = {"kind": "muon", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    adam_group = {"kind": "adamw", "lr": 0.1, "weight_decay": 0, "betas": (0.9, 0.95), "eps": 1e-8}
    table_group = {"params": [table], **adam_group, "affix_rate": 0.5}
    optimizer = MuonAdamW(
        [{"params": matrices, **muon_group}, table_group], dtype, group, Affixes(TOKENS)
    )
    counts: list[int] = []

    def counted(x: Tensor, dtype: torch.dtype) -> Tensor:
        counts.append(len(x))
        return orthogonalize(x, dtype)

    muon.orthogonalize = counted
    for step in range(STEPS):
        generator.manual_seed(step)
        for parameter in (*matrices, table):
            gradient = 1e-4 * torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if step == SKIPPED else gradient
        if step == SKIPPED + 1:
            matrices[1].grad = None
        optimizer.step()
    muon.orthogonalize = orthogonalize
    weights = [p.detach() for p in (*matrices, table)]
    return {"weights": weights, "state": optimizer.state_dict(), "counts": sum(counts)}


def work(rank: int, folder: str) -> None:
    """What one of PROCESSES does: trains among all of them, and among the first two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    pair = dist.new_group([0, 1])
    for dtype in DTYPES:
        everybody = trained(dtype, dist.group.WORLD)
        torch.save(everybody, f"{folder}/{dtype}-{PROCESSES}-{rank}.pt")
        if rank < 2:
            torch.save(trained(dtype, pair), f"{folder}/{dtype}-2-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the processes found: <dtype>-<processes>-<rank>.pt."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.start_processes(
        work, (str(folder),), nprocs=PROCESSES, start_method=quick_start_method()
    )
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("processes", [2, PROCESSES])
def test_all_processes_get_what_one_alone_gets(
    results: Path, processes: int, dtype: torch.dtype
) -> None:
    alone = trained(dtype, None)
    shared = [torch.load(results / f"{dtype}-{processes}-{r}.pt") for r in range(processes)]
    for theirs in shared:
        for first, other, single in zip(
            shared[0]["weights"], theirs["weights"], alone["weights"], strict=True
        ):
            assert torch.equal(first, other)  # bit for bit, or the processes would drift apart
            # Half precision rounds otherwise in another batch of matrices.
            error = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(other, single, atol=error, rtol=0)
        assert "affix_exp_avg" in theirs["state"]["state"][len(SHAPES)]
        # What a checkpoint stores does not depend on the number of processes.
        assert theirs["state"]["param_groups"] == alone["state"]["param_groups"]
        for index, state in alone["state"]["state"].items():
            for name, value in state.items():
                assert torch.equal(theirs["state"]["state"][index][name], value)
    counts = [theirs["counts"] for theirs in shared]
    assert sum(counts) == alone["counts"] == len(SHAPES) * (STEPS - 1) - 1
    assert max(counts) < alone["counts"]
    assert min(counts) > 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 50])
def test_shares_are_complete_and_balanced(ranks: int) -> None:
    shapes = [s for _ in range(12) for s in (*[(768, 768)] * 4, *[(2048, 768)] * 2, (768, 2048))]
    shares = shared_out(shapes, ranks)
    assert sorted(index for share in shares for index in share) == list(range(len(shapes)))
    loads = [sum(orthogonalization_flops(shapes[i]) for i in share) for share in shares]
    assert max(loads) <= sum(loads) / ranks + max(map(orthogonalization_flops, shapes))
    if ranks <= 8:
        assert max(loads) < 1.05 * sum(loads) / ranks


def test_a_batch_has_matrices_of_one_shape_and_a_limited_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", 2 * 16 * 40)
    found = batches(SHAPES, [0, 1, 2, 3, 5, 7])
    assert sorted(index for batch in found for index in batch) == [0, 1, 2, 3, 5, 7]
    assert found == [[0, 3, 7], [1], [2, 5]]
