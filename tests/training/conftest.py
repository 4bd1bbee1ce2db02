from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import Probe
from torch import Tensor

from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    probe = Probe()
    training_step, forward = CausalLM.training_step, GPT.forward
    poisoned = False

    def watched(self: CausalLM, batch: Tensor, batch_idx: int) -> Tensor:
        nonlocal poisoned
        step, micro = self.trainer.global_step, batch_idx % self.trainer.accumulate_grad_batches
        if micro == 0:
            probe.windows[step] = []
        probe.windows[step] += batch.tolist()
        if (action := probe.actions.pop((step, micro), None)) is not None:
            action()
        poisoned = probe.poisoned(step, batch)
        try:
            return training_step(self, batch, batch_idx)
        finally:
            poisoned = False

    def poisonable(self: GPT, *args: Any, **kwargs: Any) -> Tensor:
        out = forward(self, *args, **kwargs)
        return out * torch.nan if poisoned else out

    monkeypatch.setattr(CausalLM, "training_step", watched)
    monkeypatch.setattr(GPT, "forward", poisonable)
    return probe
