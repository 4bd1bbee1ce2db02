from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.callbacks.clock import Clock


class Session:
    """A Clock with a made-up time: steps of 2 micro-batches of 1 s, validations of 9 batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int = 0, steps: int = 100) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        self.io: Any = SimpleNamespace(seconds=0.0)
        self.clock = Clock(self.io)
        self.at = start
        self.last = steps

    def step(
        self, seconds: float = 2.0, saving: float = 0.0, wait: float = 0.0, logs: bool = False
    ) -> None:
        """Two micro-batches in `seconds`, each after `wait`, the first with a save before it."""
        for micro in range(2):
            self.now += wait
            self.clock.batch_starts(is_wait=True)
            if micro == 0:
                self.save(saving)
            self.now += seconds / 2
            if micro == 1:
                self.at += 1
                self.clock.step_ends(logs_now=logs)
            self.clock.batch_ends()

    def save(self, seconds: float) -> None:
        self.now += seconds
        self.io.seconds += seconds

    def validate(self, seconds: float, saving: float = 0.0, compiling: float = 0.0) -> None:
        """Nine batches, then callbacks that take as long as a batch, and a save of the best
        weights."""
        self.clock.validation_starts()
        self.now += compiling
        for _ in range(9):
            self.now += seconds / 10
            self.clock.validation_batch_ends()
        self.now += seconds / 10
        self.save(saving)

    @property
    def remaining(self) -> float | None:
        return self.clock.remaining(self.at, self.last, validate_every=20)


def test_the_time_left_is_that_of_steps_and_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch)
    session.last = 50
    session.validate(30, compiling=60)
    session.clock.start()
    session.step(50)  # the first compiles too
    assert session.remaining is None
    session.step()
    assert session.remaining == pytest.approx(48 * 2 + 3 * 30)  # at 20, 40 and 50
    for _ in range(18):
        session.step()
    assert session.remaining == pytest.approx(30 * 2 + 3 * 30)  # that of step 20 is still to come
    session.validate(40)
    session.step()
    assert session.remaining == pytest.approx(29 * 2 + 2 * 40)
    # A validation is no part of the step after it.
    assert session.clock.step_seconds[1:] == pytest.approx([2.0] * 20)


def test_a_pause_does_not_change_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that sleeps, or Ctrl+Z."""
    session = Session(monkeypatch)
    session.clock.start()
    for seconds in (50.0, 2.0, 2.0, 28_800.0):
        session.step(seconds)
    assert session.remaining == pytest.approx(96 * 2)


def test_the_time_left_counts_saving_by_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch)
    session.validate(30)
    session.clock.start()
    for _ in range(20):
        session.step()
    session.validate(30, saving=4)
    session.step(saving=7)
    assert session.remaining == pytest.approx(79 * 2 + 4 * 30 + 79 * 11 / 21)
    assert session.clock.step_seconds[1:] == pytest.approx([2.0] * 20)


def test_the_time_left_is_right_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, start=21)
    session.clock.validation_seconds = 30.0
    session.clock.start()
    session.step(50)
    assert session.remaining is None
    session.step(4)
    assert session.remaining == pytest.approx(77 * 4 + 4 * 30)


def test_waits_are_known_where_nothing_else_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch)
    session.clock.start()
    session.step(wait=9)  # the start of the session
    session.step(wait=0.5)
    session.step(wait=0.25, logs=True)
    session.step(wait=0.25)
    session.validate(30)
    session.step(wait=0.25)
    session.step(wait=0.125)
    waits = session.clock.waits
    assert [index for index, wait in enumerate(waits) if math.isnan(wait)] == [0, 3, 4]
    assert [wait for wait in waits if not math.isnan(wait)] == pytest.approx([1.0, 0.5, 0.25])
    assert session.clock.step_seconds[1] == pytest.approx(3.0)  # waits are part of a step


def test_wall_time_adds_the_sessions_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    io: Any = SimpleNamespace(seconds=0.0)
    clock = Clock(io)
    clock.add_earlier(100.0)
    now = 57.0
    assert clock.wall_seconds == pytest.approx(107.0)
    # Another fit of the session, from a checkpoint that was written 3 seconds ago, and began 2
    # seconds before it was loaded.
    now = 60.0
    again = Clock(io)
    again.follow(clock)
    again.add_earlier(107.0)
    now = 62.0
    assert again.wall_seconds == pytest.approx(112.0)
    # The first fit ran out of memory before it loaded the checkpoint of an earlier session.
    other = Clock(io)
    other.follow(Clock(io))
    other.add_earlier(100.0)
    assert other.wall_seconds == pytest.approx(100.0)
