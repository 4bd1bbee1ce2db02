from __future__ import annotations

from typing import Any

import pytest
from runs import Probe
from tensorboard.summary.writer import event_file_writer
from torch import Tensor

from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM


@pytest.fixture(autouse=True)
def _count_event_files_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files of one second are told apart by a number that starts at 0 in each process; here, in each test."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    probe = Probe()
    training_step, forward = CausalLM.training_step, GPT.forward
    factor = 1.0

    def watched(self: CausalLM, batch: Tensor, batch_idx: int) -> Tensor:
        nonlocal factor
        probe.module = self
        step, micro = self.trainer.global_step, batch_idx % self.trainer.accumulate_grad_batches
        if micro == 0:
            probe.windows[step] = []
        probe.windows[step] += batch.tolist()
        if (action := probe.actions.pop((step, micro), None)) is not None:
            action()
        factor = probe.factor(step, batch)
        try:
            return training_step(self, batch, batch_idx)
        finally:
            factor = 1.0

    def distorted(self: GPT, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = forward(self, *args, **kwargs)
        return out if factor == 1 else out * factor

    monkeypatch.setattr(CausalLM, "training_step", watched)
    monkeypatch.setattr(GPT, "forward", distorted)
    return probe
