"""How much of an experiment fits into the time that a check has."""

from __future__ import annotations

from dataclasses import dataclass

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.planning.speed import EFFICIENCY, muon_flops
from azllm_lightning.training.batch import divisors

MOST_STEPS = 20


@dataclass(frozen=True)
class Sample:
    """The part of a run that is trained: `steps` steps, an even number, of `sequences` each."""

    steps: int
    sequences: int
    micro_batch_size: int | None
    """None: as the run has it."""
    step_seconds: float
    """What a step is expected to take."""

    @property
    def half(self) -> int:
        """The step from which the resumed run continues."""
        return self.steps // 2


def sample(
    config: RunConfig, shape: GPTConfig, flops: float, seconds: float, devices: int = 1
) -> Sample | None:
    """The largest sample that takes about `seconds` where products run at `flops` FLOP/s.

    Steps are left out first, then sequences of a step, since the model keeps its real shape. None
    if not even two steps of one sequence for each of `devices` fit.
    """
    share = config.trainer.global_batch_size // devices
    most = min(MOST_STEPS, max(2, config.trainer.max_steps - 1))
    for part in reversed(divisors(share, at_most=share)):
        sequences = part * devices
        step = step_seconds(config, shape, sequences, flops)
        fitting = min(most, int(seconds / step))
        if fitting >= (4 if part > 1 and most >= 4 else 2):
            steps = fitting - fitting % 2
            return Sample(steps, sequences, _micro_batch(config, part), step)
    return None


def step_seconds(config: RunConfig, shape: GPTConfig, sequences: int, flops: float) -> float:
    """What a step of `sequences` should take: its products, and those of the optimizer."""
    model = sequences * shape.block_size * shape.flops_per_token() / EFFICIENCY
    muon = isinstance(config.optimizer, MuonConfig)
    optimizer = muon_flops(shape) if muon else 0.0
    return (model + optimizer) / flops


def _micro_batch(config: RunConfig, share: int) -> int | None:
    """The micro-batch of a reduced step, of which a device takes `share` sequences; None where that
    of the run stays.
    """
    micro = config.trainer.micro_batch_size
    if micro == "auto" or share % micro == 0:
        return None
    return max(divisors(share, at_most=micro))
