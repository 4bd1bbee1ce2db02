"""A loop by hand around gpt2.py, bf16 and compiled: nanoGPT's model and recipe; `python gpt2_loop.py RACE_JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from clock import Clock, Race

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpt2 import GPT2, GPT2Config, configure_adamw


def main() -> None:
    """Train and report."""
    race, clock = Race(**json.loads(sys.argv[1])), Clock()
    model = GPT2(
        GPT2Config(race.vocab_size, race.block_size, race.n_layer, race.n_head, race.n_embd)
    )
    optimizer = configure_adamw(model, lr=1e-3)
    if race.compiled:
        model.compile()
    for step in range(race.steps):
        batch = race.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    clock.report(race.out, parameters=model.num_params())


if __name__ == "__main__":
    main()
