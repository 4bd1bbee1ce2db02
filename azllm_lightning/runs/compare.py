"""Compare two run folders bit for bit: their curves and their full states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from azllm_lightning.cli.messages import tr
from azllm_lightning.formats.load import read_checkpoint
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars

MEASURED = {"tokens_per_sec", "mfu", "peak_memory_gb"}
"""Scalars that measure time or memory, which differ between any two runs."""

STATES = ("state_dict", "optimizer_states", "lr_schedulers", "branches")
"""The parts of a full state that are compared; only trainings with branches have the last."""


def first_difference(left: Path, right: Path) -> str | None:
    """The first difference of two run folders, as a message; None if there is none.

    Logged values come first, by step, then the full states that both runs have.
    """
    return _curve_difference(left, right) or _state_difference(left, right)


def _curve_difference(left: Path, right: Path) -> str | None:
    curves = [read_scalars(left), read_scalars(right)]
    points = {
        (step, tag) for curve in curves for tag in curve.keys() - MEASURED for step in curve[tag]
    }
    for step, tag in sorted(points):
        values = [curve.get(tag, {}).get(step) for curve in curves]
        if str(values[0]) != str(values[1]):  # as text, since nan is not equal to nan
            return tr(
                "step {step}: {tag} is {left_value} in {left}, {right_value} in {right}",
                step=step,
                tag=tag,
                left=left.parent.name,
                left_value=values[0],
                right=right.parent.name,
                right_value=values[1],
            )
    return None


def _state_difference(left: Path, right: Path) -> str | None:
    files = [dict(step_files(folder / "checkpoints")) for folder in (left, right)]
    for step in sorted(files[0].keys() & files[1].keys()):
        states = [read_checkpoint(file[step]) for file in files]
        for part in STATES:
            mine, others = (dict(_leaves(state.get(part, {}), part)) for state in states)
            for name in sorted(mine.keys() | others.keys()):
                if not _equal(mine.get(name), others.get(name)):
                    return tr(
                        "step {step}: {name} differs in {file}",
                        step=step,
                        name=name,
                        file=files[0][step].name,
                    )
    return None


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and bool(value == other)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in nested dicts and lists."""
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, f"{name}/{key}")
