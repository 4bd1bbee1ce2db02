"""The names of settings: known, renamed and misspelled ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from azllm_lightning.cli.messages import tr

RENAMED = {
    "data.batch_size": "trainer.micro_batch_size",
    "trainer.accumulate_grad_batches": "trainer.global_batch_size",
}
"""Keys of earlier versions and their present names; the old ones are refused."""


ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "batch_size": "trainer.global_batch_size",
    "gradient_accumulation_steps": "trainer.global_batch_size",
    "num_layers": "model.n_layer",
    "num_hidden_layers": "model.n_layer",
    "num_heads": "model.n_head",
    "num_attention_heads": "model.n_head",
    "hidden_size": "model.n_embd",
    "d_model": "model.n_embd",
    "max_length": "data.block_size",
    "context_length": "data.block_size",
    "max_iters": "trainer.max_steps",
    "epochs": "trainer.max_steps",
    "max_epochs": "trainer.max_steps",
}
"""What other tools call our settings."""


def keys_of(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a config with its path: trainer, trainer.max_steps, ..."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message about an unknown `key`: its new name if it was renamed, else the nearest known
    one.
    """
    known = list(known)
    if key in RENAMED:
        return tr(
            "{key} is now {new}: trainer.global_batch_size is the number of sequences per "
            "optimizer step, trainer.micro_batch_size the number that a device processes at once",
            key=key,
            new=RENAMED[key],
        )
    if key in known:  # a key of the defaults, which the choice made here does not have
        group = key.partition(".")[0]
        return tr("{key} is not a setting of the chosen {group}: omit it", key=key, group=group)
    near = _nearest(key, known)
    if near is not None:
        return tr("unknown setting {key}; did you mean {near}?", key=key, near=near)
    return tr("unknown setting {key}", key=key)


def _nearest(key: str, known: list[str]) -> str | None:
    """What was meant by `key`: it may be the name of a setting without its group, or in another."""
    name = _name(key)
    if ELSEWHERE.get(name) in known:
        return ELSEWHERE[name]
    found = [each for each in known if _name(each) == name]
    found = found or difflib.get_close_matches(key, known)
    if not found:
        names = difflib.get_close_matches(name, set(map(_name, known)), n=1)
        found = [each for each in known if _name(each) in names]
    # Of several groups that have such a name, the one that looks most like what was typed.
    return next(iter(difflib.get_close_matches(key, found, n=1, cutoff=0.0)), None)


def _name(key: str) -> str:
    return key.rpartition(".")[2]
