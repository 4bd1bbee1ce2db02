"""What `auto` means on which machine; GPUs are imitated."""

from __future__ import annotations

import logging
import math
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from azllm_lightning.config.compose import compose
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import listed_gpus
from azllm_lightning.inference.device import TORCH
from azllm_lightning.session.resolve import gpu_index
from azllm_lightning.train import train
from azllm_lightning.training import hardware, measuring
from azllm_lightning.training.measuring import Products


def imitate(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    name: str = "a card",
    count: int = 1,
) -> None:
    """A machine with a GPU of that compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: name)
    built_for = "sm_{}{}".format(*capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [built_for])
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *args, **settings: True
    )  # a T4 says so too


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def cpu_with_bf16(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    flags = {"_is_avx512_bf16_supported": lambda: there, "_is_amx_tile_supported": lambda: False}
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**flags))


@pytest.mark.parametrize("asked", ["auto", "gpu", "cuda"])
def test_a_gpu_is_used_if_there_is_one(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, (7, 5))
    assert hardware.resolve_accelerator(asked) == "cuda"
    assert hardware.resolve_accelerator("cpu") == "cpu"


def test_a_missing_gpu_is_reported_with_the_way_out(no_gpu: None) -> None:
    assert hardware.resolve_accelerator("auto") == hardware.resolve_accelerator("cpu") == "cpu"
    for asked in ("gpu", "cuda"):
        with pytest.raises(
            ValueError,
            match=rf"trainer.accelerator={asked}, but .* no GPU.*trainer.accelerator=cpu",
        ):
            hardware.resolve_accelerator(asked)


CUDA_12_8 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 0), CUDA_12_8, False),
        ((6, 0), CUDA_12_6, True),
        ((6, 1), CUDA_12_6, True),
        ((7, 0), CUDA_12_8, False),
        ((7, 0), ["sm_75"], False),
        ((7, 5), CUDA_12_8, True),
        ((8, 9), CUDA_12_8, True),
        ((12, 0), CUDA_12_6, False),
        ((12, 0), [*CUDA_12_6, "compute_90"], True),
        ((6, 0), ["compute_90"], False),
        ((12, 1), CUDA_12_8, True),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], False),
    ],
)
def test_a_gpu_is_used_only_if_this_pytorch_has_kernels_for_it(
    capability: tuple[int, int],
    built_for: list[str],
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    major, minor = capability
    name = f"card {major}.{minor} of {len(built_for)}"  # a warning is given once
    imitate(monkeypatch, capability, name)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    assert hardware.resolve_accelerator("cpu") == "cpu"
    if runs:
        for asked in ("auto", "gpu", "cuda"):
            assert hardware.resolve_accelerator(asked) == "cuda"
        assert not caplog.records
        return
    assert hardware.resolve_accelerator("auto") == hardware.resolve_accelerator("auto") == "cpu"
    (record,) = caplog.records
    reason = rf"no kernels for {name} \(sm_{major}{minor}\).*{'cu126' if major < 10 else 'cu128'}$"
    assert re.search(f"the CPU is used: .*{reason}", record.getMessage())
    for asked in ("gpu", "cuda"):
        with pytest.raises(ValueError, match=f"trainer.accelerator={asked}, but .*{reason}"):
            hardware.resolve_accelerator(asked)


@pytest.mark.parametrize(
    ("devices", "runs"),
    [
        (1, True),
        ("0,", True),
        ("0,2", True),
        ("1,", False),
        (2, False),
        ("auto", False),
        (9, False),
    ],
)
def test_kernels_are_needed_for_the_gpus_of_the_run(
    devices: int | str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, (7, 5), count=3)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index=0: (6, 1) if index == 1 else (7, 5)
    )
    if runs:
        assert hardware.resolve_accelerator("gpu", devices) == "cuda"
        return
    with pytest.raises(ValueError, match=r"\(sm_61\)"):
        hardware.resolve_accelerator("gpu", devices)


def test_kernels_for_amd_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, (9, 4), "AMD Instinct MI300X")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx942"])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert hardware.resolve_accelerator("gpu") == "cuda"


@pytest.mark.parametrize(("cuda", "hip"), [(None, None), ("12.6", None), (None, "6.4")])
def test_a_pytorch_for_the_cpu_is_told_how_to_be_replaced(
    cuda: str | None, hip: str | None, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(ValueError) as error:
        hardware.resolve_accelerator("gpu")
    command = f'"{TORCH}" --index-url https://download.pytorch.org/whl/cu126'
    assert (command in str(error.value)) == (cuda is None and hip is None)


def measures(
    monkeypatch: pytest.MonkeyPatch, fp32: float, half: float, error: float = 0.0005
) -> list[torch.dtype]:
    """A device with these TFLOP/s; returns the list of types that are measured."""
    measured: list[torch.dtype] = []

    def products(device: str, dtype: torch.dtype) -> Products:
        measured.append(dtype)
        if dtype == torch.float32:
            return Products(fp32 * 1e12, 0.0)
        return Products(half * 1e12, error)

    monkeypatch.setattr(measuring, "measure_products", products)
    return measured


@pytest.mark.parametrize(
    ("card", "capability", "fp32", "fp16", "precision"),
    [
        ("NVIDIA GeForce GTX 1650", (7, 5), 2.9, 0.3, "32-true"),
        ("NVIDIA GeForce GTX 1650 Ti", (7, 5), 2.9, 5.4, "16-mixed"),
        ("NVIDIA GeForce GTX 1080", (6, 1), 8.0, 7.9, "32-true"),
        ("Tesla P100-PCIE-16GB", (6, 0), 8.7, 15.0, "16-mixed"),
        ("Tesla T4", (7, 5), 4.0, 24.0, "16-mixed"),
        ("NVIDIA GeForce RTX 2060", (7, 5), 6.0, 25.0, "16-mixed"),
    ],
)
def test_auto_precision_of_a_card_without_bf16_is_measured(
    card: str,
    capability: tuple[int, int],
    fp32: float,
    fp16: float,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imitate(monkeypatch, capability, card)
    measures(monkeypatch, fp32, fp16)
    assert hardware.resolve_precision("auto", "cuda") == precision
    for noise in (0.85, 1.15):  # a noisy measurement decides the same
        measures(monkeypatch, fp32, noise * fp16)
        assert hardware.resolve_precision("auto", "cuda") == precision


@pytest.mark.parametrize("error", [math.nan, math.inf, 0.5])
def test_wrong_products_are_not_used_however_fast(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, (7, 5), "NVIDIA GeForce GTX 1660")
    measures(monkeypatch, 3.0, 30.0, error)
    assert hardware.resolve_precision("auto", "cuda") == "32-true"


@pytest.mark.parametrize(
    ("card", "capability"),
    [
        ("NVIDIA A100-SXM4-40GB", (8, 0)),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9)),
        ("NVIDIA H200", (9, 0)),
    ],
)
def test_a_card_with_bf16_uses_it(
    card: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, capability, card)
    measured = measures(monkeypatch, 10.0, 5.0)
    assert hardware.resolve_precision("auto", "cuda") == "bf16-mixed"
    assert not measured
    assert hardware.resolve_precision("32-true", "cuda") == "32-true"


def test_bf16_on_a_t4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, (7, 5), "Tesla T4")
    with pytest.raises(ValueError, match=r"bf16-mixed: Tesla T4 \(sm_75\).*16-mixed"):
        hardware.resolve_precision("bf16-mixed", "cuda")


@pytest.mark.parametrize(
    ("there", "speedup", "precision"),
    [(True, 2.5, "bf16-mixed"), (True, 0.1, "32-true"), (False, 2.5, "32-true")],
)
def test_precision_on_a_cpu(
    there: bool,
    speedup: float,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpu_with_bf16(monkeypatch, there)
    measured = measures(monkeypatch, 0.1, 0.1 * speedup)
    monkeypatch.setattr(logging.getLogger("azllm_lightning"), "propagate", True)
    assert hardware.resolve_precision("auto", "cpu") == precision
    assert bool(measured) == there  # a product in bf16 takes minutes on a CPU without it
    assert hardware.resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert not caplog.records
    assert hardware.resolve_precision("16-mixed", "cpu") == precision
    assert precision in caplog.text


def test_products_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring.measure_products.cache_clear()
    full = measuring.measure_products("cpu", torch.float32)
    half = measuring.measure_products("cpu", torch.bfloat16)
    assert (full.error < 1e-6, full.flops > 1e6, half.flops > 1e6) == (True, True, True)
    assert 1e-4 < half.error < hardware.MAX_ERROR
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda self, other: torch.full((2, 2), math.nan)
    )
    assert measuring.measure_products("cpu", torch.float32) == full
    measuring.measure_products.cache_clear()
    assert math.isnan(measuring.measure_products("cpu", torch.float32).error)
    measuring.measure_products.cache_clear()


@pytest.mark.parametrize(
    ("precision", "there", "dtype"),
    [
        ("32-true", True, torch.float32),
        ("bf16-mixed", True, torch.bfloat16),
        ("bf16-mixed", False, torch.float32),
        ("16-mixed", False, torch.float16),
    ],
)
def test_muon_orthogonalizes_in_the_type_of_the_run(
    precision: str, there: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with_bf16(monkeypatch, there)
    assert hardware.muon_dtype(precision, torch.device("cpu")) == dtype
    imitate(monkeypatch, (9, 0))  # fp16 is more exact than bf16, and imitates a T4 there
    assert hardware.muon_dtype("16-mixed", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize(
    ("devices", "device", "number"),
    [
        (1, "cpu", 1),
        (2, "cpu", 2),
        ("2", "cuda", 2),
        ("0,1", "cuda", 2),
        ("3,", "cuda", 1),
        ("auto", "cuda", 4),
        ("auto", "cpu", 1),
    ],
)
def test_number_of_devices(
    devices: int | str, device: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, (7, 5), count=4)
    assert hardware.num_devices(devices, device) == number


@pytest.mark.parametrize(
    ("devices", "device", "message"),
    [
        ("0,1", "cpu", r"trainer\.devices=\[0,1\] lists GPUs, .* trainer\.devices=1"),
        ("0,0", "cpu", r"trainer\.devices=\[0,0\] lists GPUs"),
        ("1,1", "cuda", r"trainer\.devices=\[1,1\] lists a GPU twice"),
        ("2,", "cuda", r"trainer\.devices=\[2\], but PyTorch finds 2 GPUs; .* 0 to 1"),
        ("0,2", "cuda", r"trainer\.devices=\[0,2\], but PyTorch finds 2 GPUs; .* 0 to 1"),
        (3, "cuda", r"trainer\.devices=3, but PyTorch finds 2 GPUs; .*auto"),
        ("3", "cuda", r"trainer\.devices=3, but PyTorch finds 2 GPUs"),
    ],
)
def test_devices_that_are_not_there_are_reported(
    devices: int | str, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, (7, 5), count=2)
    with pytest.raises(ValueError, match=message):
        hardware.num_devices(devices, device)


@pytest.mark.parametrize(
    ("typed", "kept", "gpus"),
    [
        ("[0,1]", "0,1", [0, 1]),
        ("[1]", "1,", [1]),
        ("'1,'", "1,", [1]),
        ("'0,1'", "0,1", [0, 1]),
        ("2", 2, []),
        ("'2'", "2", []),
        ("auto", "auto", []),
    ],
)
def test_gpus_are_listed_as_lists_are_typed(
    typed: str, kept: int | str, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of one GPU is not that many GPUs."""
    config = compose([f"trainer.devices={typed}"])
    assert config.trainer.devices == kept
    assert listed_gpus(kept) == gpus
    assert replace(RunConfig.from_mapping(config.to_mapping()), overrides=()) == replace(
        config, overrides=()
    )
    imitate(monkeypatch, (7, 5), count=2)
    assert [gpu_index(config, rank) for rank in range(len(gpus))] == gpus


@pytest.mark.parametrize(
    "typed", ["[0,1]", "'0,0'", "-1", "'-1'", "'-1,0'", "0", "'0'", "[]", "[-1]", "[a]", "[0.5,1]"]
)
def test_wrong_devices_are_refused_before_anything_is_made(typed: str, tiny: list[str]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.devices="):
        train(compose([*tiny, f"trainer.devices={typed}"]))
    assert not Path("lightning_logs").exists()


def test_buffers_are_not_synced_and_torch_warns_of_nothing(tmp_path: Path) -> None:
    class Older:
        def __init__(self, module: Any, broadcast_buffers: bool = True) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.parallel, "DistributedDataParallel", Older)
        assert hardware.ddp_settings() == {"broadcast_buffers": False}
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net = torch.nn.parallel.DistributedDataParallel(
                torch.nn.BatchNorm1d(2), **hardware.ddp_settings()
            )
        assert not net.will_sync_module_buffers()
    finally:
        torch.distributed.destroy_process_group()


def test_a_strategy_that_divides_the_model_is_refused() -> None:
    """The gradient norm, which each process decides by, would be that of its part."""
    device = torch.device("cuda")
    ddp = DDPStrategy(parallel_devices=[device])
    other = SimpleNamespace(root_device=device)
    for strategy, processes in ((ddp, 2), (other, 1)):
        hardware.check_trainer(SimpleNamespace(strategy=strategy, world_size=processes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SimpleNamespace divides.*strategy='ddp'"):
        hardware.check_trainer(SimpleNamespace(strategy=other, world_size=2))  # type: ignore[arg-type]


def compiles(monkeypatch: pytest.MonkeyPatch, failure: str = "") -> None:
    """A machine on which the trial of torch.compile fails with this error, or works."""
    monkeypatch.setattr(measuring, "compile_failure", lambda device: failure)


def test_auto_compiles_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "missing_for_compile", lambda device: "")
    compiles(monkeypatch)
    assert hardware.resolve_compile("auto", "cpu", 10_000)
    assert not hardware.resolve_compile("auto", "cpu", 10)
    assert hardware.resolve_compile(True, "cpu", 0)
    assert not hardware.resolve_compile(False, "cpu", 10_000)


def test_auto_does_not_compile_what_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("azllm_lightning"), "propagate", True)
    compiles(monkeypatch)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not hardware.resolve_compile("auto", "cpu", 10_000)
    assert "not compiled, because it needs a C++ compiler" in caplog.text
    with pytest.raises(ValueError, match=r"trainer.compile=true needs a C\+\+ compiler"):
        hardware.resolve_compile(True, "cpu", 10_000)
    imitate(monkeypatch, (7, 5))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Triton"):
        hardware.resolve_compile(True, "cuda", 10_000)
    imitate(monkeypatch, (6, 1))
    with pytest.raises(ValueError, match=r"capability 7\.0"):
        hardware.resolve_compile(True, "cuda", 10_000)


@pytest.mark.parametrize(
    ("which", "include", "reason"),
    [
        (None, ".", "Triton needs a C compiler"),
        ("/usr/bin/gcc", "nowhere", "Triton needs .*nowhere.Python.h .*python3-dev"),
        ("/usr/bin/gcc", ".", "RuntimeError: PTX JIT"),
    ],
)
def test_auto_reports_why_the_trial_failed(
    which: str | None,
    include: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Triton is installed, but it compiles a launcher with the system's compiler."""
    monkeypatch.setattr(logging.getLogger("azllm_lightning"), "propagate", True)
    (tmp_path / "Python.h").touch()
    imitate(monkeypatch, (7, 5), "Tesla T4")
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: "triton")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: which)
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda name: str(tmp_path / include))
    compiles(monkeypatch, "RuntimeError: PTX JIT")
    assert not hardware.resolve_compile("auto", "cuda", 10_000)
    assert re.search(
        f"trainer.compile=auto: this run is not compiled, because {reason}", caplog.text
    )
    compiles(monkeypatch)
    assert hardware.resolve_compile("auto", "cuda", 10_000)


PROGRAMS = {
    "": "",
    "RuntimeError: no such": "raise RuntimeError('no such')",
    "exit code 3": "import os; os._exit(3)",
    "not compiled in 0.5 s": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("reason", PROGRAMS)
def test_the_trial_of_compiling_may_fail_crash_or_hang(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "COMPILE_TRIAL", PROGRAMS[reason])
    monkeypatch.setattr(measuring, "COMPILE_SECONDS", 0.5 if "0.5" in reason else 60)
    measuring.compile_failure.cache_clear()
    failure = measuring.compile_failure("cpu")
    assert failure.endswith(reason)
    assert bool(failure) == bool(reason)
    monkeypatch.setattr(sys, "executable", "none")
    assert measuring.compile_failure("cpu") == failure  # tried once
    measuring.compile_failure.cache_clear()


@pytest.mark.slow
def test_the_trial_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring.compile_failure.cache_clear()
    assert bool(measuring.compile_failure("cpu")) == bool(hardware.missing_for_compile("cpu"))
    monkeypatch.setenv("CXX", "none")
    measuring.compile_failure.cache_clear()
    assert "ompiler" in measuring.compile_failure("cpu")
    measuring.compile_failure.cache_clear()


@pytest.mark.parametrize(
    ("card", "capability", "measured", "peak"),
    [
        ("Tesla T4", (7, 5), 40.0, 65.0),
        ("NVIDIA GeForce GTX 1650", (7, 5), 2.9, 2.9),
        ("Tesla P100-PCIE-16GB", (6, 0), 16.0, 16.0),
        ("NVIDIA H200", (9, 0), 700.0, 700.0),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9), 30.0, 30.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 60.0, 60.0),  # not the desktop card's 82.6
        ("NVIDIA GeForce RTX 3090", (8, 6), 64.0, 64.0),  # the table has 35.6, without tensor cores
        ("Quadro", (7, 5), 5.0, 5.0),
        ("GeForce RTX", (7, 5), 5.0, 5.0),
    ],
)
def test_the_peak_is_never_below_what_is_measured(
    card: str,
    capability: tuple[int, int],
    measured: float,
    peak: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imitate(monkeypatch, capability, card)
    measures(monkeypatch, measured, measured)
    precision = "bf16-mixed" if capability >= (8, 0) else "16-mixed"
    assert hardware.peak_flops("cuda", precision) == peak * 1e12


def test_the_cpu_is_timed(no_gpu: None) -> None:
    assert 1e8 < hardware.peak_flops("cpu", "32-true") < 1e14


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_precision_plugins(precision: str) -> None:
    plugin = hardware.precision_plugin(precision, "cpu")
    assert plugin.precision == precision
    if precision == "16-mixed":
        assert (
            plugin.scaler.get_scale() == 2.0**13
        )  # PyTorch's 2**16 overflows a small model's first steps
