"""The text around a run: what is about to be trained, how each validation went, and what became of it; 80 columns."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from azllm_lightning.callbacks.words import Words
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.checkpoint_files import BEST
from azllm_lightning.runs.folder import Run
from azllm_lightning.training import hardware
from azllm_lightning.training.saving import KEEP

WIDTH, LABEL = 80, 10
MOST_ROWS = 12
"""Validations shown at the end; the curves have them all."""


class Validation(NamedTuple):
    """One validation: losses in nats a token; train_loss, since the one before, is unknown before the first step."""

    step: int
    train_loss: float | None
    val_loss: float
    val_ppl: float
    val_bpb: float

    @property
    def gap(self) -> float | None:
        """How much worse the model does on text it was not trained on."""
        return None if self.train_loss is None else self.val_loss - self.train_loss


def best_of(validations: Sequence[Validation]) -> Validation | None:
    """The one of lowest val_loss; that of step 0 is of an untrained model and does not count."""
    trained = [row for row in validations if row.step and math.isfinite(row.val_loss)]
    return min(trained, key=lambda row: row.val_loss, default=None)


def start_panel(config: RunConfig, run: Run, data: TokenDataModule, device: str) -> str:
    """What is about to be trained, on what, for how long.

    About 20 tokens a parameter make the best model of a given compute (Hoffmann et al. 2022, arXiv:2203.15556).
    """
    words, model, trainer = Words(config.lang), config.shape, config.trainer
    devices = hardware.num_devices(trainer.devices, device)
    tokens = trainer.global_batch_size * model.block_size
    total, available = trainer.max_steps * tokens, data.train_windows.num_windows * model.block_size
    size = {
        "layers": model.n_layer,
        "width": model.n_embd,
        "heads": model.n_head,
        "context": model.block_size,
    }
    where = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else words("cpu", threads=torch.get_num_threads())
    )
    compiled = words("compiled" if trainer.compile else "not_compiled")
    needed, free = (
        checkpoint_bytes(model, trainer, config.optimizer),
        shutil.disk_usage(run.folder).free,
    )
    length = {
        "steps": trainer.max_steps,
        "tokens": tokens,
        "total": _count(total),
        "passes": _ratio(total, available),
    }
    hardware_used = ", ".join(
        [f"{devices} x {where}" if devices > 1 else where, str(trainer.precision), compiled]
    )
    disk = words("disk_use", needed=_bytes(needed), free=_bytes(free)) + (
        words("disk_short") if needed > free else ""
    )
    shape = words("model_size", params=_count(model.num_params()), vocab=model.vocab_size, **size)
    rows = [
        *verbatim(words("run"), str(run.folder)),
        *prose(words("model"), shape),
        *prose(
            words("data"),
            words("data_size", tokens=available, windows=len(data.chosen_val_windows())),
        ),
        *verbatim("", str(data.folder)),
        *prose(words("steps"), words("length", **length)),
        *prose("", words("chinchilla", ratio=_ratio(total, model.num_params()))),
        *prose(words("hardware"), hardware_used),
        *prose(words("disk"), disk),
    ]
    return "\n".join(rows)


def checkpoint_bytes(model: GPTConfig, trainer: TrainerConfig, optimizer: OptimizerConfig) -> int:
    """About what a run's checkpoints come to: the full states kept, and the best weights, all in fp32.

    AdamW keeps two moments of each parameter, Muon one of each hidden matrix.
    """
    params = model.num_params()
    tables = model.vocab_size * model.n_embd * (1 if model.tie_embeddings else 2)
    state = 12 * params - (4 * (params - tables) if isinstance(optimizer, MuonConfig) else 0)
    return (
        min(KEEP, math.ceil(trainer.max_steps / trainer.checkpoint_every_steps)) * state
        + 4 * params
    )


def end_panel(
    words: Words,
    run: Run,
    validations: Sequence[Validation],
    last: Mapping[str, float],
    summary: Mapping[str, Any],
    commands: Mapping[str, str],
) -> str:
    """What became of the run: its validations, the sources of the `last`, its best checkpoint, what to type next.

    `commands` are under the keys of their labels.
    """
    done = words("done_in", steps=summary["steps"], time=duration(words, summary["wall_seconds"]))
    rate = summary["tokens_per_sec"]
    rows = ["", *table(words, validations), ""]
    by_source = {
        tag.partition("/")[2]: loss
        for tag, loss in last.items()
        if tag.startswith("val_loss_by_source/")
    }
    if by_source:
        listed = ", ".join(
            f"{name}\u00a0{loss:.4f}" for name, loss in by_source.items()
        )  # no figure without its name
        rows += [row.replace("\u00a0", " ") for row in prose(words("sources"), listed)]
    rows += prose(words("done"), done if rate is None else f"{done}, {words('rate', rate=rate)}")
    if summary["best_val_loss"] is not None:
        rows += prose(
            words("best"),
            words("best_at", loss=summary["best_val_loss"], step=summary["best_step"]),
        )
        rows += verbatim("", str(run.checkpoints / BEST))
    for label, command in commands.items():
        rows += verbatim(words(label), command)
    return "\n".join(rows)


def table(words: Words, validations: Sequence[Validation]) -> list[str]:
    """Lines of a table, at most MOST_ROWS validations: evenly thinned, with first, last and best among them."""
    best, last = best_of(validations), len(validations) - 1
    evenly = {
        round(i * last / (MOST_ROWS - 2)) for i in range(MOST_ROWS - 1)
    }  # one is left for the best
    rows = [
        row for i, row in enumerate(validations) if last < MOST_ROWS or i in evenly or row is best
    ]
    columns = ("step", "train_loss", "val_loss", "ppl", "bpb", "gap")
    cells = [[words(f"column_{name}") for name in columns]]
    for row in rows:
        losses = [_number(row.train_loss), _number(row.val_loss), ppl(row.val_ppl)]
        cells.append([f"{row.step:,}", *losses, _number(row.val_bpb), _number(row.gap)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    marks = ["", *("  " + words("new_best") if row is best else "" for row in rows)]
    return [line + mark for line, mark in zip(lines, marks, strict=True)]


def validation_line(words: Words, validations: Sequence[Validation], max_steps: int) -> str:
    """The last of `validations` in one line, with an arrow for its way since the one before, and against the best."""
    row, before = validations[-1], validations[:-1]
    step = f"{row.step:{len(str(max_steps))}d}"
    line = words(
        "validation",
        step=step,
        loss=_number(row.val_loss),
        ppl=ppl(row.val_ppl),
        bpb=_number(row.val_bpb),
    )
    if not before or not math.isfinite(row.val_loss - before[-1].val_loss):
        return line
    change = row.val_loss - before[-1].val_loss
    line += f"  {'↓' if change < 0 else '↑'} {abs(change):.3f}"
    best = best_of(before)
    if best is None or row.val_loss < best.val_loss:
        return f"{line}  {words('new_best')}"
    return line + "  " + words("above_best", gap=row.val_loss - best.val_loss)


def duration(words: Words, seconds: float) -> str:
    """A span of time in its two largest units: 45 s, 2 min 26 s, 1 h 40 min."""
    left, parts = round(seconds), list[str]()
    for size, unit in zip((86400, 3600, 60, 1), words("units").split(), strict=True):
        number, left = divmod(left, size)
        if number or parts or size == 1:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def ppl(value: float) -> str:
    """A perplexity to as many digits as mean something."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(number: int) -> str:
    return (
        f"{number:,}"
        if number < 1e6
        else f"{number / 1e6:.1f} M"
        if number < 1e8
        else f"{number / 1e6:,.0f} M"
    )


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:,.1f}" if part >= 0.1 * whole else f"{part / whole:.1g}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def prose(label: str, text: str) -> list[str]:
    """Lines of a panel: a label and text, broken between words."""
    return textwrap.wrap(f"{label:<{LABEL}}{text}", WIDTH, subsequent_indent=" " * LABEL)


def verbatim(label: str, text: str) -> list[str]:
    """A path or a command, to be copied as it stands: where it is too long, it begins a line of its own."""
    if len(text) <= WIDTH - LABEL:
        return [f"{label:<{LABEL}}{text}"]
    return [*([label] if label else []), f"  {text}"]
