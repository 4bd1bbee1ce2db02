"""The results of `evaluate suite=true` as Markdown: a page, and a section of the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.streams import one_row
from azllm_lightning.config.local_paths import last_part
from azllm_lightning.formats.load import step_of
from azllm_lightning.formats.markdown import markdown_table

PAGE_MARK = "<!-- azllm_lightning.evaluate suite=true -->"
"""The first line of a page, by which it is known to be one."""


class Row(NamedTuple):
    """A figure of the suite, its 95 % interval if it has one, and what it is compared with."""

    name: str
    value: str
    interval: str = ""
    compared: str = ""


def suite_rows(results: Mapping[str, Any]) -> list[Row]:
    """The figures of a suite, in the language in use."""
    text = results["text"]["all"]
    half = results["second_half"]["all"]
    rows = [
        Row(tr("bits per byte"), f"{text['val_bpb']:.4f}"),
        Row(tr("tokens per word"), f"{text['tokens_per_word']:.2f}"),
        Row(
            tr("bits of the second half of a line"),
            f"{half['bits']:.2f}",
            "-" if half["low"] is None else f"{half['low']:.2f}-{half['high']:.2f}",
        ),
        _pairs(tr("grammar, {count:,} pairs"), results["pairs"]["groups"]["grammar"]),
        _pairs(tr("spelling, {count:,} pairs"), results["pairs"]["groups"]["spelling"]),
        _pairs(tr("Azerbaijani, not Turkish, {count:,} pairs"), results["turkish"]["all"]),
    ]
    if results["samples"] is None:
        return rows
    ours = results["samples"]["figures"]
    theirs = results["samples"]["held_out"] or {}
    for key, name, form in (
        ("known_words", tr("samples: words that exist"), "{:.1%}"),
        ("distinct_4", tr("samples: distinct runs of four words"), "{:.1%}"),
        (
            "median_longest",
            tr("samples: longest stretch of training text, median, characters"),
            "{:,.0f}",
        ),
        ("recited", tr("samples: recited text"), "{:.1%}"),
    ):
        value, compared = (
            "-" if figures.get(key) is None else form.format(figures[key])
            for figures in (ours, theirs)
        )
        if value != "-" or theirs:
            rows.append(Row(name, value, compared=compared if theirs else ""))
    return rows


def _pairs(name: str, row: Mapping[str, Any]) -> Row:
    interval = f"{row['low']:.1%}-{row['high']:.1%}"
    return Row(name.format(count=row["pairs"]), f"{row['accuracy']:.1%}", interval)


def no_samples() -> str:
    """What stands in place of the samples of a model that cannot begin a text."""
    return tr("no samples: the model has no start token")


def is_suite_page(path: Path) -> bool:
    """Whether the file is a page that `suite_markdown` made, or an empty one, which a kill left."""
    with path.open("rb") as file:
        first = file.readline()
    return not first or first.strip() == PAGE_MARK.encode()


def suite_table(results: Mapping[str, Any]) -> str:
    """The figures of a suite as a table of Markdown."""
    heads = (tr("measure"), tr("model"), tr("95 % interval"), tr("held-out text"))
    return markdown_table(heads, suite_rows(results))


def suite_markdown(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The page of a suite: where the figures are from, the table, and a row per phenomenon.

    `names` are those of the phenomena.
    """
    origin = [
        (tr("model"), results["model"]),
        (tr("text"), results["text"]["text"]),
        (tr("training text"), results["training_text"]),
        (tr("fingerprint of the data"), results["data_fingerprint"]),
        ("azllm-lightning", results["version"]),
        (tr("commit"), results["commit"]),
    ]
    samples = results["samples"]
    if samples is not None:
        origin.append((tr("seed of the samples"), samples["seed"]))
    lines = [f"- {name}: {one_row(str(value))}" for name, value in origin if value is not None]
    if samples is None:
        lines.append(f"- {no_samples()}")
    heads = (tr("phenomenon"), tr("total"), tr("per byte"), tr("word"), tr("pairs"))
    phenomena = {**results["pairs"]["phenomena"], **results["turkish"]["phenomena"]}
    rows = [
        (
            names[key],
            *(_share(row[score]) for score in ("total", "per_byte", "word")),
            str(row["pairs"]),
        )
        for key, row in phenomena.items()
    ]
    parts = [
        PAGE_MARK,
        f"# {tr('Evaluation')}",
        "\n".join(lines),
        suite_table(results),
        f"## {tr('Minimal pairs')}",
        markdown_table(heads, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _share(row: Mapping[str, float] | None) -> str:
    return f"{row['accuracy']:.1%} ({row['low']:.1%}-{row['high']:.1%})" if row else ""


def card_section(checkpoint: Path) -> str:
    """The section of the model card about a suite of this checkpoint, at its present step and on
    its own validation split; "" if it has none.
    """
    folder = checkpoint.absolute().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    paths = sorted(folder.glob("suite*.json"), key=lambda path: len(path.name))  # suite.json first
    return next(filter(None, (_section(path, checkpoint) for path in paths)), "")


def _section(path: Path, checkpoint: Path) -> str:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if last_part(results["model"]) != checkpoint.name:  # of other weights
            return ""
        # best.ckpt keeps its name when a run goes on
        if "step" in results and results["step"] != step_of(checkpoint):
            return ""
        if not results.get("own_split", path.name == "suite.json"):  # older results do not say it
            return ""
        table = suite_table(results)
        origin = tr(
            "Measured with `evaluate suite=true` of {code}, on {text}.",
            code=_code(results),
            text=last_part(results["text"]["text"]),
        )
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another version
        return ""
    return f"## {tr('Evaluation')}\n\n{table}\n\n{origin}\n"


def _code(results: Mapping[str, Any]) -> str:
    """What measured: the version, and the commit if the package is not an installed one."""
    name = " ".join(filter(None, ["azllm-lightning", results.get("version")]))
    return f"{name}, commit {results['commit']}" if results["commit"] else name
