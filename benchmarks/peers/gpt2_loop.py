"""nanoGPT's model and recipe in a hand-written loop, compiled; `python gpt2_loop.py RACE_JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from clock import Clock, Race

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpt2 import GPT2, GPT2Config, configure_adamw


def train(race: Race) -> None:
    """Train and report."""
    clock = Clock()
    sizes = (race.vocab_size, race.block_size, race.n_layer, race.n_head, race.n_embd)
    model = GPT2(GPT2Config(*sizes))
    optimizer = configure_adamw(model, lr=1e-3)
    if race.compiled:
        model.compile()
    for step in range(race.steps):
        batch = race.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=race.is_bf16):
            loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    clock.report(race, race.number_type, parameters=model.num_params())


if __name__ == "__main__":
    train(Race(**json.loads(sys.argv[1])))
