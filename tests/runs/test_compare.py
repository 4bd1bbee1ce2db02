from __future__ import annotations

import shutil
from pathlib import Path

import torch

from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.compare import first_difference


def test_a_tensor_that_differs_is_named(tiny_run: Path) -> None:
    other = tiny_run.with_name("version_1")
    shutil.copytree(tiny_run, other)
    assert first_difference(tiny_run, other) is None
    path = step_files(other / "checkpoints")[0][1]
    saved = torch.load(path, weights_only=True)
    saved["optimizer_states"][0]["state"][1]["momentum_buffer"].view(-1)[0] += 1e-6
    torch.save(saved, path)
    expected = "step 8: optimizer_states/0/state/1/momentum_buffer differs in step_00000008.ckpt"
    assert first_difference(tiny_run, other) == expected


def test_what_branches_keep_is_compared(tiny_run: Path) -> None:
    other = tiny_run.with_name("version_1")
    shutil.copytree(tiny_run, other)
    for run, value in ((tiny_run, 0.0), (other, 1e-6)):
        path = step_files(run / "checkpoints")[0][1]
        saved = torch.load(path, weights_only=True)
        saved["branches"] = {"sum": {"weight": torch.tensor([value])}}
        torch.save(saved, path)
    expected = "step 8: branches/sum/weight differs in step_00000008.ckpt"
    assert first_difference(tiny_run, other) == expected


def test_a_state_that_only_one_of_them_has_is_named(tiny_run: Path) -> None:
    other = tiny_run.with_name("version_1")
    shutil.copytree(tiny_run, other)
    path = step_files(other / "checkpoints")[0][1]
    saved = torch.load(path, weights_only=True)
    del saved["optimizer_states"][0]["state"][1]
    torch.save(saved, path)
    for left, right in ((tiny_run, other), (other, tiny_run)):
        difference = first_difference(left, right)
        assert difference is not None
        assert difference.startswith("step 8: optimizer_states/0/state/1/")


def test_the_first_logged_value_that_differs_is_named(tiny_run: Path) -> None:
    other = tiny_run.parent.with_name("davam") / "version_0"
    shutil.copytree(tiny_run, other)
    for events in other.glob("events.out.tfevents.*"):
        events.unlink()
    difference = first_difference(tiny_run, other)
    assert difference is not None
    assert difference.startswith("step 0: ")
    assert difference.endswith(" in tiny, None in davam")
