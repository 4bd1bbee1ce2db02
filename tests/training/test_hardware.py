"""What `auto` means on which machine; GPUs are imitated."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from azllm_lightning.training import hardware


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


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "16-mixed"), ((6, 1), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")],
)
def test_auto_precision_is_what_the_card_computes_in(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, capability)
    assert hardware.resolve_precision("auto", "cuda") == precision
    assert hardware.resolve_precision("32-true", "cuda") == "32-true"


def test_bf16_on_a_t4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, (7, 5), "Tesla T4")
    with pytest.raises(ValueError, match=r"bf16-mixed: Tesla T4 \(sm_75\).*16-mixed"):
        hardware.resolve_precision("bf16-mixed", "cuda")


@pytest.mark.parametrize(("there", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_on_a_cpu(
    there: bool, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu_with_bf16(monkeypatch, there)
    monkeypatch.setattr(logging.getLogger("azllm_lightning"), "propagate", True)
    assert hardware.resolve_precision("auto", "cpu") == precision
    assert hardware.resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert not caplog.records
    assert hardware.resolve_precision("16-mixed", "cpu") == precision
    assert precision in caplog.text


@pytest.mark.parametrize(
    ("devices", "device", "number"),
    [
        (1, "cpu", 1),
        (2, "cpu", 2),
        ("2", "cuda", 2),
        ("0,1", "cuda", 2),
        ("auto", "cuda", 4),
        ("auto", "cpu", 1),
    ],
)
def test_number_of_devices(
    devices: int | str, device: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(monkeypatch, (7, 5), count=4)
    assert hardware.num_devices(devices, device) == number


def test_auto_compiles_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "missing_for_compile", lambda device: "")
    assert hardware.resolve_compile("auto", "cpu", 10_000)
    assert not hardware.resolve_compile("auto", "cpu", 10)
    assert hardware.resolve_compile(True, "cpu", 0)
    assert not hardware.resolve_compile(False, "cpu", 10_000)


def test_auto_does_not_compile_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not hardware.resolve_compile("auto", "cpu", 10_000)
    with pytest.raises(ValueError, match=r"trainer.compile=true needs a C\+\+ compiler"):
        hardware.resolve_compile(True, "cpu", 10_000)
    imitate(monkeypatch, (7, 5))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Triton"):
        hardware.resolve_compile(True, "cuda", 10_000)
    imitate(monkeypatch, (6, 1))
    with pytest.raises(ValueError, match=r"capability 7\.0"):
        hardware.resolve_compile(True, "cuda", 10_000)


def test_peak_flops_of_known_and_unknown_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate(monkeypatch, (7, 5), "Tesla T4")
    assert hardware.peak_flops("cuda", "16-mixed") == 65e12
    imitate(monkeypatch, (8, 9), "NVIDIA GeForce RTX 4050 Laptop GPU")
    monkeypatch.setattr(hardware, "matmul_flops", lambda device, precision: 12.0)
    assert hardware.peak_flops("cuda", "bf16-mixed") == 12.0


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
