"""The speed benchmarks measure what they print; nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_folder: Path) -> ModuleType:
    import throughput

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "PEERS", tmp_path)
    return throughput


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bf16 arithmetic."""
    import machine

    monkeypatch.setattr(machine, "fast_half", lambda device: torch.float32)


def test_settings_are_printed_without_importing_torch() -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'lightning', 'numpy', 'pyarrow', 'tokenizers', 'tensorboard'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & set(sys.modules))))\n"
        "sys.argv = ['train', '--cfg', 'job']\n"
        "from azllm_lightning.train import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert "max_steps: 360" in done.stdout
    assert done.stdout.endswith("imported: []\n")


def test_steps_do_not_wait_for_the_disk_and_every_point_is_written(
    train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    from azllm_lightning.runs.curves import read_scalars

    steps = 40
    saves = []
    save = TensorBoardLogger.save

    def counted(logger: TensorBoardLogger) -> None:
        saves.append(logger)
        save(logger)

    monkeypatch.setattr(TensorBoardLogger, "save", counted)
    never = f"val_every_steps={steps} checkpoint_every_steps={steps} max_steps={steps}"
    folder = train_tiny("data.val_windows=4", *(f"trainer.{pair}" for pair in never.split()))
    assert len(read_scalars(folder)["train_loss"]) == steps
    assert len(saves) < steps / 2


# --- the number type -----------------------------------------------------------------------------


def test_the_header_names_the_kind_of_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import machine

    about = machine.describe("fp32, the same for all")
    assert about["type"] == "fp32, the same for all"
    assert about["kind"].startswith(torch.backends.cpu.get_cpu_capability())
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        monkeypatch.setattr(machine, "fast_half", lambda device, dtype=dtype: dtype)
        assert machine.fast_type() == name
        assert ("no bf16 arithmetic" in machine.cpu_kind()) == (name == "fp32")


@pytest.mark.usefixtures("no_bf16")
def test_bf16_is_not_timed_on_a_cpu_without_it(
    throughput: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes: list[Any] = []

    def race(names: list[str], rounds: int, shape: Any, separate: bool) -> dict[str, Any]:
        shapes.append(shape)
        return {}

    monkeypatch.setattr(throughput, "race", race)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "ours"])
    throughput.main()
    assert shapes[0].number_type == "fp32"
    assert "type    fp32, the same for all" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["throughput.py", "ours", "--type", "bf16"])
    with pytest.raises(SystemExit):
        throughput.main()
    assert "slow in bf16" in capsys.readouterr().err


def test_products_are_timed_in_the_type_of_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    import clock

    dtypes: list[torch.dtype] = []
    multiply = torch.Tensor.__matmul__

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        dtypes.append(a.dtype)
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    assert clock.matmul_flops([8], is_bf16=False) > 0
    assert clock.matmul_flops([8], is_bf16=True) > 0
    assert dtypes == [torch.float32] * 5 + [torch.bfloat16] * 5


def test_a_tool_that_trains_in_another_type_ends_the_race(
    throughput: ModuleType, tmp_path: Path
) -> None:
    shape = replace(throughput.SHAPE, out=str(tmp_path / "report.json"), number_type="bf16")
    Path(shape.out).write_text(json.dumps({"type": "fp32"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="hf trained in fp32 instead of bf16"):
        throughput.checked_report("hf", shape)


# --- throughput.py -------------------------------------------------------------------------------


def test_a_rate_counts_the_steps_after_the_warm_up(throughput: ModuleType) -> None:
    shape = throughput.SHAPE  # 8 x 256 tokens per step
    ends = [0.0, 60.0, 61.0, 62.0, 63.0, 64.0, 64.5, 65.0, 66.0]
    assert throughput.WARM_UP == 5
    assert throughput.tokens_per_second(ends, shape) == pytest.approx(3 * 2048 / 2.0)


def test_ratios_compare_turns_of_one_round(throughput: ModuleType) -> None:
    rates = {
        "ours": [100.0, 300.0, 90.0],
        "hf": [50.0, 100.0, 45.0],
    }  # a machine three times as fast in round 2
    shares = {"ours": [0.5, 0.6, 0.7], "hf": [0.1, 0.2, 0.3]}
    head, _, ours, hf = throughput.table(rates, shares, "fp32").splitlines()
    assert head == "| tool, in fp32 | tokens/s | share of fp32 products | our speed-up |"
    assert ours == "| ours | 100 (90 to 300) | 0.60 (0.50 to 0.70) |  |"
    assert hf == "| hf | 50 (45 to 100) | 0.20 (0.10 to 0.30) | 2.00 (2.00 to 3.00) |"


def test_all_train_about_the_same_number_of_weights(throughput: ModuleType) -> None:
    from gpt2 import GPT2, GPT2Config

    shape = throughput.SHAPE
    sizes = {
        key: getattr(shape, key)
        for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
    }
    ours = throughput.GPTConfig(**sizes, tie_embeddings=True)
    assert ours.num_params() == pytest.approx(GPT2(GPT2Config(**sizes)).num_params(), rel=0.01)


def check_race(throughput: ModuleType, separate: bool) -> None:
    shape = replace(throughput.SHAPE, steps=8, **throughput.TINY)
    report = throughput.race(["ours", "gpt2_loop"], 1, shape, separate)
    assert set(report["tokens_per_sec"]) == {"ours", "gpt2_loop"}
    assert all(rate > 0 for (rate,) in report["tokens_per_sec"].values())
    parameters = {name: details["parameters"] for name, details in report["details"].items()}
    # Positions count at this size.
    assert parameters["ours"] == pytest.approx(parameters["gpt2_loop"], rel=0.2)


@pytest.mark.thorough
def test_our_command_and_a_hand_written_loop_are_timed(throughput: ModuleType) -> None:
    check_race(throughput, separate=False)


@pytest.mark.slow
def test_each_turn_has_its_own_process(throughput: ModuleType) -> None:
    check_race(throughput, separate=True)


@pytest.mark.slow
def test_the_overhead_is_measured_in_turn_within_one_run(throughput: ModuleType) -> None:
    (measured,) = throughput.overhead(["nano"], "fp32", tiny=True)["overhead"].values()
    assert len(measured["ms"]) == 3  # of four segments, the first one warms up
    for ours, more, ratio in zip(
        measured["ms"], measured["more_ms"], measured["ratio"], strict=True
    ):
        assert ours > 0
        assert ratio == pytest.approx((ours - more) / ours)


# --- the other speed benchmarks ------------------------------------------------------------------


def test_start_up_ends_with_the_first_step_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import startup

    job = (
        "import os, pathlib, time\n"
        "run = pathlib.Path('lightning_logs/tales/version_' + str(len(os.listdir())))\n"
        "run.mkdir(parents=True)\n"
        "(run / 'events.0').write_bytes(b'val_loss')\n"
        "time.sleep(0.3)\n"
        "(run / 'events.0').write_bytes(b'val_loss train_loss')\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(startup, "TRAIN", [sys.executable, "-c", job])
    seconds = startup.first_step_seconds(tmp_path)
    assert seconds >= 0.3
    assert startup.first_step_seconds(tmp_path) >= 0.3  # not the first run's
    assert len(list(tmp_path.glob("lightning_logs/tales/*"))) == 2
    rows = startup.table({"cfg": [0.5, 0.25, 1.0], "fresh": [seconds]}).splitlines()
    assert rows[2] == "| cfg | 0.50 (0.25 to 1.00) | under 1.5 |"
    monkeypatch.setattr(startup, "TRAIN", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="exit code 3"):
        startup.first_step_seconds(tmp_path)


@pytest.mark.slow
def test_start_up_of_the_real_command(tmp_path: Path) -> None:
    import startup

    assert startup.settings_seconds() > 0
    assert startup.first_step_seconds(tmp_path, ["experiment=debug"]) > 0


def test_each_waiting_policy_reaches_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import omp_wait

    job = (
        "import json, os, pathlib\n"
        "run = pathlib.Path('lightning_logs/text/version_' + str(os.getpid()))\n"
        "run.mkdir(parents=True)\n"
        "assert 'OMP_NUM_THREADS' not in os.environ\n"
        "rate = {'PASSIVE': 7}.get(os.environ['OMP_WAIT_POLICY']) or os.environ['GOMP_SPINCOUNT']\n"
        "(run / 'summary.json').write_text(json.dumps({'tokens_per_sec': int(rate)}))"
    )
    monkeypatch.setattr(omp_wait, "TRAIN", [sys.executable, "-c", job])
    policies = ["passive", "spin_1000"]
    rates = omp_wait.measure(["tiny"], policies, rounds=2, steps=1)
    assert rates == {
        f"tiny, {load}": {"passive": [7.0] * 2, "spin_1000": [1000.0] * 2}
        for load in ("calm", "busy")
    }
    row = omp_wait.table(rates, policies).splitlines()[2]
    assert row == "| tiny, calm | 7 (7 to 7) | 1,000 (1,000 to 1,000) |"
    assert "round 2  tiny, busy, passive: 7 tokens/s" in capsys.readouterr().out


@pytest.mark.slow
def test_waiting_policies_with_the_real_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import omp_wait

    rates = omp_wait.measure(["tiny"], ["passive"], rounds=1, steps=4)
    assert all(rate > 0 for by_policy in rates.values() for rate in by_policy["passive"])


def test_generation_writes_the_same_text_three_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import generation

    monkeypatch.setattr(generation, "memory_bandwidth", lambda threads: 1.0)
    monkeypatch.setattr(sys, "argv", ["generation.py", "smoke", "--rounds", "1", "--tokens", "6"])
    generation.main()
    lines = capsys.readouterr().out.splitlines()
    assert "type    fp32, the same for all" in lines
    rows = [line.split() for line in lines if line.endswith("equal")]
    assert [row[0] for row in rows] == ["ours", "no_cache", "transformers"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:7])
    assert generation.agreement([1, 2, 3], [1, 2, 4]) == "DIFFERS from token 2"
