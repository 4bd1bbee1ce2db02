"""The computed costs of Muon with several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from azllm_lightning.config.model import GPTConfig


def test_shared_out_muon_costs_the_same_part_of_a_step_on_any_number_of_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import shared_muon

    model = GPTConfig(vocab_size=32_000, block_size=512, n_layer=12, n_head=12, n_embd=768)
    machine = shared_muon.Machine("no delay", flops=1e12, link=1e30)
    costs = {gpus: shared_muon.cost(model, 24_576, gpus, machine) for gpus in (1, 2, 8)}
    one = costs[1]
    assert one.received == 0
    assert one.alone == one.shared
    for gpus, found in costs.items():
        assert found.alone / found.passes == pytest.approx(gpus * one.alone / one.passes)
        assert found.shared / found.passes == pytest.approx(one.shared / one.passes, rel=0.05)
    weights = sum(rows * columns for rows, columns in shared_muon.matrices(model))
    assert costs[8].received == 2 * weights * 7 // 8
