"""What several processes decide together: whether a step is taken, and when to save and stop."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from training_runs import add_callback, start

from azllm_lightning.runs.checkpoint_files import step_files

PLAIN = """
import json, sys
import lightning.pytorch as pl
from azllm_lightning import CausalLM, TokenDataModule, compose

def main(devices, *typed):
    config = compose(typed)
    data = TokenDataModule(config.data, 4 // devices, config.seed)
    data.prepare_data()
    data.setup()
    tokenizer = data.tokenizer
    shape = config.model.for_data(tokenizer.vocab_size, config.data.block_size, tokenizer.eot_id)
    module = CausalLM(shape, config.optimizer, config.schedule, config.seed)
    trainer = pl.Trainer(
        max_steps=5, val_check_interval=2, check_val_every_n_epoch=None, accelerator="cpu",
        devices=devices, enable_progress_bar=False, logger=False, enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data)
    fitted = float(trainer.callback_metrics["train_loss"]), module.last_validation
    validated = trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        with open(f"{devices}.json", "w") as file:
            json.dump([*fitted, *validated], file)

if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
"""

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


@pytest.mark.thorough
def test_two_processes_of_a_plain_trainer_have_the_losses_of_one(
    tiny: list[str], tmp_path: Path
) -> None:
    """Lightning would wrap the samplers; the processes have different numbers of windows."""
    script = tmp_path / "plain.py"
    script.write_text(PLAIN, encoding="utf-8")
    found = []
    for devices in ("1", "2"):
        command = [sys.executable, str(script), devices, *tiny]
        typed = ["data.val_windows=9", "model.dropout=0.0"]
        done = subprocess.run([*command, *typed], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / f"{devices}.json").read_text(encoding="utf-8")))
    one, two = found
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    for ours, theirs in zip(one[1:], two[1:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
