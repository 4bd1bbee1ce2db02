"""The learning rate as a pure function of the step, so that a resume needs nothing but the step."""

from __future__ import annotations

import math

from azllm_lightning.config.schedule import ScheduleConfig

POWER = 0.6
"""Exponent of "power": 4 % fewer tokens to a loss than with a line in short runs, and none more in
longer ones (benchmarks/LOG.md).
"""


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """The factor on the peak learning rate for optimizer step number `step` (0 is the first).

    The warm-up is linear and reaches 1 after `warmup_steps`. The rate stays at 1, falls to
    `min_lr_ratio` during the last `decay_ratio` of the `total_steps`, and then stays there. It
    falls along a line to the POWER, a line, a half cosine (Loshchilov and Hutter 2017), or 1 - sqrt
    (Hägele et al. 2024, arXiv:2405.18392; with a short decay, "warm-up, stable, decay").
    """
    assert config.total_steps is not None, "total_steps was resolved before training"
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    start = max(config.warmup_steps, round(config.total_steps * (1 - config.decay_ratio)))
    progress = min(1.0, max(0.0, (step - start) / max(1, config.total_steps - start)))
    shape = {
        "power": math.pow(1 - progress, POWER),
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "sqrt": 1 - math.sqrt(progress),
    }[config.name]
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
