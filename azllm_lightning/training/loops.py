"""The state of Lightning's loops in terms of optimizer steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def canonical_loops(trainer: Trainer, step: int, validation_done: bool) -> dict[str, Any]:
    """The state of Lightning's fit loop (2.6) between optimizer step `step` and the next.

    What Lightning stores depends on the hook that saved: in mid-batch, in mid-validation, in
    mid-accumulation, with the old micro-batch size. Weights and optimizer change only between
    steps, so every checkpoint is one of a step boundary, and this state says so: `step` x
    accumulation batches are completed. If a validation is due at `step` and not `validation_done`,
    the state says that it was interrupted, and the loop runs it before the next step.
    """
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    batches = step * trainer.accumulate_grad_batches
    completed = {"ready": batches, "started": batches, "processed": batches, "completed": batches}
    state["epoch_loop.batch_progress"] = {
        "total": completed,
        "current": dict(completed),
        "is_last_batch": False,
    }
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": step}
    steps = {"ready": step, "completed": step}
    state["epoch_loop.scheduler_progress"] = {"total": steps, "current": dict(steps)}
    optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    optimizer["step"] = {"total": dict(steps), "current": dict(steps)}
    interrupted = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    if not validation_done:
        state["epoch_loop.val_loop.batch_progress"] = {
            "total": interrupted,
            "current": dict(interrupted),
            "is_last_batch": False,
        }
    state["epoch_progress"] = {"total": dict(interrupted), "current": dict(interrupted)}
    return state
