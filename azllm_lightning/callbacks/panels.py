"""What the terminal shows around a run: its plan, each validation, and the outcome."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

import torch

from azllm_lightning.callbacks.history import Validation, best_of
from azllm_lightning.callbacks.summary import RunSummary
from azllm_lightning.callbacks.tensorboard import ADDRESS
from azllm_lightning.callbacks.text import (
    WIDTH,
    count_text,
    duration,
    labeled,
    loss_text,
    one_line,
    perplexity_text,
    ratio_text,
    size_text,
    sparkline,
    verbatim,
)
from azllm_lightning.cli.colors import LABEL
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.overrides import command
from azllm_lightning.cli.shell import for_shell
from azllm_lightning.config.resume import own_entries
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.checkpoint_files import BEST
from azllm_lightning.runs.folder import Run
from azllm_lightning.runs.paths import REPORT, address_of, resume_address_of
from azllm_lightning.training.affixes import PER_TOKEN
from azllm_lightning.training.branches import kept_bytes
from azllm_lightning.training.saving import KEEP
from azllm_lightning.training.schedule import Branching

MAX_ROWS = 12
"""Maximum number of validations in the table at the end; the curves have all of them."""

CURVE = 20
"""Columns of the curve of val_loss."""


def start_panel(
    config: RunConfig, run: Run, data: TokenDataModule, device: str, devices: int = 1
) -> str:
    """The model, data, length and hardware of a run that is about to start; `config` is settled."""
    model = config.shape
    windows = data.train_windows
    shape = tr(
        "{params} parameters: {layers} x {width}, {heads}, "
        "vocabulary {vocab:,}, context {context:,}",
        params=count_text(model.num_params()),
        layers=model.n_layer,
        width=model.n_embd,
        heads=trn("{count} head", "{count} heads", model.n_head),
        vocab=model.vocab_size,
        context=model.block_size,
    )
    num_windows = len(data.chosen_val_windows())
    sizes = [
        tr("{tokens:,} training tokens", tokens=windows.unique_windows * model.block_size),
        trn("{count:,} validation window", "{count:,} validation windows", num_windows),
    ]
    rows = [
        verbatim(tr("run"), str(run.folder)),
        labeled(tr("model"), shape),
        *([labeled(tr("teachers"), _teachers(config))] if config.teachers else []),
        labeled(tr("data"), ", ".join(sizes)),
        verbatim("", str(data.folder)),
        labeled(tr("steps"), _length(config, windows.num_windows * model.block_size)),
        labeled(tr("hardware"), _hardware(config.trainer, device, devices)),
        labeled(tr("disk"), _disk(run, config)),
    ]
    return "\n".join(rows)


def _teachers(config: RunConfig) -> str:
    models = trn("{count} model", "{count} models", len(config.teacher_paths))
    return tr(
        "{models}, whose mean prediction is {share:.0%} of the target",
        models=models,
        share=config.teacher_share,
    )


def _length(config: RunConfig, tokens_per_pass: int) -> str:
    """Steps, tokens and epochs, or passes of data.mix.

    About 20 tokens per parameter are best for a given amount of compute (Hoffmann et al. 2022,
    arXiv:2203.15556).
    """
    tokens_per_step = config.trainer.global_batch_size * config.shape.block_size
    total = config.trainer.max_steps * tokens_per_step
    fields = {
        "steps": config.trainer.max_steps,
        "tokens": tokens_per_step,
        "total": count_text(total),
        "epochs": ratio_text(total, tokens_per_pass),
        "ratio": ratio_text(total, config.shape.num_params()),
    }
    if config.data.weights:
        return tr(
            "{steps:,} x {tokens:,} tokens = {total} tokens ({epochs} passes of data.mix; {ratio} "
            "tokens per parameter, Chinchilla ~20)",
            **fields,
        )
    return tr(
        "{steps:,} x {tokens:,} tokens = {total} tokens ({epochs} epochs; {ratio} tokens per "
        "parameter, Chinchilla ~20)",
        **fields,
    )


def _hardware(trainer: TrainerConfig, device: str, devices: int) -> str:
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = trn("cpu, {count} thread", "cpu, {count} threads", torch.get_num_threads())
    if devices > 1:
        name = f"{devices} x {name}"
    compiled = (
        tr("compiled (the first step takes a while)") if trainer.compile else tr("not compiled")
    )
    return ", ".join([name, trainer.precision, compiled])


def _disk(run: Run, config: RunConfig) -> str:
    free = shutil.disk_usage(run.folder).free
    needed = checkpoint_bytes(config)
    files = [path for path in run.checkpoints.glob("*.ckpt") if not path.is_symlink()]
    present = sum(path.stat().st_size for path in files)
    if needed - present > free:
        return tr(
            "not enough space: checkpoints need about {needed}, {free} are free",
            needed=size_text(needed),
            free=size_text(free),
        )
    return tr(
        "checkpoints need about {needed}; {free} are free",
        needed=size_text(needed),
        free=size_text(free),
    )


def checkpoint_bytes(config: RunConfig) -> int:
    """About the size of all checkpoints at most: the full states kept and a further one, since each
    is written before the oldest goes, and the best weights (in fp32).
    """
    trainer = config.trainer
    states = KEEP + 1
    if trainer.checkpoint_every_minutes is None:
        states = min(states, math.ceil(trainer.max_steps / trainer.checkpoint_every_steps))
    return states * _state_bytes(config) + 4 * config.shape.num_params()


def _state_bytes(config: RunConfig) -> int:
    """About the size of a full state.

    Token tables and norms have the two moments of AdamW, and with Muon so have the affixes of
    tokens; how many the matrices of the layers have depends on the optimizer.
    """
    model = config.shape
    params = model.num_params()
    tables = model.vocab_size * model.n_embd * (1 if model.tie_embeddings else 2)
    moments = 2 * tables + config.optimizer.hidden_moments * (params - tables)
    if config.optimizer.shares_affixes:
        moments += int(2 * PER_TOKEN * tables)
    state = 4 * (params + moments)
    if config.schedule.branches > 1:
        state += int(kept_bytes(state, 4 * params))
    return state


def validation_line(validations: Sequence[Validation], max_steps: int) -> str:
    """The last of `validations`, compared with the one before and with the best."""
    row = validations[-1]
    before = validations[:-1]
    line = tr(
        "step {step}  val_loss {loss}  ppl {ppl}  bpb {bpb}",
        step=f"{row.step:{len(str(max_steps))}d}",
        loss=f"{loss_text(row.val_loss):>6}",
        ppl=f"{perplexity_text(row.val_ppl):>6}",
        bpb=f"{loss_text(row.val_bpb):>6}",
    )
    if not before or not math.isfinite(row.val_loss - before[-1].val_loss):
        return line
    change = row.val_loss - before[-1].val_loss
    line += f"  {'↓' if change < 0 else '↑'} {abs(change):.3f}"
    best = best_of(before)
    if best is None or row.val_loss < best.val_loss:
        return f"{line}  {tr('best')}"
    return f"{line}  {tr('+{gap:.3f} above best', gap=row.val_loss - best.val_loss)}"


def branch_texts(branches: Branching, step: int) -> list[str]:
    """That a second or later branch begins after `step` steps, and for the second what val_loss is
    from there on.
    """
    begins = tr(
        "branch {number} of {count} begins, from the state of step {start:,}",
        number=branches.number(step) + 1,
        count=branches.count,
        start=branches.start,
    )
    if step > branches.first_end:
        return [begins]
    return [begins, tr("from here on val_loss is that of the mean of the branches")]


def sample_line(validations: Sequence[Validation], text: str) -> str:
    """val_loss of the trained model so far as a curve, and what it writes now; "" without both."""
    curve = loss_curve(validations)
    indent = " " * 2
    room = WIDTH - len(indent) - (len(curve) + 2 if curve else 0)
    parts = [part for part in (curve, one_line(text, room)) if part]
    return indent + "  ".join(parts) if text else ""


def loss_curve(validations: Sequence[Validation]) -> str:
    """val_loss as a curve, without the untrained model, whose loss would flatten the rest."""
    return sparkline([row.val_loss for row in validations if row.step], CURVE)


def end_panel(
    run: Run,
    validations: Sequence[Validation],
    last: Mapping[str, float],
    summary: RunSummary,
    longer: str | None,
    better: str | None = None,
    sample: str = "",
    gap: str = "",
) -> str:
    """The outcome of a run: its validations, losses by source, what to type next.

    `longer` is the command that trains it on; `better` is that of a run that avoids the problem of
    this one. `sample` is a text by the model. `gap` is what the
    gap between the two losses means.
    """
    rows = ["", *table(validations), ""]
    if by_source := _sources(last):
        rows.append(by_source)
    done = trn(
        "{count:,} step in {time}",
        "{count:,} steps in {time}",
        summary.steps,
        time=duration(summary.wall_seconds),
    )
    if summary.tokens_per_sec is not None:
        # The median step: without validation and saving, which the time includes.
        done += ", " + tr("{rate:,.0f} tokens/s per step", rate=summary.tokens_per_sec)
    rows.append(labeled(tr("done"), done))
    if curve := loss_curve(validations):
        rows.append(labeled(tr("curve"), f"val_loss {curve}"))
    if summary.best_val_loss is not None:
        rows.append(labeled(tr("best"), _best(summary)))
        rows.append(verbatim("", str(run.checkpoints / BEST)))
    if gap:
        rows.append(labeled(tr("gap"), gap))
    if sample:
        rows.append(f"{tr('writes'):<{LABEL}}{one_line(sample, WIDTH - LABEL)}")
    if (run.folder / REPORT).is_file():
        rows.append(verbatim(tr("page"), str(run.folder / REPORT)))
    rows.append(verbatim(tr("watch"), f"tensorboard --logdir {for_shell(str(run.logs))}"))
    rows.append(verbatim("", ADDRESS))
    address = address_of(run.folder)
    rows.append(verbatim(tr("talk"), command("generate", address)))
    rows.append(verbatim("", command("chat", address)))
    export = command("export", [*address, f"out={run.name}_hf"])
    rows.append(verbatim(tr("export"), export))
    if longer is not None:
        rows.append(verbatim(tr("train longer"), longer))
    if better is not None:
        rows.append(verbatim(tr("next time"), better))
    return "\n".join(rows)


def _best(summary: RunSummary) -> str:
    if summary.best_step == summary.steps:
        return tr(
            "val_loss {loss:.4f} at step {step:,}",
            loss=summary.best_val_loss,
            step=summary.best_step,
        )
    return tr(
        "val_loss {loss:.4f} at step {step:,}, which generate and export use",
        loss=summary.best_val_loss,
        step=summary.best_step,
    )


def longer_command(run: Run, steps: int, typed: Sequence[str] = ()) -> str:
    """The command that extends a finished run to `steps`, its schedule included; `typed` is what
    was typed for it.
    """
    settings = [f"trainer.max_steps={steps}", f"schedule.total_steps={steps}"]
    return command("train", [*resume_address_of(run.folder), *settings, *own_entries(typed)])


def table(validations: Sequence[Validation]) -> list[str]:
    """A table of at most MAX_ROWS validations, as lines, with the first, the last and the best.

    The line after it says how many there are, if not all are shown.
    """
    best = best_of(validations)
    last = len(validations) - 1
    # One row is left for the best.
    evenly = {round(i * last / (MAX_ROWS - 2)) for i in range(MAX_ROWS - 1)}
    rows = [
        row for i, row in enumerate(validations) if last < MAX_ROWS or i in evenly or row is best
    ]
    # Not the train_loss of a step, which the curves show.
    cells = [[tr("step"), tr("mean train_loss"), "val_loss", "ppl", "bpb", tr("gap")]]
    for row in rows:
        losses = [loss_text(row.train_loss), loss_text(row.val_loss)]
        rest = [perplexity_text(row.val_ppl), loss_text(row.val_bpb), loss_text(row.gap)]
        cells.append([f"{row.step:,}", *losses, *rest])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    marks = ["", *(f"  {tr('best')}" if row is best else "" for row in rows)]
    lines = [line + mark for line, mark in zip(lines, marks, strict=True)]
    if len(rows) < len(validations):
        lines.append(
            tr(
                "{shown} of {count} validations; TensorBoard has all",
                shown=len(rows),
                count=len(validations),
            )
        )
    return lines


def _sources(values: Mapping[str, float]) -> str:
    prefix = "val_loss_by_source/"
    # A no-break space keeps each number on the line of its name.
    losses = [
        f"{tag.removeprefix(prefix)}\u00a0{loss:.4f}"
        for tag, loss in values.items()
        if tag.startswith(prefix)
    ]
    return labeled(tr("sources"), ", ".join(losses)).replace("\u00a0", " ") if losses else ""
