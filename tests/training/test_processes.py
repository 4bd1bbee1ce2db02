"""What several processes decide together: whether a step is taken, and when to save and stop."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from training_runs import add_callback, start

from azllm_lightning.runs.checkpoint_files import step_files

DEVICES = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.micro_batch_size=1"]


@pytest.mark.parametrize(
    "rank", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.thorough)]
)
def test_processes_decide_together_in_one_operation_per_step(
    rank: int, tiny: list[str], tmp_path: Path
) -> None:
    """A loss that is not finite in one process makes both skip the step, and a signal to one stops
    both after the same step.
    """
    overrides = [*DEVICES, "trainer.val_every_steps=100", "trainer.checkpoint_every_steps=100"]
    callbacks = add_callback("SpoiledLoss", step=2, rank=rank)
    callbacks += add_callback("Terminate", step=5, rank=rank)
    callbacks += add_callback("Collectives", folder=tmp_path)
    process = start([*tiny, *overrides, *callbacks], tmp_path)
    process.join(120)
    output = (tmp_path / "output").read_text(encoding="utf-8")
    saved = step_files(tmp_path / "lightning_logs/tiny/version_0/checkpoints")
    assert [step for step, _ in saved] == [6], output
    weights = []
    for path in (tmp_path / "collectives0.jsonl", tmp_path / "collectives1.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps, calls, sums = zip(*lines, strict=True)
        assert steps == (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6)
        own = [[call for call in step if call != "broadcast"] for step in calls]
        assert own == [[], ["all_reduce"]] * 6  # Muon's updates are broadcast
        weights.append(sums)
    assert weights[0] == weights[1]
    changed = [before != after for before, after in pairwise(weights[0][1::2])]
    assert changed == [True, False, True, True, True], "step 3 is skipped"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("step", "saved", "code"), [(4, 5, 75), (8, 8, 0)])
def test_a_stop_during_a_validation_waits_for_the_next_step(
    step: int, saved: int, code: int, rank: int, tiny: list[str], tmp_path: Path
) -> None:
    """The processes have different numbers of its batches, and so cannot agree within it. The last
    validation is followed by the end of the run.
    """
    overrides = [*DEVICES, "data.val_windows=9", "trainer.checkpoint_every_steps=100"]
    callbacks = add_callback("TerminateInValidation", step=step, rank=rank)
    process = start([*tiny, *overrides, *callbacks], tmp_path)
    process.join(120)
    output = (tmp_path / "output").read_text(encoding="utf-8")
    assert process.exitcode == code, output
    checkpoints = tmp_path / "lightning_logs/tiny/version_0/checkpoints"
    assert step_files(checkpoints)[0][0] == saved, output
    assert ("resume: python -m" in output) == (code == 75)
