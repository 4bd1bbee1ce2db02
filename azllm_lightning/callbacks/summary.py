"""summary.json: the outcome of a run, over all its sessions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Trainer

from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.throughput import peak_memory_bytes
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.runs.atomic import write_json
from azllm_lightning.runs.folder import Run
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.saving import BestCheckpoint


@dataclass(frozen=True)
class RunSummary:
    """The fields of summary.json, in their order there; losses in nats per token."""

    run_name: str
    version: int
    status: str  # "done" or "stopped"
    steps: int
    tokens_seen: int
    val_loss: float | None
    val_ppl: float | None
    val_bpb: float | None
    best_val_loss: float | None
    best_step: int | None
    tokens_per_sec: float | None  # of this session's median step
    wall_seconds: float  # of all sessions
    peak_memory_bytes: int | None
    precision: str
    compile: bool
    num_params: int
    resumed_from: list[str]


class Summary:
    """Writes summary.json into the folder of `run`."""

    def __init__(
        self, run: Run, history: History, best: BestCheckpoint, config: TrainerConfig
    ) -> None:
        self.run = run
        self.history = history
        self.best = best
        self.config = config

    def write(self, trainer: Trainer, module: CausalLM, status: str) -> RunSummary:
        """Write the results with `status` "done" or "stopped", and return them."""
        score = self.best.best_model_score
        validation = module.last_validation
        summary = RunSummary(
            run_name=self.run.name,
            version=self.run.version,
            status=status,
            steps=trainer.global_step,
            tokens_seen=module.tokens_seen,
            val_loss=validation.get("val_loss"),
            val_ppl=validation.get("val_ppl"),
            val_bpb=validation.get("val_bpb"),
            best_val_loss=None if score is None else float(score),
            best_step=self.best.best_step,
            tokens_per_sec=self.history.median_tokens_per_sec(),
            wall_seconds=self.history.clock.wall_seconds,
            # Lightning has moved the module to the CPU by now.
            peak_memory_bytes=peak_memory_bytes(trainer.strategy.root_device.type),
            precision=self.config.precision,
            compile=bool(self.config.compile),
            num_params=module.model_config.num_params(),
            resumed_from=self.history.resumed_from,
        )
        if trainer.is_global_zero:
            values = {name: _finite(value) for name, value in asdict(summary).items()}
            write_json(self.run.folder / "summary.json", values)
        return summary


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
