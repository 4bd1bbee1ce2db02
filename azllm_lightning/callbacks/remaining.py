"""How long a run will still take: its steps, its validations and its saves, each by what they took so far."""

from __future__ import annotations

import time

from lightning.pytorch import Trainer

from azllm_lightning.callbacks.throughput import Throughput

RECENT = 50
"""Steps whose mean tells how long the next ones take: enough to be calm, few enough to forget a busy minute."""


class RemainingTime:
    """Measures the pauses of validation, and adds up what is to come. Works from a session's second step on."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.validation_seconds = 0.0
        """What the last validation took, with all that callbacks do in it but saving."""
        self._batch_ends: list[float] = []
        self._saving_before = 0.0

    def pause(self) -> None:
        """A validation begins."""
        self._batch_ends, self._saving_before = [], self.throughput.io.seconds

    def batch_over(self) -> None:
        """A batch of the validation is done."""
        self._batch_ends.append(time.perf_counter())

    def go_on(self) -> None:
        """A micro-batch begins, perhaps the first after a validation."""
        if self._batch_ends:
            first, last, num_batches = (
                self._batch_ends[0],
                self._batch_ends[-1],
                len(self._batch_ends),
            )
            # A session's first batch compiles: it is taken to be like the others.
            batches = (last - first) * num_batches / max(1, num_batches - 1)
            saving = self.throughput.io.seconds - self._saving_before
            self.validation_seconds = batches + time.perf_counter() - last - saving
            self._batch_ends = []

    def seconds(self, trainer: Trainer) -> float | None:
        """Seconds from the end of the present step to the end of the run; None while nothing is known."""
        measured = self.throughput.step_seconds
        recent = measured[max(1, len(measured) - RECENT) :]  # the first compiles and warms up
        if not recent:
            return None
        step, last = trainer.global_step, trainer.max_steps
        saving = self.throughput.io.seconds / len(measured)
        every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        validations = (
            last // every - (step - 1) // every + (last % every > 0)
        )  # with the one after this step
        return (last - step) * (
            sum(recent) / len(recent) + saving
        ) + validations * self.validation_seconds
