"""What of an experiment fits into the time of a check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.machine.sample import MOST_STEPS, Sample, sample, step_seconds
from azllm_lightning.training.batch import accumulation

T4 = compose(["experiment=t4"])
SHAPE = T4.model.for_data(32_000, 512, 0)


def taken(flops: float, seconds: float) -> Sample:
    found = sample(T4, SHAPE, flops, seconds)
    assert found is not None
    return found


def test_a_gpu_takes_complete_steps() -> None:
    found = taken(flops=50e12, seconds=40)
    assert (found.steps, found.sequences, found.micro_batch_size) == (MOST_STEPS, 48, None)
    assert found.half == MOST_STEPS // 2


def test_steps_are_left_out_first_then_sequences() -> None:
    step = step_seconds(T4, SHAPE, 48, 1e12)
    assert taken(1e12, 6.5 * step).steps == 6
    assert taken(1e12, 6.5 * step).sequences == 48
    fewer = taken(1e12, 2.5 * step)
    assert fewer.steps * fewer.step_seconds <= 2.5 * step
    assert fewer.sequences < 48
    assert 48 % fewer.sequences == 0
    assert fewer.steps >= 4
    assert fewer.steps % 2 == 0


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("seconds", [60, 120, 300, 900])
def test_a_reduced_step_can_be_divided_as_a_whole_one_can(seconds: float, devices: int) -> None:
    run = compose(["experiment=t4", "trainer.micro_batch_size=2"])
    found = sample(run, SHAPE, 1e12, seconds, devices)
    assert found is not None
    trainer = replace(
        run.trainer,
        global_batch_size=found.sequences,
        micro_batch_size=found.micro_batch_size or run.trainer.micro_batch_size,
    )
    assert accumulation(run.trainer, devices) >= accumulation(trainer, devices) >= 1


def test_what_does_not_fit_is_not_tried() -> None:
    assert sample(T4, SHAPE, flops=1e9, seconds=60) is None
    least = step_seconds(T4, SHAPE, 1, 100e9)
    assert taken(100e9, 2.1 * least).sequences == 1
    assert sample(T4, SHAPE, 100e9, 1.9 * least) is None


def test_a_short_run_is_not_made_longer_than_needed() -> None:
    short = replace(T4, trainer=replace(T4.trainer, max_steps=10))
    found = sample(short, SHAPE, 1e15, 1000)
    assert found is not None
    assert found.steps == 8  # even, and stopped before its end
    shortest = replace(T4, trainer=replace(T4.trainer, max_steps=1))
    found = sample(shortest, SHAPE, 1e15, 1000)
    assert found is not None
    assert found.steps == 2


def test_muon_is_counted() -> None:
    course = compose(["experiment=course"])
    assert step_seconds(course, SHAPE, 1, 1e12) < step_seconds(T4, SHAPE, 1, 1e12)
