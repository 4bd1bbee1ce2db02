"""The short runs that `prove_resume` compares: uninterrupted, stopped, killed, badly restored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.session import child

SETTINGS = [
    "trainer.val_every_steps=4",
    "trainer.checkpoint_every_steps=3",
    "trainer.checkpoint_every_minutes=null",
    "trainer.log_every_steps=1",
    "trainer.deadline=null",
    "logs_dir=lightning_logs",
]
"""They hold whatever else was typed, and so does the number of steps."""


class Interruption(NamedTuple):
    """The step after which the callback `Interrupt` ends a run, and whether it kills it."""

    step: int
    kill: bool


class Proof(NamedTuple):
    """The runs of a proof: their number of steps, and the step after which one is stopped; not a
    step that is saved in any case, so that a stop that saves nothing is noticed.
    """

    steps: int
    stop_after: int

    @property
    def settings(self) -> list[str]:
        """What all runs have."""
        return [f"trainer.max_steps={self.steps}", *SETTINGS]

    @property
    def stop(self) -> Interruption:
        """The interruption of the run that is stopped."""
        return Interruption(self.stop_after, False)

    @property
    def runs(self) -> dict[str, Interruption | None]:
        """Those that are compared with the uninterrupted baseline, and how each is interrupted."""
        return {"again": None, "stopped": self.stop, "killed": Interruption(5, True)}


def proof_of(branches: int) -> Proof:
    """That of a training with so many branches, of which the last is interrupted."""
    return Proof(8, 4) if branches == 1 else Proof(12, 11)


BREAK_RESTORE = ["+callbacks.control._target_=azllm_lightning.callbacks.interrupt.BrokenRestore"]
"""What makes a resumed session forget part of its state."""


class StepLost(Exception):
    """A stopped run did not save the step that it had reached."""


def train_run(
    folder: Path,
    name: str,
    settings: Sequence[str],
    interruption: Interruption | None = None,
    when_resumed: Sequence[str] = (),
) -> Path:
    """Train run `name` to its end, interrupted and resumed if so given; returns its folder.

    The resumed session has the settings `when_resumed` in addition. Raises ValueError if the run
    fails, and StepLost if a stop saved too little.
    """
    run = folder / "lightning_logs" / name / "version_0"
    if interruption is not None:
        target = "azllm_lightning.callbacks.interrupt.Interrupt"
        callback = {"_target_": target, **interruption._asdict()}
        interrupt = [f"+callbacks.interrupt.{key}={value}" for key, value in callback.items()]
        print(f"{name:<9}" + tr("to step {step}", step=interruption.step), flush=True)
        child.train_in_child(folder, name, [*settings, *interrupt], ends_early=True)
        _check_saved(run, interruption)
        settings = child.resuming([*settings, *when_resumed])
    print(f"{name:<9}" + tr("to the end"), flush=True)
    child.train_in_child(folder, name, [*settings])
    return run


def _check_saved(run: Path, interruption: Interruption) -> None:
    newest, _ = step_files(run / "checkpoints")[0]
    if newest < interruption.step and not interruption.kill:
        raise StepLost(
            tr(
                "stopped after step {step}, but the newest checkpoint is that of step {newest}",
                step=interruption.step,
                newest=newest,
            )
        )
