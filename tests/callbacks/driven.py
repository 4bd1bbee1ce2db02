"""Callbacks driven by given numbers: a run without a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from lightning.pytorch import Callback

from azllm_lightning.callbacks.history import History, Validation
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.training.causal_lm import CausalLM, StepReport

Row = tuple[int, float | None, float]


def rows(values: Iterable[Row]) -> list[Validation]:
    """Validations of (step, train_loss, val_loss)."""
    return [Validation(step, train, val, math.exp(val), val / 3) for step, train, val in values]


class DrivenRun:
    """Calls the hooks of `callbacks` as Lightning would; `marks` are the scalars that they log."""

    def __init__(self, vocab_size: int = 2048, warmup: int = 40, accumulate: int = 1) -> None:
        self.io: Any = SimpleNamespace(seconds=0.0)
        self.history = History(self.io)
        self.callbacks: list[Callback] = [self.history]
        self.now = 0.0
        """The time, where a test replaces time.perf_counter by it."""
        self.marks: list[tuple[str, int]] = []
        data = Mock(spec=TokenDataModule)
        data.config = SimpleNamespace(num_workers=0)
        data.global_batch_size = 8
        data.micro_batch_size = 4
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=accumulate,
            callback_metrics={},
            datamodule=data,
            global_step=0,
            is_global_zero=True,
            loggers=[SimpleNamespace(log_metrics=self._log, save=lambda: None)],
            max_steps=10**9,
            sanity_checking=False,
            should_stop=False,
            val_check_interval=20 * accumulate,
            world_size=1,
        )
        self.module = Mock(spec=CausalLM)
        self.module.model_config = SimpleNamespace(
            vocab_size=vocab_size, block_size=32, dropout=0.0, flops_per_token=lambda: 1000
        )
        self.module.schedule_config = SimpleNamespace(warmup_steps=warmup)
        self.module.optimizer_config = SimpleNamespace(lr=3e-3)
        self.module.teachers = None
        self.module.device = SimpleNamespace(type="cpu")
        self.module.logs_now = False
        self.module.step_report = None
        self.module.is_within_branch = False
        self.module.began_branch = lambda steps_ago=0: False
        self.module.last_validation = {}

    def _log(self, values: dict[str, float], step: int) -> None:
        self.marks += [(tag.removeprefix("diagnosis/"), step) for tag in values]

    def call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.trainer, self.module, *args)

    def resume(self, callbacks: list[Callback]) -> None:
        """Continue with new callbacks, from what a checkpoint would hold of the old ones."""
        for old, new in zip(self.callbacks, callbacks, strict=True):
            new.load_state_dict(json.loads(json.dumps(old.state_dict())))
        assert isinstance(callbacks[0], History)
        self.history = callbacks[0]
        self.callbacks = callbacks

    def step(
        self,
        loss: float = 3.0,
        norm: float = 1.0,
        scale: float = 1.0,
        wait: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """An optimizer step of one micro-batch, which takes `seconds` after a `wait` for it."""
        self.module.step_report = None
        self.now += wait
        self.call("on_train_batch_start", None, 0)
        self.now += seconds
        self.trainer.global_step += 1
        self.module.step_report = StepReport(loss, norm, 3e-3, scale)
        self.call("on_train_batch_end", None, None, 0)

    def validate(self, row: Row) -> None:
        """A validation after step row[0]."""
        step, train_loss, val_loss = row
        self.trainer.global_step = step
        self.call("on_validation_start")
        values = {"val_loss": val_loss, "val_ppl": math.exp(val_loss), "val_bpb": val_loss / 3}
        if train_loss is not None:
            values["generalization_gap"] = val_loss - train_loss
        self.module.last_validation = values
        self.call("on_validation_end")
