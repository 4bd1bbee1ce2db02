"""summary.json: what became of a run, over all its sessions."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.throughput import Throughput, peak_memory_bytes
from azllm_lightning.runs.atomic import write_json
from azllm_lightning.runs.folder import Run
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.saving import BestCheckpoint


class Summary(Callback):
    """Gathers the run's figures; its state (time and resumes so far) travels in the checkpoints."""

    def __init__(
        self, run: Run, best: BestCheckpoint, throughput: Throughput, settled: dict[str, Any]
    ) -> None:
        self.run, self.best, self.throughput, self.settled = run, best, throughput, settled
        self.resumed_from: list[str] = []
        self.starts_from: str | None = None
        """The checkpoint that this session resumes from."""
        self._earlier_seconds, self._started = 0.0, time.monotonic()

    @property
    def wall_seconds(self) -> float:
        """Seconds spent in all sessions that the present state goes back to."""
        return self._earlier_seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed session adds to."""
        return {"wall_seconds": self.wall_seconds, "resumed_from": list(self.resumed_from)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier session's figures."""
        self._earlier_seconds, self.resumed_from = (
            state_dict["wall_seconds"],
            list(state_dict["resumed_from"]),
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the resume, now that the state of the sessions before is back."""
        if self.starts_from is not None:
            self.resumed_from.append(self.starts_from)

    def write(self, trainer: Trainer, pl_module: LightningModule, status: str) -> dict[str, Any]:
        """Write summary.json with `status` "done" or "stopped", and return what it says."""
        assert isinstance(pl_module, CausalLM)
        score = self.best.best_model_score
        metrics = pl_module.last_validation
        values = {
            "run_name": self.run.name,
            "version": self.run.version,
            "status": status,
            "steps": trainer.global_step,
            "tokens_seen": pl_module.tokens_seen,
            "val_loss": metrics.get("val_loss"),
            "val_ppl": metrics.get("val_ppl"),
            "val_bpb": metrics.get("val_bpb"),
            "best_val_loss": None if score is None else float(score),
            "best_step": self.best.best_step,
            "tokens_per_sec": self.throughput.median(trainer, pl_module),
            "wall_seconds": self.wall_seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            **self.settled,
            "num_params": pl_module.model_config.num_params(),
            "resumed_from": self.resumed_from,
        }
        if trainer.is_global_zero:
            write_json(self.run.folder / "summary.json", values)
        return values
