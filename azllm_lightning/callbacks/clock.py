"""The time of a session: steps, waits for data, validations and saves, each measured separately."""

from __future__ import annotations

import math
import statistics
import time

from azllm_lightning.training.saving import AtomicCheckpointIO

RECENT = 50
"""Number of steps that predict the next ones: few enough to adapt soon."""


class Clock:
    """Times a fit in seconds; `History` calls it from Lightning's hooks.

    The time of a step includes its wait for data, but neither validation nor saving. The first step
    of a session compiles and warms up, so that no mean or prediction counts it.
    """

    def __init__(self, io: AtomicCheckpointIO) -> None:
        self.step_seconds: list[float] = []
        """Duration of each optimizer step of this session."""
        self.waits: list[float] = []
        """The wait for data of each of them; NaN if that time was also used for something else."""
        self.validation_seconds = 0.0
        """Duration of the last validation, with all that callbacks do in it except saving."""
        self.earlier_seconds = 0.0
        """Wall time of the sessions before this one, and of earlier fits of this one."""
        self._io = io
        self._started = time.monotonic()
        self._mark = 0.0  # start of the current step
        self._saving_at_mark = 0.0
        self._paused = False
        self._batch_ended = 0.0
        self._wait = math.nan
        self._validation_batch_ends: list[float] = []
        self._saving_at_validation = 0.0

    @property
    def saving_seconds(self) -> float:
        """Time that this session has spent saving checkpoints."""
        return self._io.seconds

    @property
    def wall_seconds(self) -> float:
        """Wall time of all sessions of the run, as far as the checkpoints recorded them."""
        return self.earlier_seconds + time.monotonic() - self._started

    def follow(self, before: Clock) -> None:
        """Add the wall time of the fit before, of the same session: what it did after its last
        checkpoint is lost, but took its time.
        """
        self.earlier_seconds = before.earlier_seconds + self._started - before._started

    def add_earlier(self, seconds: float) -> None:
        """Add the wall time that a checkpoint records, unless `follow` has done so."""
        self.earlier_seconds = max(self.earlier_seconds, seconds)

    def start(self) -> None:
        """Training begins."""
        self._set_mark()

    def batch_starts(self, is_wait: bool) -> None:
        """A micro-batch arrives; `is_wait` if nothing was computed while it was loaded."""
        if self._paused:
            self._paused = False
            self._set_mark()
            self._time_validation()
        if is_wait:
            self._wait += time.perf_counter() - self._batch_ended

    def batch_ends(self) -> None:
        """A micro-batch is done; the wait for the next one begins."""
        self._batch_ended = time.perf_counter()

    def step_ends(self, logs_now: bool) -> None:
        """An optimizer step is done; with `logs_now`, the next wait is not measured,
        because it includes logging.
        """
        self.step_seconds.append(self._since_mark())
        self.waits.append(self._wait)
        self._wait = math.nan if logs_now else 0.0
        self._set_mark()

    def validation_starts(self) -> None:
        """A validation begins: no step is timed until the next micro-batch."""
        self._paused = True
        self._wait = math.nan
        self._validation_batch_ends = []
        self._saving_at_validation = self.saving_seconds

    def validation_batch_ends(self) -> None:
        """A batch of the validation is done."""
        self._validation_batch_ends.append(time.perf_counter())

    def remaining(self, step: int, last_step: int, validate_every: int) -> float | None:
        """Seconds from the end of `step` to the end of the run, validations and saves included.

        None before the second step of a session is done.
        """
        count = len(self.step_seconds)
        recent = self.step_seconds[max(1, count - RECENT) :]
        if not recent:
            return None
        # The median: a laptop that slept during a step will not do so in the next ones.
        per_step = statistics.median(recent) + self.saving_seconds / count
        # Those of steps `step` to `last_step`; the last step is always validated.
        validations = last_step // validate_every - (step - 1) // validate_every
        validations += last_step % validate_every > 0
        return (last_step - step) * per_step + validations * self.validation_seconds

    def _set_mark(self) -> None:
        self._mark = time.perf_counter()
        self._saving_at_mark = self.saving_seconds

    def _since_mark(self) -> float:
        return time.perf_counter() - self._mark - (self.saving_seconds - self._saving_at_mark)

    def _time_validation(self) -> None:
        ends = self._validation_batch_ends
        if not ends:
            return
        # The first batch of a session compiles: it is taken to be like the others.
        batches = (ends[-1] - ends[0]) * len(ends) / max(1, len(ends) - 1)
        saving = self.saving_seconds - self._saving_at_validation
        self.validation_seconds = batches + time.perf_counter() - ends[-1] - saving
