"""Each measurement on its own: what it finds, and what it says if there is nothing to find."""

from __future__ import annotations

import errno
import os
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import azllm_lightning
from azllm_lightning.machine import compiling, products, storage
from azllm_lightning.machine.compiling import compile_small_function
from azllm_lightning.machine.facts import machine_facts, nvidia_smi
from azllm_lightning.machine.isolated import isolated, one_line
from azllm_lightning.machine.loading import tokenizing_speed
from azllm_lightning.machine.products import NumberType, measure_product
from azllm_lightning.machine.storage import measure_disk
from azllm_lightning.training import measuring
from azllm_lightning.training.measuring import relative_error


def test_products_are_timed_and_compared_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.LARGEST, "cpu", 128)
    for name in ("fp32", "bf16", "fp16"):
        found = measure_product("cpu", products.TYPES[name], seconds=0.01)
        assert found["problem"] is None
        assert found["flops_per_second"] > 0
        assert 0 < found["relative_error"] < products.TYPES[name].most_error
    # fp32 is exact to 24 bits, bf16 to 8.
    assert relative_error("cpu", torch.float32) < 1e-6 < relative_error("cpu", torch.bfloat16)


def test_the_machine_is_described_where_the_package_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "azllm-lightning":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert machine_facts("cpu")["azllm_lightning_version"] == azllm_lightning.__version__


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setitem(products.LARGEST, "cpu", 128)
    monkeypatch.setattr(products, "relative_error", lambda device, dtype: error)
    found = measure_product("cpu", products.TYPES["fp16"], seconds=0.01)
    assert found["problem"] == "wrong"
    assert found["relative_error"] == (None if error != error else error)


def test_check_measures_as_auto_does() -> None:
    assert products.product_speed is measuring.product_speed
    assert products.relative_error is measuring.relative_error
    assert compiling.check_compiled is measuring.check_compiled


def test_a_type_without_products_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: str, dtype: torch.dtype) -> float:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(products, "relative_error", missing)
    found = measure_product("cpu", NumberType(torch.float16, 1.0))
    assert found["problem"] == "\"addmm_impl_cpu_\" not implemented for 'Half'"
    assert found["flops_per_second"] is None


def test_the_machine_is_described() -> None:
    facts = machine_facts("cpu")
    assert facts["device"] == "cpu"
    assert facts["cpu_cores"] >= 1
    assert facts["torch_version"] == torch.__version__
    assert facts["cpu_model"]
    if os.name == "posix":
        assert facts["memory_bytes"] > 2**28


def test_a_driver_whose_tool_fails_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not nvidia_smi("driver_version")
    monkeypatch.setenv("PATH", "")
    assert nvidia_smi("driver_version") is None


def test_a_function_is_called_in_a_process_of_its_own() -> None:
    assert isolated("json:loads", '{"pid": 1}', seconds=60) == {"pid": 1}
    with pytest.raises(ValueError, match=r"Expecting property name .*char 1"):
        isolated("json:loads", "{", seconds=60)
    with pytest.raises(ValueError, match="TypeError: "):
        isolated("math:sqrt", "four", seconds=60)


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="signals as exit codes")
def test_a_crash_or_a_hang_is_a_reason() -> None:
    with pytest.raises(ValueError, match=r"exit code -6 \(SIGABRT\)"):
        isolated("os:abort", seconds=60)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="not done after 1 s"):
        isolated("signal:pause", seconds=1)
    assert time.monotonic() - started < 30


def test_an_error_becomes_one_line() -> None:
    run = "the run measured ended with exit code 2:\nstart panel\nerror: data.dir=x: no such folder"
    assert one_line(ValueError(run)) == "data.dir=x: no such folder"
    traceback = "it ended with exit code 1:\nTraceback (most recent call last):\n  a\nKeyError: 'x'"
    assert one_line(ValueError(traceback)) == "KeyError: 'x'"
    compiler = RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No compiler\n\nhint")
    assert one_line(compiler) == "InvalidCxxCompiler: No compiler"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line(KeyError("x")) == "KeyError: 'x'"


def test_a_disk_is_measured_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_BYTES", 2**21)
    monkeypatch.setattr(storage, "FIRST_BYTES", 2**20)
    for logs in (tmp_path, tmp_path / "lightning_logs"):
        found = measure_disk(logs)
        assert 2**20 <= found["written_bytes"] <= 2**21
        assert found["replace"]
        assert list(tmp_path.iterdir()) == []
    if os.name == "posix":
        assert all(found[name] for name in storage.TESTS)
    with pytest.raises(ValueError, match=r"there is no folder .*yoxdur"):
        measure_disk(tmp_path / "yoxdur" / "lightning_logs")


@pytest.mark.skipif(os.name != "posix", reason="flock, fsync of folders")
def test_what_a_file_system_cannot_do_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(storage, "MOST_BYTES", 2**20)

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    fsync = os.fsync

    def files_only(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").is_dir():
            refused()
        fsync(number)

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "symlink", refused)
    found = measure_disk(tmp_path)
    assert {name for name in storage.TESTS if not found[name]} >= {
        "locks",
        "hard_links",
        "symbolic_links",
    }
    # A lock that keeps nobody out is none either.
    monkeypatch.setattr(fcntl, "flock", lambda number, operation: None)
    if Path("/proc/self/fd").is_dir():
        monkeypatch.setattr(os, "fsync", files_only)
        found = measure_disk(tmp_path)
        assert not found["locks"]
        assert not found["folder_sync"]


def test_a_slow_disk_gets_a_smaller_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_BYTES", 2**20)
    monkeypatch.setattr(storage, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(os, "fsync", lambda number: time.sleep(0.3))
    found = measure_disk(tmp_path)
    assert found["written_bytes"] == 2**20
    assert found["write_bytes_per_second"] < 2**20 / 0.3


def test_tales_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azllm_lightning.machine.loading.TALES_BYTES", 20_000)
    monkeypatch.setattr("azllm_lightning.machine.loading.VOCAB_SIZE", 300)
    assert tokenizing_speed() > 0


def test_compiling_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"torch\.compile needs a C\+\+ compiler"):
        compile_small_function("cpu")


@pytest.mark.slow
def test_a_small_function_is_compiled() -> None:
    target = "azllm_lightning.machine.compiling:compile_small_function"
    assert isolated(target, "cpu", seconds=300)["compile_seconds"] > 0
