"""The peers are what they are said to be, and the benchmark for GPUs runs, as far as a CPU can tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from azllm_lightning.cli.entrance import compose

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def small(**changes: Any) -> Any:
    from gpt2 import GPT2Config

    return GPT2Config(
        **{"vocab_size": 120, "block_size": 24, "n_layer": 3, "n_head": 2, "n_embd": 32, **changes}
    )


def test_the_peer_is_gpt2_weight_for_weight() -> None:
    from gpt2 import GPT2
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "n_positions": 24, "n_layer": 3, "n_head": 2, "n_embd": 32}
    reference = GPT2LMHeadModel(GPT2Config(**sizes, activation_function="gelu")).eval()
    with torch.no_grad():
        for (
            parameter
        ) in reference.parameters():  # biases and gains too, which start at zero and one
            parameter.add_(0.1 * torch.randn_like(parameter))
    # transformers keeps linear layers as Conv1D: transposed.
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {
        name: t.T if name.endswith(turned) else t for name, t in reference.state_dict().items()
    }
    peer = GPT2(small(dropout=0.5)).eval()
    peer.load_state_dict(weights)
    input_ids = torch.randint(120, (2, 24))
    torch.testing.assert_close(peer(input_ids), reference(input_ids).logits, rtol=1e-4, atol=1e-5)
    labels = torch.roll(input_ids, -1, dims=1)
    logits = peer(input_ids)
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 120), labels.reshape(-1))
    torch.testing.assert_close(peer(input_ids, labels), expected)
    peer.train()
    assert not torch.equal(peer(input_ids), peer(input_ids)), "dropout does nothing"


def test_the_peer_starts_and_decays_as_nanogpt_does() -> None:
    from gpt2 import GPT2, configure_adamw

    torch.manual_seed(0)
    peer = GPT2(small(n_embd=128, n_layer=8))
    for name, parameter in peer.named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02  # sqrt(2 x 8) = 4
            assert abs(float(parameter.detach().std()) / expected - 1) < 0.05, name
        else:
            assert torch.all(parameter == (0 if name.endswith("bias") else 1)), name
    assert peer.num_params() == 120 * 128 + 24 * 128 + 8 * (12 * 128**2 + 13 * 128) + 2 * 128
    decayed, free = configure_adamw(peer, lr=1e-3).param_groups
    assert (decayed["weight_decay"], free["weight_decay"], decayed["betas"]) == (
        0.1,
        0.0,
        (0.9, 0.95),
    )
    assert all(p.ndim == 2 for p in decayed["params"])
    assert sum(p.numel() for group in (decayed, free) for p in group["params"]) == peer.num_params()
    assert not [
        name for name, _ in GPT2(small(bias=False)).named_parameters() if name.endswith("bias")
    ]


def test_gpu_benchmark_runs_on_the_cpu_at_tiny_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    monkeypatch.chdir(tmp_path)
    out = tmp_path / "gpu.json"
    checkout = (
        tmp_path / "checkout"
    )  # with the interface of nanoGPT's model.py, which wants contiguous labels
    checkout.mkdir()
    (checkout / "model.py").write_text(
        "from gpt2 import GPT2, GPT2Config as GPTConfig\n\n\nclass GPT(GPT2):\n"
        "    def forward(self, idx, targets):\n        return None, super().forward(idx, targets.view(idx.shape))\n",
        encoding="utf-8",
    )
    # One call after the other: each adds to the file.
    for part in (["t4"], ["bf16", "--nanogpt", str(checkout)], ["long"]):
        monkeypatch.setattr(
            sys, "argv", ["gpu.py", "--tiny", "--rounds", "1", "--out", str(out), "--part", *part]
        )
        gpu.main()
    results = json.loads(out.read_text(encoding="utf-8"))
    ours, peer, exact = (results["t4"][side][0] for side in ("ours", "nanogpt", "fp32"))
    assert (ours["precision"], exact["precision"]) == ("16-mixed", "32-true")
    assert ours["val_loss"] != exact["val_loss"]
    assert abs(ours["val_loss"] - exact["val_loss"]) < 0.01
    tokens = 2 * 16 * compose(["+experiment=t4"])["trainer"]["accumulate_grad_batches"]
    assert ours["tokens_per_step"] == peer["tokens_per_step"] == exact["tokens_per_step"] == tokens
    assert len(ours["step_seconds"]) == len(peer["step_seconds"]) == 6
    assert ours["non_finite_losses"] == 0
    assert ours["save_seconds"] > 0
    assert abs(peer["train_loss"] - ours["train_loss"]) < 0.5  # both near ln 300
    assert results["bf16"]["peer"] == "nanoGPT's model.py"
    assert (
        abs(results["bf16"]["nanogpt"][0]["train_loss"] - results["bf16"]["ours"][0]["train_loss"])
        < 0.5
    )
    assert results["long"]["ours"][0]["steps"] == 8
    table = capsys.readouterr().out
    for figure in (
        "tokens/s, as a ratio",
        "MFU",
        "peak memory, GiB",
        "val_loss at step 6",
        "a save every 500 steps",
    ):
        assert f"| t4 | {figure} |" in table
    assert "| long | steps with a non-finite loss | 0 of 8 |  | 0 | yes |" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "gpu.json"]


def test_gpu_benchmark_judges_figures_by_the_bars() -> None:
    import gpu

    def figures(rate: float, **more: Any) -> dict[str, Any]:
        timing = {
            "step_seconds": [9.0, *[1000 / rate] * 9],
            "tokens_per_step": 1000,
            "flops_per_token": 100,
        }
        return {
            **timing,
            "peak_memory_bytes": 3 * 2**30,
            "peak_flops": 1e9,
            "skipped_steps": 2,
            **more,
        }

    def kept(part: str, **changes: Any) -> dict[str, str]:
        good = {
            "val_loss": 4.0,
            "non_finite_losses": 0,
            "steps": 200,
            "precision": "16-mixed",
            "save_seconds": 0.4,
        }
        ours = figures(**{"rate": 5_000_000, **good, **changes})
        result = {
            "ours": [ours, ours],
            "nanogpt": [figures(4_000_000)] * 2,
            "fp32": [{**ours, "val_loss": 4.0}],
        }
        return {row[0]: row[4] for row in gpu.rows(part, result) if row[4]}

    assert set(kept("t4", save_seconds=1e-4).values()) == {"yes"}
    assert set(kept("bf16", save_seconds=1e-4).values()) == {"yes"}  # MFU 0.5
    assert kept("bf16", rate=4_400_001)["MFU"] == "NO"
    assert kept("t4", rate=4_390_000)["tokens/s, as a ratio"] == "NO"
    assert kept("t4", rate=4_410_000)["tokens/s, as a ratio"] == "yes"
    assert kept("laptop_4gb", peak_memory_bytes=3.4 * 2**30)["peak memory, GiB"] == "yes"
    assert kept("laptop_4gb", peak_memory_bytes=3.6 * 2**30)["peak memory, GiB"] == "NO"
    assert kept("t4", peak_memory_bytes=13.1 * 2**30)["peak memory, GiB"] == "NO"
    assert kept("t4", val_loss=4.05)["val_loss at step 200"] == "NO"
    assert kept("t4", non_finite_losses=1)["steps with a non-finite loss"] == "NO"
    assert (
        kept("t4", save_seconds=0.9e-3)["a save every 500 steps"] == "yes"
    )  # 500 steps take 0.1 s
    assert kept("t4", save_seconds=1.1e-3)["a save every 500 steps"] == "NO"


def test_synthetic_text_is_half_zipf_and_half_fixed_successors(tmp_path: Path) -> None:
    from synthetic import synthetic_data

    from azllm_lightning.data.shards import TokenShards
    from azllm_lightning.data.tokenizer import Tokenizer

    synthetic_data(tmp_path / "data", vocab_size=1000, num_documents=200)
    tokenizer = Tokenizer.from_file(tmp_path / "data")
    shards = TokenShards.open(tmp_path / "data", "train", tokenizer)
    documents = shards.read(0, len(shards)).reshape(200, 512).astype(int)
    assert tokenizer.vocab_size == 1000
    assert (documents[:, -1] == tokenizer.eot_id).all()
    assert (documents[:, :-1] != tokenizer.eot_id).all()
    assert documents.max() <= 999
    after = documents[:, 1:-1][documents[:, :-2] == 1]  # what follows the commonest token
    most = (after == torch.tensor(after).mode().values.item()).mean()
    assert 0.45 < most < 0.6
    assert 0.15 < (documents[:, 0] <= 10).mean() < 0.35  # a quarter, by the law


@pytest.mark.parametrize(("name", "card"), [("t4", "t4"), ("laptop_4gb", "gtx1650")])
def test_roofline_counts_the_operations_that_the_model_counts(name: str, card: str) -> None:
    import roofline

    e = roofline.experiment(name)
    work = {w.kind: w for w in roofline.step_work(e)}
    products = work["products of the layers"].flops + work["head and loss"].flops
    attention = 12 * e.model.n_layer * e.model.n_embd * e.model.block_size
    assert products == pytest.approx(
        e.tokens * (e.model.flops_per_token() - attention), rel=1e-3
    )  # but for the norms
    assert work["attention"].flops == pytest.approx(7 / 12 * e.tokens * attention)
    seconds = roofline.step_seconds(roofline.CARDS[card], list(work.values()))
    told = roofline.report(e, roofline.CARDS[card])
    assert "computed, not measured" in told
    assert f"| at the roof | {e.tokens / sum(seconds):,.0f} |" in told


def test_roofline_counts_the_memory_that_autograd_keeps() -> None:
    import roofline

    from azllm_lightning.model.loss import _chunk_size

    e = roofline.experiment("t4")
    model = e.model
    least = 18 * model.n_embd + 4 * (
        model.intermediate_size or 0
    )  # 8 C of the stream, 10 C and 4 F inside, a token
    kept = roofline.saved_bytes(model)
    assert 2 * least < kept < 4 * least
    assert roofline.saved_bytes(replace(model, n_layer=3, vocab_size=99)) == kept
    assert _chunk_size(torch.empty(1, device="meta")) == roofline.CHUNK
    parts = {what: (compiled, eager) for what, compiled, eager in roofline.memory(e)}
    compiled, eager = parts["activations of 12 x 512 tokens"]
    assert compiled == 12 * 12 * 512 * least
    assert eager == 12 * 12 * 512 * kept
    assert parts["weights, fp32"][0] == 4 * model.num_params()


def test_what_saving_takes_of_a_run(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "save_time.py"), "run", "+experiment=debug"]
    done = subprocess.run(
        command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("saving took"))
    saving, whole = (float(part) for part in re.findall(r"([0-9.]+) s", line))
    assert 0 < saving < whole
