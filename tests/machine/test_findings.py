"""What a person reads: the table, and the advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check_findings import findings, without

from azllm_lightning.cli.messages import use_language
from azllm_lightning.machine.advice import advice
from azllm_lightning.machine.checkup import PARTS
from azllm_lightning.machine.findings import rate_text, table
from azllm_lightning.machine.products import TYPES

DOCS = Path(__file__).parents[2] / "docs"
CPU = {"device": "cpu", "gpus": [], "driver_version": None, "cuda_version": None}


@pytest.fixture(params=["en", "az"])
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    use_language(request.param)
    yield request.param
    use_language(None)


def test_the_table_fits_80_columns(language: str) -> None:
    cases = [
        findings(),
        findings(machine=CPU, missing_device="no GPU", steps={"is_computed": True}),
        findings(disk={"locks": False, "hard_links": False}, steps={"non_finite_steps": 3}),
        findings(**{part: without("failed", "out of memory " * 9) for part in PARTS}),
        findings(resume={"is_exact": False, "first_difference": "step 11: train_loss is 1 in a"}),
        findings(machine={"driver_version": None, "memory_bytes": None}),
    ]
    for case in cases:
        lines = table(case, "check.json").splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[-1].split() == [lines[-1].split()[0], "check.json"]
        labels = [line.split()[0] for line in lines if not line.startswith(" ")]
        assert len(labels) == len(set(labels))
        assert all(line[9] == " " for line in lines), "a label is too long"


def test_the_table_shows_the_figures() -> None:
    text = " ".join(table(findings(), "check.json").split())
    for part in (
        "device Tesla T4, 15.8 GB, compute capability 7.5; driver 550.54.15",
        "fp16 20 TFLOP/s relative error 2e-04",
        "bf16 1.2 TFLOP/s relative error 2e-03 slower than fp32",
        "steps t4: 13,000 tokens/s",
        "48 sequences x 512 tokens per step, micro-batch 12, 16-mixed, compiled",
        "MFU 0.46 of the products above, 0.14 of the vendor's figure, peak memory 6.5 GB",
        "a save 1.3 GB, 4.8 s",
        "resume PASS: resumed after step 10 of 20, identical bit for bit",
        "compile works: 9 s for a small function",
    ):
        assert part in text


def test_what_failed_is_a_row_with_its_reason() -> None:
    text = table(findings(compile=without("failed", "no C++ compiler")), "check.json")
    assert "compile   FAILED: no C++ compiler" in text
    text = table(findings(resume=without("skipped", "no time")), "check.json")
    assert "resume    no time" in text
    wrong = findings()
    wrong["products"]["types"]["fp16"] = {
        **wrong["products"]["types"]["fp16"],
        "relative_error": None,
        "problem": "wrong",
    }
    assert "TFLOP/s   WRONG" in table(wrong, "check.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "t4 fits this machine: its 5,000 steps take about 2 h 38 min."),
        ({"interrupted": True}, "stopped early"),
        ({"steps": without("failed", "out of memory")}, "does not run here"),
        ({"steps": without("skipped", "no time")}, "t4 is very slow here"),
        (
            {"steps": {**without("skipped", "no time"), "timed_out": True, "seconds": 61.3}},
            "The steps of t4 were not done in 61 s: set a larger minutes=.",
        ),
        ({"resume": {"is_exact": False}}, "A resumed run differs"),
        ({"steps": {"run_hours": 30.0}}, "t4 is long for this GPU"),
        ({"steps": {"run_hours": 700.0, "device": "cpu"}}, "too large for this CPU"),
        ({"machine": {"unused_gpu": "RTX 3050"}}, "install a CUDA build for it"),
        (
            {"steps": {"cpu_share": 0.4, "others_share": 0.5}},
            "kept this machine busy (the measured steps got 40% of its cores)",
        ),
        ({"compile": without("failed", "no compiler")}, "if torch.compile worked"),
        ({"compile": without("skipped", "no time")}, "2 h 38 min."),
        ({"disk": {"write_bytes_per_second": 5e6}}, "The disk is slow"),
        ({"disk": {"locks": False}}, "The disk has no locks"),
        ({"disk": without("failed", "read-only")}, "Nothing can be saved there"),
        ({"data": {"tokens_per_second": 20_000.0}}, "data.num_workers=2."),
        (
            {
                "data": {"tokens_per_second": 20_000.0, "num_workers": 3},
                "machine": {"cpu_cores": 8},
            },
            "set data.num_workers=6.",
        ),
        (
            {
                "data": {"tokens_per_second": 20_000.0, "num_workers": 3},
                "machine": {"cpu_cores": 4},
            },
            "set data.num_workers=4.",
        ),
        ({"steps": {"run_name": "tales"}}, "try check experiment=t4"),
    ],
)
def test_advice_names_what_matters_most(changes: dict[str, Any], expected: str) -> None:
    assert expected in advice(findings(**changes))


def test_no_more_workers_are_advised_than_there_are_cores() -> None:
    slow = {"tokens_per_second": 20_000.0}
    for workers in (2, 3, 8):
        case = findings(data={**slow, "num_workers": workers}, machine={"cpu_cores": 2})
        assert "num_workers" not in advice(case)


def test_a_load_from_before_the_check_is_nobodys_fault() -> None:
    assert advice(findings(machine={"load_average": 9.0})) == advice(findings())


def test_nothing_is_recommended_that_does_not_fit() -> None:
    def suggested(memory: float) -> str:
        gpu = {"name": "card", "memory_bytes": memory, "compute_capability": "7.5"}
        return advice(findings(machine={"gpus": [gpu]}, steps={"run_name": "tales"}))

    assert "laptop_4gb" in suggested(4.2e9)
    assert "experiment=" not in suggested(2e9)


def test_wrong_products_are_reported() -> None:
    case = findings()
    for name in ("bf16", "fp16"):
        case["products"]["types"][name] = {
            **case["products"]["types"][name],
            "problem": "wrong",
        }
    assert "Products in bf16, fp16 are wrong here" in advice(case)


def test_rates_have_a_fitting_unit() -> None:
    assert [rate_text(value) for value in (1.54e9, 110e9, 4.1e12, 312e12, None)] == [
        "1.5 GFLOP/s",
        "110 GFLOP/s",
        "4.1 TFLOP/s",
        "312 TFLOP/s",
        "-",
    ]


def keys(values: Any) -> set[str]:
    """Every key in nested mappings."""
    if isinstance(values, dict):
        return set(values).union(*map(keys, values.values()))
    return set().union(*map(keys, values)) if isinstance(values, list) else set()


@pytest.mark.parametrize("lang", ["en", "az"])
def test_every_key_of_the_file_is_documented(lang: str) -> None:
    page = DOCS / lang / "check.md"
    text = page.read_text(encoding="utf-8").partition("## check.json")[2]
    documented = set(re.findall(r"`(\w+)`", text)) | set(TYPES)
    assert keys(findings()) - documented == set()
