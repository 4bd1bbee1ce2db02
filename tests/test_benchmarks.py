"""What the benchmarks compare with is genuine, and each benchmark runs at a tiny size."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from azllm_lightning import compose
from azllm_lightning.data.pipeline import prepare, prepared_folder

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def small(**changes: Any) -> Any:
    from gpt2 import GPT2Config

    sizes = {"vocab_size": 120, "block_size": 24, "n_layer": 3, "n_head": 2, "n_embd": 32}
    return GPT2Config(**{**sizes, **changes})


def test_the_peer_is_gpt2_weight_for_weight() -> None:
    from gpt2 import GPT2
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "n_positions": 24, "n_layer": 3, "n_head": 2, "n_embd": 32}
    reference = GPT2LMHeadModel(GPT2Config(**sizes, activation_function="gelu")).eval()
    with torch.no_grad():
        # Biases and gains too, which start at zero and one.
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # transformers keeps linear layers as Conv1D: transposed.
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {
        name: t.T if name.endswith(transposed) else t for name, t in reference.state_dict().items()
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
    assert not torch.equal(peer(input_ids), peer(input_ids)), "dropout has no effect"


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


@pytest.fixture
def gpu_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """gpu_tiny(*args): run `gpu.py --tiny ARGS` on the CPU; returns what --out has then."""
    import gpu

    out = tmp_path / "gpu.json"
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> dict[str, Any]:
        command = ["gpu.py", "--tiny", "--rounds", "1", "--out", str(out), *args]
        monkeypatch.setattr(sys, "argv", command)
        gpu.main()
        results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return results

    return run


@pytest.mark.thorough
def test_gpu_benchmark_runs_on_the_cpu_at_tiny_size(
    gpu_tiny: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = gpu_tiny("--part", "laptop_4gb", "--only", "speed", "fp32")["laptop_4gb"]
    ours, peer, exact = (result[side][0] for side in ("ours", "nanogpt", "fp32"))
    assert (ours["precision"], peer["precision"], exact["precision"]) == (
        "16-mixed",
        "16-mixed",
        "32-true",
    )
    assert ours["val_loss"] != exact["val_loss"]
    assert abs(ours["val_loss"] - exact["val_loss"]) < 0.01
    assert ours["tokens_per_step"] == peer["tokens_per_step"] == 4 * 16
    assert len(ours["step_seconds"]) == len(peer["step_seconds"]) == 6
    assert ours["non_finite_losses"] == 0
    assert ours["save_seconds"] > 0
    assert abs(peer["train_loss"] - ours["train_loss"]) < 0.5  # both near ln 300
    table = capsys.readouterr().out
    for figure in (
        "tokens/s, as a ratio",
        "MFU",
        "peak memory, GiB",
        "val_loss at step 6",
        "a save every 500 steps",
    ):
        assert f"| laptop_4gb | {figure} |" in table
    assert "| laptop_4gb | number type | 16-mixed | 16-mixed |" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
    assert table.endswith((tmp_path / "gpu.md").read_text(encoding="utf-8"))
    assert "Not measured yet" not in table
    # What is there is not measured again.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu.measure", lambda *args: pytest.fail("measured again"))
        again = gpu_tiny("--part", "laptop_4gb", "--only", "speed", "fp32")
        assert again["laptop_4gb"] == result


def test_gpu_benchmark_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "gpu.py: PyTorch finds no GPU; --tiny runs the same code on a CPU\n"


def test_gpu_benchmark_stops_in_time_and_goes_on(
    gpu_tiny: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import gpu

    measured: list[tuple[str, str]] = []

    def measure(task: gpu.Task, *args: Any) -> dict[str, Any]:
        measured.append((task.part, task.side))
        if task.side == "fp32":
            raise RuntimeError("out of memory")
        return {"side": task.side}

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "rows", lambda part, result: iter([]))
    gpu_tiny("--minutes", "0")
    assert measured == []
    printed = capsys.readouterr().out
    assert "run the same command again): t4 ours, t4 nanogpt, bf16 ours, bf16 nanogpt" in printed
    results = gpu_tiny()
    assert sorted(measured) == sorted(
        {(part, side) for part in ("t4", "bf16", "laptop_4gb") for side in ("ours", "nanogpt")}
        | {(part, side) for part, side, _ in gpu.ONCE}
    )
    assert results["long"]["failures"] == {"fp32": "RuntimeError: out of memory"}
    assert "long, fp32: FAILED, RuntimeError: out of memory" in capsys.readouterr().out
    measured.clear()
    gpu_tiny()
    assert measured == [("long", "fp32"), ("laptop_4gb", "fp32")]


def test_attention_has_no_flash_kernel_where_a_t4_has_none() -> None:
    import gpu

    def enabled() -> tuple[bool, bool]:
        backends = torch.backends.cuda
        return backends.flash_sdp_enabled(), backends.cudnn_sdp_enabled()

    before = enabled()
    with gpu.attention_of("t4"):
        assert enabled() == (False, False)
    assert enabled() == before
    with gpu.attention_of("bf16"):
        assert enabled() == before


@pytest.mark.slow
def test_gpu_benchmark_adds_parts_and_takes_a_checkout_of_nanogpt(
    gpu_tiny: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = tmp_path / "checkout"  # with the interface of nanoGPT's model.py
    checkout.mkdir()
    (checkout / "model.py").write_text(
        "from gpt2 import GPT2, GPT2Config as GPTConfig\n\n\nclass GPT(GPT2):\n"
        "    def forward(self, idx, targets):\n"
        "        return None, super().forward(idx, targets.view(idx.shape))\n",
        encoding="utf-8",
    )
    gpu_tiny("--part", "bf16", "--only", "speed", "--nanogpt", str(checkout))
    results = gpu_tiny("--part", "long", "t4", "--only", "long", "deterministic", "check")
    assert results["bf16"]["peer"] == "nanoGPT's model.py"
    losses = [results["bf16"][side][0]["train_loss"] for side in ("ours", "nanogpt")]
    assert abs(losses[0] - losses[1]) < 0.5
    assert results["long"]["ours"][0]["steps"] == 20
    row = "| long | steps with a non-finite loss | 0 of 20 |  | 0 | yes |"
    printed = capsys.readouterr().out
    assert row in printed
    assert "| t4 | check: resume | exact |  | exact | yes |" in printed
    assert results["t4"]["deterministic"][0]["steps"] == 6


def test_gpu_benchmark_trains_the_parts_with_the_batch_of_their_experiments() -> None:
    import gpu

    batches = {}
    for part, overrides in gpu.PARTS.items():
        trainer = compose(overrides).trainer
        batches[part] = (trainer.global_batch_size, trainer.micro_batch_size)
    assert batches == {"t4": (48, 24), "laptop_4gb": (16, 4), "bf16": (64, 32), "long": (48, 24)}


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
            "precision": "16-mixed",
            "skipped_steps": 2,
            **more,
        }

    def kept(part: str, exact: bool = True, **changes: Any) -> dict[str, str]:
        good = {
            "val_losses": {"200": changes.pop("val_loss", 4.0)},
            "non_finite_losses": 0,
            "steps": 200,
            "save_seconds": 0.4,
        }
        ours = figures(**{"rate": 5_000_000, **good, **changes})
        result = {
            "ours": [ours, ours],
            "nanogpt": [figures(4_000_000)] * 2,
            "fp32": [{**ours, "val_losses": {"200": 4.0}}],
            "deterministic": [figures(4_800_000)],
            "check": [
                {
                    "resume": {"reason": None, "is_exact": exact, "first_difference": "step 3"},
                    "steps": {"reason": "no time", "status": "skipped"},
                }
            ],
        }
        return {row.figure: row.kept for row in gpu.rows(part, result) if row.kept}

    assert set(kept("t4", save_seconds=1e-4).values()) == {"yes"}
    assert set(kept("bf16", save_seconds=1e-4).values()) == {"yes"}  # MFU 0.5
    assert kept("bf16", rate=4_400_001)["MFU"] == "NO"
    assert kept("t4", rate=4_790_000)["tokens/s, as a ratio"] == "NO"
    assert kept("t4", rate=4_810_000)["tokens/s, as a ratio"] == "yes"
    assert kept("bf16", rate=5_100_000)["tokens/s with deterministic=true"] == "NO"
    assert kept("t4", exact=False)["check: resume"] == "NO"
    assert kept("laptop_4gb", peak_memory_bytes=3.4 * 2**30)["peak memory, GiB"] == "yes"
    assert kept("laptop_4gb", peak_memory_bytes=3.6 * 2**30)["peak memory, GiB"] == "NO"
    assert kept("t4", peak_memory_bytes=13.1 * 2**30)["peak memory, GiB"] == "NO"
    assert kept("t4", val_loss=4.05)["val_loss at step 200"] == "NO"
    assert kept("t4", non_finite_losses=1)["steps with a non-finite loss"] == "NO"
    # 500 steps take 0.1 s.
    assert kept("t4", save_seconds=0.9e-3)["a save every 500 steps"] == "yes"
    assert kept("t4", save_seconds=1.1e-3)["a save every 500 steps"] == "NO"


def test_synthetic_text_is_half_zipf_and_half_fixed_successors(tmp_path: Path) -> None:
    from azllm_lightning.data.shards import TokenShards
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.machine.random_text import random_text

    random_text(tmp_path / "data", 1000, num_documents=200)
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


@pytest.mark.thorough
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
    report = roofline.report(e, roofline.CARDS[card])
    assert "computed, not measured" in report
    assert f"| at the roof | {e.tokens / sum(seconds):,.0f} |" in report
    assert report in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_roofline_counts_the_memory_that_autograd_keeps() -> None:
    import roofline

    e = roofline.experiment("t4")
    model = replace(e.model, n_head=4, n_kv_head=4, n_embd=256, intermediate_size=None)
    # Per token, 8 C of the stream, and 10 C and 4 F inside.
    least = 18 * model.n_embd + 4 * model.intermediate_size
    kept = roofline.saved_bytes(model)
    assert 2 * least < kept < 4 * least
    assert roofline.saved_bytes(replace(model, n_layer=3, vocab_size=99)) == kept
    e = replace(e, model=model)
    parts = {what: (compiled, eager) for what, compiled, eager in roofline.memory(e)}
    compiled, eager = parts["activations of 24 x 512 tokens"]
    assert compiled == 12 * 24 * 512 * least
    assert eager == 12 * 24 * 512 * kept
    assert parts["weights, fp32"][0] == 4 * model.num_params()


def test_saving_is_compared_with_torch_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import save_time

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(save_time, "peak_memory", lambda method, gigabytes, folder: 1e9)
    monkeypatch.setattr(sys, "argv", ["save_time.py", "0.001", "1"])
    save_time.main()
    lines = capsys.readouterr().out.splitlines()
    assert "type    fp32" in lines
    seconds = {line.split()[0]: float(line.split()[1]) for line in lines if " s  (" in line}
    assert seconds.keys() == {"plain", "ours"}
    assert list(tmp_path.iterdir()) == []


def test_the_share_of_a_run_that_saving_takes(
    train_tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny("+callbacks.saving._target_=save_time.SavingShare")
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if line.startswith("saving took"))
    saving, complete = (float(part) for part in re.findall(r"([0-9.]+) s", line))
    assert 0 < saving < complete


@pytest.mark.slow
def test_saving_in_its_own_processes(tmp_path: Path) -> None:
    for args in (["0.001", "1"], ["run", "experiment=debug"]):
        command = [sys.executable, str(BENCHMARKS / "save_time.py"), *args]
        done = subprocess.run(
            command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert re.search(r"^(ratio|saving took) ", done.stdout, re.MULTILINE)


# --- loss per token ------------------------------------------------------------------------------


def test_the_peer_trains_on_the_windows_of_our_runs(tmp_path: Path) -> None:
    import peer_recipe

    from azllm_lightning.machine.random_text import random_text

    random_text(tmp_path / "data", 300, num_documents=8)
    sizes = "--batch 2 --block 16 --val-windows 4 --layers 1 --heads 1 --width 16 --no-compile"
    typed = f"{tmp_path / 'data'} --lr 1e-2 --steps 4 --val-every 2 --type fp32 {sizes}"
    result = peer_recipe.train(peer_recipe.arguments(typed.split()))
    assert list(result["val_loss"]) == [2, 4]
    assert result["val_loss"][4] < result["val_loss"][2] < 5.8  # ln 300 is 5.7
    assert result["machine"]["type"] == "fp32"
    assert result["tokens_per_sec"] > 0


def test_shares_of_the_peers_tokens_grow_until_its_loss_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import loss_per_token

    runs = []

    def train_ours(args: Any, data: Path, steps: int, seed: int) -> dict[str, Any]:
        runs.append((seed, steps))
        return {"val_loss": 4.6 - steps / 100, "seconds": 40.0}

    def train_peer(data: Path, lr: float, steps: int, seed: int) -> dict[str, Any]:
        return {"val_loss": 3.9 + abs(lr - 2e-3), "seconds": 100.0}

    monkeypatch.setattr(loss_per_token, "prepared", lambda args, folder: folder)
    monkeypatch.setattr(loss_per_token, "train_ours", train_ours)
    monkeypatch.setattr(loss_per_token, "train_peer", train_peer)
    command = ["loss_per_token.py", "text.jsonl", "--seeds", "2", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    loss_per_token.main()
    assert runs == [(seed, steps) for seed in (1234, 1) for steps in (28, 36, 52, 72)]
    output = capsys.readouterr().out
    assert "peer by learning rate: 0.0006: 3.9014, 0.001: 3.9010, 0.002: 3.9000" in output
    assert "ours with 0.13 of the tokens 4.0800 in 40 s (0.40)" in output
    assert "tokens: at most 0.18 of the peer's (bar 0.18)" in output
    assert "reached with 2 of 2 seeds" in output


def test_the_text_that_a_loss_stands_for_is_read_off_a_curve() -> None:
    from data_efficiency import text_for_loss

    curve = {1: 5.0, 4: 4.0, 8: 4.1, 16: 3.0}
    assert text_for_loss(curve, 4.5) == pytest.approx(2)  # half way from 1 to 4
    assert text_for_loss(curve, 4.0) == pytest.approx(4)
    assert text_for_loss(curve, 3.5) == pytest.approx(8)  # the loss at 8 MB is noise
    assert text_for_loss(curve, 5.2) == 1
    assert text_for_loss(curve, 2.9) is None


def test_parts_of_a_text_are_nested_and_without_validation_text(tmp_path: Path) -> None:
    from data_efficiency import write_parts

    texts = [f"sənəd {i} " * 100 for i in range(400)]
    lines = [json.dumps({"text": text, "source": str(i % 2)}) for i, text in enumerate(texts)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    *sizes, largest = write_parts(tmp_path / "text.jsonl", tmp_path, (0.05, 0.1, 14))

    def texts_of(name: str) -> set[str]:
        content = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")
        return {json.loads(line)["text"] for line in content.splitlines()}

    assert sizes == [0.05, 0.1]
    small, middle, everything = (texts_of(f"train_{mb:g}") for mb in (0.05, 0.1, largest))
    assert small < middle < everything
    for mb, part in ((0.05, small), (0.1, middle), (largest, everything)):
        assert sum(len(text.encode()) for text in part) == pytest.approx(mb * 1e6, abs=5000)
    val = texts_of("val")
    assert not val & everything
    assert val | everything == set(texts)
    assert len(val) / len(texts) == pytest.approx(0.05, abs=0.01)


def test_data_efficiency_is_measured_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import loss_per_token

    trained: list[tuple[Any, ...]] = []

    def little_text(args: Any, who: str, mb: float, passes: int, **more: Any) -> dict[str, Any]:
        trained.append((who, mb, passes, more.get("dropout")))
        # of the peer, 8 passes are best; without noise, twice the text lowers the loss by 0.5
        penalty = 0.5 * abs(passes.bit_length() - 4) + more.get("dropout", 0)
        loss = 5.0 - 0.5 * (math.log2(mb) + 4) + penalty if who == "peer" else 4.35
        return {"best": loss, "seconds": 1.0}

    monkeypatch.setattr(loss_per_token, "prepared", lambda args, folder, *changes: folder)
    monkeypatch.setattr(loss_per_token, "little_text", little_text)
    monkeypatch.setattr(loss_per_token, "write_parts", lambda text, folder, sizes: sizes)
    command = ["loss_per_token.py", "text.jsonl", "--part", "passes", "--work", str(tmp_path)]
    monkeypatch.setattr(
        sys, "argv", [*command, "--ours", "0.125", "--mb", *"0.0625 0.125 0.25 1".split()]
    )
    loss_per_token.main()
    assert trained[0] == ("ours", 0.125, 16, None)
    # 16 passes are worse, so 32 are not tried
    assert trained[1:4] == [("peer", 0.0625, count, 0.1) for count in (4, 8, 16)]
    assert {mb for _, mb, *_ in trained} == {0.0625, 0.125, 0.25}  # enough for 4.35
    lines = [line for line in capsys.readouterr().out.splitlines() if "efficiency" in line]
    assert lines == [
        "seed 1234: 4.3500 from 0.125 MB; the peer needs 0.18 MB: data efficiency 1.41 (bar 3)"
    ]
    # What is there is not trained again.
    trained.clear()
    loss_per_token.main()
    assert trained == []


@pytest.mark.slow
def test_data_efficiency_with_the_real_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import loss_per_token

    from azllm_lightning.azerbaijani.tales import write_tales

    lines = [json.dumps({"text": tale, "source": "tales"}) for tale in write_tales(60_000, 0)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, value in {"BATCH": 4, "BLOCK": 64, "VAL_WINDOWS": 4}.items():
        monkeypatch.setattr(loss_per_token, name, value)
    sizes = ["--passes", "1", "--lr", "1e-3", "--ours", "0.02", "--mb", "0.02"]
    command = ["loss_per_token.py", str(tmp_path / "text.jsonl"), "--part", "passes", *sizes]
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling would take most of the time
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path)])
    loss_per_token.main()
    assert re.search(r"seed 1234: \d\.\d{4} from 0\.02 MB; the peer", capsys.readouterr().out)
    results = (tmp_path / "passes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["who"] for line in results] == ["ours", "peer"]


@pytest.mark.slow
def test_loss_per_token_with_the_real_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import loss_per_token

    from azllm_lightning.azerbaijani.tales import write_tales

    lines = [json.dumps({"text": tale, "source": "tales"}) for tale in write_tales(60_000, 0)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, value in {"STEPS": {"budget": 4}, "BATCH": 2, "BLOCK": 16, "VAL_WINDOWS": 4}.items():
        monkeypatch.setattr(loss_per_token, name, value)
    args = [str(tmp_path / "text.jsonl"), "--lr", "1e-3", "--seeds", "1", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["loss_per_token.py", *args])
    loss_per_token.main()
    assert re.search(r"seed 1234: peer \d\.\d{4} in \d+ s; ours", capsys.readouterr().out)


# --- trials --------------------------------------------------------------------------------------

TRIAL = {"device": "cpu", "precision": "fp32", "layers": 1, "heads": 2, "width": 32}


@pytest.mark.thorough
def test_a_trial_without_changes_trains_as_the_package_does(
    tiny: list[str], uninterrupted: Callable[..., Any]
) -> None:
    from training_runs import curve
    from trial_run import run_trial

    package = curve(uninterrupted("init_embeddings=neighbors").folder)["val_loss"]
    data = {"data": prepared_folder(compose(tiny).data), "block": 32, "val_windows": 8}
    run = {"steps": 8, "batch": 4, "warmup": 2, "val_every": 4}
    found = run_trial({**TRIAL, **data, **run})["val"]
    assert [found[step] for step in ("4", "8")] == pytest.approx([package[4], package[8]], abs=1e-4)
    recorded = run_trial({**TRIAL, **data, **run, "graphs": True})["val"]
    assert recorded == pytest.approx(found, abs=1e-4)
    changes = {"counted": "windows"}, {"neighbor_scale": 0.1}, {"embeddings": "random"}
    others = {run_trial({**TRIAL, **data, **run, **change})["val"]["8"] for change in changes}
    assert len({*others, found["8"]}) == 4


@pytest.mark.thorough
def test_branches_of_a_trial_are_those_of_the_package(
    tiny: list[str], uninterrupted: Callable[..., Any]
) -> None:
    from training_runs import curve
    from trial_run import run_trial

    typed = ["init_embeddings=neighbors", "schedule.branches=2", "trainer.max_steps=12"]
    package = curve(uninterrupted(*typed).folder)["val_loss"]
    data = {"data": prepared_folder(compose(tiny).data), "block": 32, "val_windows": 8}
    run = {"steps": 12, "batch": 4, "warmup": 2, "val_every": 4, "branches": 2}
    expected = [package[4], package[8], package[12]]
    for graphs in (False, True):
        found = run_trial({**TRIAL, **data, **run, "graphs": graphs})["val"]
        assert [*found.values()] == pytest.approx(expected, abs=1e-4)


@pytest.mark.thorough
def test_a_student_of_a_trial_learns_as_one_of_the_package(
    tiny: list[str], train_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from training_runs import curve
    from trial_model import write_weights
    from trial_run import run_trial

    from azllm_lightning.formats.load import load

    teacher = train_tiny("run_name=teacher", "seed=3")
    share = {"teacher_share": 0.9, "teacher_temperature": 1.5}
    chosen = ["init_embeddings=neighbors", *(f"{key}={value}" for key, value in share.items())]
    package = curve(train_tiny("run_name=student", f"teachers={teacher}", *chosen))
    kept = {"keep_weights": str(tmp_path)}
    write_weights({**kept, "name": "teacher"}, load(teacher)[0])
    data = {"data": prepared_folder(compose(tiny).data), "block": 32, "val_windows": 8}
    run = {"steps": 8, "batch": 4, "warmup": 2, "val_every": 4, "name": "student"}
    found = run_trial({**TRIAL, **data, **run, **kept, **share, "teachers": ["teacher"]})["val"]
    losses = package["val_loss"]
    assert [found[step] for step in ("4", "8")] == pytest.approx([losses[4], losses[8]], abs=1e-4)
    assert (tmp_path / "student.pt").is_file()
    twice = {"teachers": ["teacher", "teacher"], "one_teacher": True, "name": "twice"}
    divided = run_trial({**TRIAL, **data, **run, **kept, **share, **twice})["val"]
    assert divided == pytest.approx(found, abs=1e-4)


def test_a_trial_of_the_peer_trains_as_the_peer_does(tmp_path: Path) -> None:
    import peer_recipe
    from trial_run import run_trial

    from azllm_lightning.machine.random_text import random_text

    data = tmp_path / "data"
    random_text(data, 300, num_documents=8)
    sizes = "--batch 2 --block 16 --val-windows 4 --layers 1 --heads 2 --width 32 --no-compile"
    typed = f"{data} --lr 1e-2 --steps 4 --val-every 2 --type fp32 {sizes}"
    expected = peer_recipe.train(peer_recipe.arguments(typed.split()))["val_loss"]
    run = {"kind": "peer", "lr": 1e-2, "steps": 4, "batch": 2, "block": 16, "val_windows": 4}
    for graphs in (False, True):
        settings = {**TRIAL, **run, "data": data, "val_every": 2, "graphs": graphs}
        found = run_trial(settings)["val"]
        assert [found["2"], found["4"]] == pytest.approx([expected[2], expected[4]], abs=2e-4)


def test_each_trial_of_the_list_has_settings_that_there_are() -> None:
    from trial_settings import DEFAULTS

    lines = (BENCHMARKS / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    trials = [json.loads(line) for line in lines]
    assert len({trial["name"] for trial in trials}) == len(trials)
    assert {key for trial in trials for key in trial} <= DEFAULTS.keys()
    names = [trial["name"] for trial in trials]
    for trial in trials:
        earlier = names[: names.index(trial["name"])]
        assert set(trial.get("teachers", ())) <= {*earlier}, trial["name"]


@pytest.mark.thorough
def test_a_student_waits_for_its_teachers() -> None:
    import trials

    listed = [
        {"name": "student", "teachers": ["first", "second"]},
        {"name": "first"},
        {"name": "second"},
        {"name": "another student", "teachers": ["of an earlier call"]},
    ]
    states = multiprocessing.Array("i", len(listed))
    later = time.time() + 60
    taken = [trials.take(listed, states, later) for _ in range(3)]
    assert taken == [1, 2, 3]
    states[1] = trials.ENDED
    assert trials.take(listed, states, time.time() + 0.6) is None
    states[2] = trials.ENDED
    assert trials.take(listed, states, later) == 0
    assert trials.take(listed, states, later) is None


# --- overfitting ---------------------------------------------------------------------------------


def test_recorded_runs_are_replayed_against_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import overfitting

    monkeypatch.setattr(overfitting, "PLENTY_BYTES", 20_000)
    monkeypatch.setattr(overfitting, "VAL_BYTES", 10_000)
    settings = replace(overfitting.draw("plenty", 0, natural=False), val_every_steps=1, max_steps=4)
    history = overfitting.train_one(settings, overfitting.Texts(None))
    assert [step for step, _, _ in history] == [0, 1, 2, 3, 4]
    runs = [
        {"cpu": cpu, "settings": asdict(settings), "history": history}
        for cpu in overfitting.CPU_KINDS
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, runs)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["overfitting.py", "judge", "--runs", str(path)])
    overfitting.main()
    lines = capsys.readouterr().out.splitlines()
    assert "type    fp32" in lines
    assert any(line.startswith("2 runs; the last val_loss differs") for line in lines)
    assert "| all | healthy | 2 | 0 | 0 | 0 |  |  |" in lines


def test_a_peer_can_be_saved_for_the_suite(tmp_path: Path) -> None:
    """transformers gives the logits of the peer, without biases too."""
    from gpt2 import GPT2, save_hf

    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.inference.scoring import load_hf

    tokenizer = Tokenizer.train(["Bir gün tülkü meşəyə getdi."] * 3, vocab_size=270)
    for bias in (True, False):
        torch.manual_seed(0)
        model = GPT2(small(vocab_size=tokenizer.vocab_size, bias=bias)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_hf(model, tokenizer, tmp_path / str(bias))
        peer, its_tokenizer = load_hf(tmp_path / str(bias))
        ids = its_tokenizer("Bir gün tülkü", add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode("Bir gün tülkü")
        assert its_tokenizer.bos_token_id == tokenizer.eot_id
        tokens = torch.tensor([ids])
        torch.testing.assert_close(peer(tokens).logits, model(tokens), rtol=1e-4, atol=1e-5)


def test_the_best_weights_of_the_peer_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peer_recipe

    from azllm_lightning.inference.scoring import load_hf
    from azllm_lightning.machine.random_text import random_text

    data, folder = tmp_path / "data", tmp_path / "peer"
    random_text(data, 300, num_documents=8)
    heads = []

    def validate(model: Any, data: Any, number_type: str) -> float:
        heads.append(model.lm_head.weight.detach().clone())
        return (2.0, 1.0, 3.0)[len(heads) - 1]

    monkeypatch.setattr(peer_recipe, "validate", validate)
    sizes = "--batch 2 --block 16 --val-windows 4 --layers 1 --heads 1 --width 16 --no-compile"
    typed = f"{data} --lr 1e-2 --steps 3 --val-every 1 --type fp32 --save {folder} {sizes}"
    peer_recipe.train(peer_recipe.arguments(typed.split()))
    saved, _ = load_hf(folder)
    assert torch.equal(saved.lm_head.weight, heads[1])
    assert not torch.equal(heads[1], heads[2])


def test_suites_are_joined_by_model() -> None:
    from suite import tables

    share = {"accuracy": 0.6, "low": 0.5, "high": 0.7, "pairs": 200}
    scores = {**share, "total": share, "per_byte": share, "word": None}
    figures = {"known_words": 0.9, "distinct_4": 0.8, "median_longest": 30, "recited": 0.1}
    one = {
        "commit": "abc",
        "data_fingerprint": "def",
        "text": {"text": "mətn", "all": {"val_bpb": 1.5, "tokens_per_word": 2.0}},
        "second_half": {"all": {"bits": 90.0, "low": 80.0, "high": 100.0}},
        "pairs": {
            "phenomena": {"negation": scores},
            "groups": {"grammar": scores, "spelling": scores},
        },
        "turkish": {"phenomena": {"turkish_words": {**scores, "accuracy": 0.9}}, "all": scores},
        "samples": {"figures": figures, "held_out": figures},
    }
    other = {
        **one,
        "text": {"text": "mətn", "all": {"val_bpb": 1.25, "tokens_per_word": 2.0}},
        "samples": None,  # it has no start token
    }
    text = tables({"ours": one, "peer": other})
    assert "| bits per byte | 1.5000 | 1.2500 |" in text
    assert "| Turkish words | 90.0% | 90.0% |" in text
    assert "| samples: recited text | 10.0% |  |" in text
    assert "Below 70% for ours:\n\n- heç, and nə ... nə də: 60.0%" in text
    assert text.startswith("Commit abc, data def, text mətn.")


def test_errors_in_pairs_are_described(tmp_path: Path) -> None:
    """A model that prefers a word of two, whatever is around it, is right in one of each couple."""
    import weak_pairs

    from azllm_lightning.azerbaijani.pairs import minimal_pairs
    from azllm_lightning.inference.pair_scores import SentenceLoss

    pairs = [pair for pair in minimal_pairs() if pair.phenomenon == "person_agreement"]
    liked = {max(pair.right_form, pair.wrong_form) for pair in pairs}
    text = "\n\n".join(f"{number}: {form}." for number, form in enumerate(sorted(liked)))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "val.txt").write_text("Bir gün tülkü meşəyə getdi, ayı da gəldi.", "utf-8")
    paths = [f"data.path={tmp_path / 'text.txt'}", f"data.val_path={tmp_path / 'val.txt'}"]
    sizes = ["data.vocab_size=300", "data.block_size=8"]
    folder = prepare(compose(["data=text", *paths, *sizes]).data)

    def loss(form: str, other: str) -> SentenceLoss:
        return SentenceLoss(*([1.0] * 3 if form > other else [2.0] * 3))

    scored = [
        weak_pairs.ScoredPair(
            pair,
            loss(pair.right_form, pair.wrong_form),
            loss(pair.wrong_form, pair.right_form),
        )
        for pair in pairs
    ]
    *_, line = weak_pairs.report(scored, folder).splitlines()
    cells = line.strip("| ").split(" | ")
    couples = ["0%", "100%", "0%", "0%", "0.00", "1.4"]  # a nat is 1.44 bits
    assert cells[:8] == ["subject and verb", "50.0%", *couples]
    assert cells[8:] == [cells[8], "100%", "50%"], "the liked forms are in the text, no others"


def test_consistent_plots_are_counted() -> None:
    from itertools import islice

    from consistent_plots import report

    from azllm_lightning.azerbaijani.tales import write_tales

    tales = list(islice(write_tales(100_000, 3), 9))
    lines = report([*tales, "Bakı böyük şəhərdir."]).splitlines()
    assert (
        "| consistent | 90.0% | 59.6% to 98.2% | one plot, to its end, with the same players |"
        in (lines)
    )
    assert lines[-1] == "> Bakı böyük şəhərdir."


def test_analysed_words_are_counted() -> None:
    from analysed_words import count_words, report

    counts = count_words(["Kitabları oxudum. İkinci, 5-ci və qwxz! Evdəki-evdəki"])
    assert counts == {
        "kitabları": 1,
        "oxudum": 1,
        "ikinci": 1,
        "və": 1,
        "qwxz": 1,
        "evdəki-evdəki": 1,
    }
    lines = report(counts, 5).splitlines()
    assert lines[2:4] == ["| tokens | 6 | 83.3% |", "| types | 6 | 83.3% |"]
    assert lines[-1] == "qwxz 1"
