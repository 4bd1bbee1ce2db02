"""The table of a plan, in lines of at most 80 columns; the last is the command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from azllm_lightning.callbacks.text import count_text, duration, labeled, size_text, verbatim
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.data.hints import Look, hints
from azllm_lightning.machine.busy import how_busy
from azllm_lightning.planning.law import sampling_error

Figures = dict[str, Any]

SENTENCES_BYTES = 5e6
PARAGRAPHS_BYTES = 100e6
"""Text from which on a model writes sentences, and paragraphs, that make sense."""

SHORTER = 0.7
"""A run that takes less than this share of the time given needs no more."""

LONGER = 1.1
"""A run that takes more than this share of it does not fit."""

GAINS = 0.03
"""Share of the loss that more text must gain to be worth a line."""


NOISY = 0.03
"""Error of val_loss, as a share of it, from which on too few documents are held out."""


def plan_table(findings: Figures) -> str:
    """Everything that was planned, for people."""
    plan = findings["plan"]
    rows = [
        labeled(tr("text"), _text(findings["text"])),
        labeled(tr("machine"), _machine(findings["machine"])),
        labeled(tr("plan"), _model(plan)),
        *(labeled("", line) for line in _length(plan)),
        labeled(tr("time"), _time(plan)),
        labeled(tr("needs"), _needs(plan, findings["machine"])),
        labeled(tr("expect"), _loss(plan)),
        *_alternatives(findings),
        *(labeled(tr("note") if not i else "", line) for i, line in enumerate(_notes(findings))),
        verbatim(tr("next"), plan["command"]),
    ]
    return "\n".join(rows)


def _text(text: Figures) -> str:
    size = text["train_bytes"] + text["val_bytes"]
    parts = [
        tr("about {size}", size=_size(size)) if text["is_estimate"] else _size(size),
        trn("{count:,} document", "{count:,} documents", text["num_documents"]),
        _tokens(text),
    ]
    if text["num_duplicates"]:
        parts.insert(2, trn("{count:,} duplicate", "{count:,} duplicates", text["num_duplicates"]))
    return ", ".join(parts)


def _tokens(text: Figures) -> str:
    """The tokens of the training text; "about" until `train` or `prepare` has made the tokenizer
    of all of it.
    """
    tokens = text["unique_tokens"]
    size = text["train_bytes"] / max(1, tokens)
    if text["vocab_size"] is not None:
        return tr(
            "{tokens} training tokens with {bytes:.1f} bytes each",
            tokens=count_text(tokens),
            bytes=size,
        )
    return tr(
        "about {tokens} training tokens with {bytes:.1f} bytes each",
        tokens=count_text(round(tokens, 2 - len(str(tokens)))),
        bytes=size,
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 20e6 else size_text(round(num_bytes))


def _machine(machine: Figures) -> str:
    name = machine["name"] if machine["name"] != "cpu" else tr("cpu")
    rate = tr("{flops:,.1f} GFLOP/s in training", flops=machine["flops"] / 1e9)
    if machine["flops_per_token"] is None:
        return tr(
            "{name}, about {rate}: no steps were measured ({reason})",
            name=name,
            rate=rate,
            reason=machine["not_measured"],
        )
    return f"{name}, {rate}"


def _model(plan: Figures) -> str:
    return tr(
        "{model}: {params} parameters, vocabulary {vocab:,}, context {context:,}",
        model=plan["model"],
        params=count_text(plan["parameters"]),
        vocab=plan["vocab_size"],
        context=plan["block_size"],
    )


def _length(plan: Figures) -> Iterator[str]:
    yield tr(
        "{steps:,} steps of {batch} sequences (micro-batch about {micro}): {passes} passes over "
        "the text",
        steps=plan["steps"],
        batch=plan["global_batch_size"],
        micro=plan["micro_batch_size"],
        passes=_passes(plan["passes"]),
    )
    if plan["branches"] > 1:
        yield tr(
            "of which the last fifth is trained {count} times (schedule.branches={count}); the "
            "val_loss expected is that after the first",
            count=plan["branches"],
        )
    yield tr(
        "weight decay {decay:g}, of token tables {tables:g}, dropout {dropout:g}",
        decay=plan["weight_decay"],
        tables=plan["table_decay"],
        dropout=plan["dropout"],
    )


def _passes(passes: float) -> str:
    return f"{passes:.1f}" if passes < 10 else f"{passes:.0f}"


def _time(plan: Figures) -> str:
    return tr(
        "{duration} ± {error:.0%}, {preparing} of it to prepare the text",
        duration=duration(plan["seconds"]),
        error=plan["time_error"],
        preparing=duration(plan["prepare_seconds"]),
    )


def _needs(plan: Figures, machine: Figures) -> str:
    disk = size_text(round(plan["disk_bytes"]))
    parts = [tr("{size} of memory", size=size_text(round(plan["memory_bytes"])))]
    if machine["free_bytes"] is None:
        parts.append(tr("{size} of disk", size=disk))
    else:
        free = size_text(machine["free_bytes"])
        parts.append(tr("{size} of disk ({free} are free)", size=disk, free=free))
    return ", ".join(parts)


def _loss(plan: Figures) -> str:
    return tr(
        "val_loss {loss:.2f} ± {loss_error:.2f}, bits per byte {bpb:.3f} ± {bpb_error:.3f}",
        loss=plan["val_loss"],
        loss_error=plan["error"] * plan["val_loss"],
        bpb=plan["val_bpb"],
        bpb_error=plan["error"] * plan["val_bpb"],
    )


def _alternatives(findings: Figures) -> Iterator[str]:
    """The plan next to those for half and twice the time."""
    yield ""
    head = (tr("time"), tr("model"), tr("batch"), tr("context"), tr("steps"), tr("passes"))
    yield _columns("", *head, "val_loss", "bpb")
    for key, label in (
        ("half_the_time", tr("half")),
        ("plan", tr("plan")),
        ("twice_the_time", tr("twice")),
    ):
        plan = findings[key]
        yield _columns(
            label,
            duration(plan["seconds"]),
            plan["model"],
            f"{plan['global_batch_size']}",
            f"{plan['block_size']}",
            f"{plan['steps']:,}",
            _passes(plan["passes"]),
            f"{plan['val_loss']:.2f}",
            f"{plan['val_bpb']:.3f}",
        )
    yield ""


def _columns(label: str, *cells: str) -> str:
    widths = (14, 10, 6, 9, 9, 8, 9, 7)
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{label:<8}{row}".rstrip()


def _notes(findings: Figures) -> Iterator[str]:
    plan = findings["plan"]
    machine = findings["machine"]
    if how := how_busy(machine["cpu_share"], machine["others_share"]):
        yield tr(
            "Other programs kept the machine busy ({how}): alone it is faster, so plan again when "
            "it is idle.",
            how=how,
        )
    if plan["seconds"] > LONGER * 3600 * findings["hours"]:
        yield tr(
            "{given} are too short: preparing, starting and the fewest steps that teach anything "
            "take {duration}.",
            given=duration(3600 * findings["hours"]),
            duration=duration(plan["seconds"]),
        )
    if plan["seconds"] < SHORTER * 3600 * findings["hours"]:
        yield tr(
            "More time would hardly help: {hours:g} h were given, and the text is read often "
            "enough after {duration}.",
            hours=findings["hours"],
            duration=duration(plan["seconds"]),
        )
    yield from _purpose(findings["text"])
    if findings["text"]["mix"] is not None:
        yield tr(
            "data.mix is not counted: passes and losses are those of the text with each source "
            "read equally often."
        )
    for more in findings["more_text"]:
        if more["val_bpb"] < (1 - GAINS) * plan["val_bpb"]:
            yield tr(
                "{factor} times as much text would bring {bpb:.3f} bits per byte in the same time.",
                factor=more["factor"],
                bpb=more["val_bpb"],
            )
            break
    if plan["outside"]:
        yield tr(
            "Outside what was tried ({names}), so the expected loss is a guess.",
            names=", ".join(plan["outside"]),
        )
    documents = findings["text"]["val_documents"]
    share = sampling_error(documents, findings["text"]["document_spread"])
    if share > NOISY:
        yield trn(
            "The validation text counts as only {count} document: which one it is moves val_loss "
            "by {share:.0%}. data.val_path or a larger data.val_fraction makes it more exact.",
            "The validation text counts as only {count} documents: which ones they are moves "
            "val_loss by {share:.0%}. data.val_path or a larger data.val_fraction makes it more "
            "exact.",
            max(1, round(documents)),
            share=share,
        )
    yield from hints(Look(**findings["text"]["unused"]))
    memory = machine["memory_bytes"]
    if memory is not None and plan["memory_bytes"] > memory:
        yield tr("This does not fit into the {size} of memory.", size=size_text(memory))


def _purpose(text: Figures) -> Iterator[str]:
    size = text["train_bytes"]
    if size < SENTENCES_BYTES:
        yield tr(
            "So little text teaches words and endings. Sentences that make sense take {more} or "
            "more.",
            more=size_text(round(SENTENCES_BYTES)),
        )
    elif size < PARAGRAPHS_BYTES:
        yield tr(
            "So much text teaches sentences. Paragraphs that make sense take {more} or more.",
            more=size_text(round(PARAGRAPHS_BYTES)),
        )
