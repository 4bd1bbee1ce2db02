"""Lightning's loops: their state in terms of optimizer steps, and their signal handlers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from azllm_lightning.training.stopping import StopRequest


def canonical_loops(trainer: Trainer, step: int, validation_done: bool) -> dict[str, Any]:
    """The state of Lightning's fit loop (2.6) between optimizer step `step` and the next.

    What Lightning stores depends on the hook that saved (in the middle of a batch, a validation or
    an accumulation) and on the micro-batch size of that time. Weights and optimizer change only
    once per step, so every checkpoint belongs to a step boundary. This state says so: `step` x
    accumulation batches are completed. Unless `validation_done`, it also says that a validation was
    interrupted, so that the loop runs a validation due at `step` before the next step.
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


def use_own_signal_handlers(trainer: Trainer, stop: StopRequest) -> None:
    """Let `stop` handle signals in place of Lightning (2.6), during its fit.

    Lightning's handler of SIGTERM starts a collective operation within the handler, which hangs
    several processes, and then ends the training in mid-step. Its loop also asks the first process
    before each micro-batch whether it got SIGTERM, and waits for the device to know the answer; the
    processes agree on that once per optimizer step (`CausalLM.configure_gradient_clipping`).
    """
    connector: Any = trainer._signal_connector
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(connector, "register_signal_handlers")
    assert hasattr(loop, "_broadcast_sigterm_tensor")
    connector.register_signal_handlers = stop.listen
    loop._broadcast_sigterm_tensor = lambda: None
