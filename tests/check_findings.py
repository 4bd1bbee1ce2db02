"""The findings of a check on a GPU, for tests of what is said about them."""

from __future__ import annotations

from typing import Any


def findings(**changes: dict[str, Any]) -> dict[str, Any]:
    """Complete findings; `changes` replaces keys of the parts that it names."""
    ok = {"status": "ok", "reason": None, "timed_out": False, "seconds": 1.0}
    rate = {"flops_per_second": 20e12, "relative_error": 2e-4, "size": 4096, "problem": None}
    parts: dict[str, Any] = {
        "format_version": 1,
        "created_at": "2026-11-26T10:00:00+00:00",
        "overrides": ["experiment=t4"],
        "interrupted": False,
        "seconds": 101.5,
        "missing_device": None,
        "machine": {
            "device": "cuda",
            "gpus": [
                {"name": "Tesla T4", "memory_bytes": 15_843_721_216, "compute_capability": "7.5"}
            ],
            "unused_gpu": None,
            "driver_version": "550.54.15",
            "cuda_version": "12.6",
            "cpu_model": "Intel(R) Xeon(R) CPU @ 2.00GHz",
            "cpu_cores": 2,
            "cpu_threads": 1,
            "cpu_instruction_sets": "avx2 f16c fma avx512f avx512_bf16 avx512_vnni".split(),
            "cpu_capability": "AVX512",
            "memory_bytes": 13_605_851_136,
            "load_average": 0.1,
            "os": "Linux-6.1.123+-x86_64-with-glibc2.35",
            "python_version": "3.12.11",
            "torch_version": "2.13.0+cu126",
            "lightning_version": "2.6.6",
            "azllm_lightning_version": "0.1.0",
        },
        "experiment": {
            "run_name": "t4",
            "num_params": 134_105_856,
            "max_steps": 5000,
            "tokens_per_step": 24_576,
            "flops_per_token": 714_000_000,
            "least_hours": 1.0,
        },
        "products": {
            **ok,
            "types": {
                "fp32": {**rate, "flops_per_second": 4.1e12, "relative_error": 2e-7},
                "bf16": {**rate, "flops_per_second": 1.2e12, "relative_error": 2e-3},
                "fp16": rate,
            },
        },
        "disk": {
            **ok,
            "folder": "/content/drive/MyDrive/lightning_logs",
            "free_bytes": 90_000_000_000,
            "written_bytes": 268_435_456,
            "write_seconds": 1.0,
            "write_bytes_per_second": 268_435_456,
            "locks": True,
            "symbolic_links": True,
            "hard_links": True,
            "folder_sync": True,
            "replace": True,
        },
        "data": {
            **ok,
            "tokens_per_second": 3_000_000.0,
            "num_workers": 0,
            "tokenizing_bytes_per_second": 2_000_000.0,
            "is_random_text": True,
        },
        "steps": {
            **ok,
            "run_name": "t4",
            "device": "cuda",
            "devices": 1,
            "num_params": 134_105_856,
            "flops_per_token": 714_000_000,
            "steps": 20,
            "sequences_per_step": 48,
            "global_batch_size": 48,
            "micro_batch_size": 12,
            "block_size": 512,
            "vocab_size": 32_000,
            "precision": "16-mixed",
            "compile": True,
            "optimizer": "muon",
            "first_step_seconds": 60.0,
            "step_seconds": 1.9,
            "optimizer_seconds": 0.1,
            "cpu_share": None,
            "others_share": None,
            "startup_seconds": 20.0,
            "tokens_per_second": 13_000.0,
            "is_computed": False,
            "model_flops_per_second": 9.3e12,
            "mfu_of_products": 0.46,
            "vendor_flops_per_second": 65e12,
            "mfu_of_vendor": 0.14,
            "peak_memory_bytes": 6_500_000_000,
            "checkpoint_bytes": 1_300_000_000,
            "non_finite_steps": 0,
            "max_steps": 5000,
            "run_hours": 2.64,
        },
        "resume": {
            **ok,
            "is_exact": True,
            "first_difference": None,
            "deterministic": True,
            "resumed_after_step": 10,
            "steps": 20,
        },
        "compile": {**ok, "compile_seconds": 9.0},
        "advice": "t4 fits this machine.",
    }
    for name, values in changes.items():
        parts[name] = {**parts[name], **values} if isinstance(values, dict) else values
    return parts


def without(status: str, reason: str) -> dict[str, Any]:
    """The changes that make a part one that was not measured."""
    return {"status": status, "reason": reason}
