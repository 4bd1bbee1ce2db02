"""The benchmarks of speed measure what they say; and nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import throughput

    monkeypatch.setattr(throughput, "PEERS", tmp_path)
    return throughput


def test_the_settings_are_told_without_importing_torch() -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'lightning', 'numpy', 'pyarrow', 'tokenizers', 'tensorboard'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & set(sys.modules))))\n"
        "sys.argv = ['train', '--cfg', 'job']\n"
        "from azllm_lightning.train import main; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert "max_steps: 600" in told.stdout
    assert told.stdout.endswith("imported: []\n")


def test_steps_do_not_wait_for_the_disk_and_yet_all_is_written(
    train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    from azllm_lightning.runs.curves import read_scalars

    steps, written, write = 40, [], TensorBoardLogger.save

    def save(logger: TensorBoardLogger) -> None:
        written.append(logger)
        write(logger)

    monkeypatch.setattr(TensorBoardLogger, "save", save)
    never = (
        f"trainer.val_every_steps={steps} trainer.checkpoint_every_steps={steps} data.val_windows=4"
    )
    folder = train_tiny(f"trainer.max_steps={steps}", *never.split())
    assert len(read_scalars(folder)["train_loss"]) == steps
    assert len(written) < steps / 2


def test_a_rate_is_of_the_steps_after_the_warm_up(throughput: ModuleType) -> None:
    shape = throughput.SHAPE  # 8 x 256 tokens a step
    ends = [0.0, 60.0, 61.0, 62.0, 63.0, 64.0, 64.5, 65.0, 66.0]
    assert throughput.WARM_UP == 5
    assert throughput.tokens_per_second(ends, shape) == pytest.approx(3 * 2048 / 2.0)


def test_ratios_are_taken_within_a_round(throughput: ModuleType) -> None:
    rates = {
        "ours": [100.0, 300.0, 90.0],
        "hf": [50.0, 100.0, 45.0],
    }  # a machine three times as fast in round 2
    shares = {"ours": [0.5, 0.6, 0.7], "hf": [0.1, 0.2, 0.3]}
    ours, hf = throughput.table(rates, shares).splitlines()[2:]
    assert ours == "| ours | 100 (90 to 300) | 0.60 (0.50 to 0.70) |  |"
    assert hf == "| hf | 50 (45 to 100) | 0.20 (0.10 to 0.30) | 2.00 (2.00 to 3.00) |"


def test_all_train_the_same_number_of_weights(throughput: ModuleType) -> None:
    from gpt2 import GPT2, GPT2Config

    shape = throughput.SHAPE
    ours = throughput.GPTConfig(
        shape.vocab_size,
        shape.block_size,
        shape.n_layer,
        shape.n_head,
        shape.n_embd,
        tie_embeddings=True,
    )
    theirs = GPT2(
        GPT2Config(shape.vocab_size, shape.block_size, shape.n_layer, shape.n_head, shape.n_embd)
    )
    assert ours.num_params() == pytest.approx(theirs.num_params(), rel=0.01)


def test_the_real_command_and_a_loop_by_hand_are_timed(throughput: ModuleType) -> None:
    report = throughput.race(["ours", "gpt2_loop"], rounds=1, steps=12, tiny=True)
    assert set(report["tokens_per_sec"]) == {"ours", "gpt2_loop"}
    assert all(rate > 0 for (rate,) in report["tokens_per_sec"].values())
    parameters = {name: told["parameters"] for name, told in report["told"].items()}
    assert parameters["ours"] == pytest.approx(
        parameters["gpt2_loop"], rel=0.2
    )  # positions count at this size


def test_the_overhead_is_measured_in_turn_within_one_run(throughput: ModuleType) -> None:
    (measured,) = throughput.overhead(["nano"], tiny=True)["overhead"].values()
    assert len(measured["ms"]) == 3  # of four segments, the first is for warming up
    for ours, more, ratio in zip(
        measured["ms"], measured["more_ms"], measured["ratio"], strict=True
    ):
        assert ours > 0
        assert ratio == pytest.approx((ours - more) / ours)
