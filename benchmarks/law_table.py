"""The table of the law's runs, azllm_lightning/planning/runs.tsv, from the results of trials.

Called by `python benchmarks/law.py table`. Runs of ours with the package's optimizer are in it,
and those of the peer that were validated often, whose curves the forecast uses. Trials of other
settings say nothing about the law.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.planning.choice import multiplied
from azllm_lightning.planning.law import RUNS
from azllm_lightning.planning.rule import REPLACED

Row = dict[str, Any]

BLOCK_SIZE = 256
USUAL = set(
    """name kind data data_root device precision seed block batch steps warmup passes mb val_windows
    val_every stop_above hooks recut layers heads width tied weight_decay adam_weight_decay dropout
    replace""".split()
)
"""Settings of a trial that may differ from the package's."""

GROWING = set("batch_plan lr_by_batch beta1 unigram momentum_start momentum_rise".split())
"""Those of runs whose batch grows, which reach the same loss within 0.5 %."""

LOG = """
    log 128, 8 x 100     full 4 2 128  204800  bf16 0.1 0 0    5.420
    log 256, 8 x 100     full 4 4 256  204800  bf16 0.1 0 0    5.275
    log 512, 8 x 100     full 4 8 512  204800  bf16 0.1 0 0    5.193
    log 16 x 100         full 4 4 256  409600  bf16 0.1 0 0    4.690
    log 16 x 400         full 4 4 256  1638400 bf16 0.1 0 0    3.671
    log 1 MB, 1 pass     log  4 4 256  211420  bf16 0.1 0 0    5.363
    log 1 MB, 4 passes   log  4 4 256  845680  bf16 3   3 0.1  4.814
    log 1 MB, 16 passes  log  4 4 256  3382720 bf16 3   3 0.2  4.713
"""
"""Runs of benchmarks/LOG.md: name, text, layers, heads, width, tokens, number type, decay
of matrices and of tables, dropout, val_loss.
"""

LOG_TEXT = {"tokens": 211_420, "text_bytes": 987_800, "bytes_per_token": 4.3322}
"""The megabyte of those runs: its bytes are estimated from the corpus' first megabyte."""


def table(results: Sequence[str], folders: Sequence[Path]) -> None:
    """Write the table from files of results, each named FILE:MACHINE:TYPE, whose texts are in
    `folders`.
    """
    rows = list(logged(folders))
    for given in results:
        path, machine, number_type = given.rsplit(":", 2)
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            if is_ours(result) or is_peer(result):
                rows.append(row(result, folders, machine, number_type))
    rows.sort(key=lambda values: str(values["name"]))
    lines = ["\t".join(rows[0]), *("\t".join(map(str, values.values())) for values in rows)]
    RUNS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} runs in {RUNS}")


def is_ours(result: Row) -> bool:
    """Whether a result is a complete run with the package's optimizer."""
    settings = result["settings"]
    steps = result.get("steps")
    if "error" in result or steps is None or settings.get("kind", "ours") != "ours":
        return False
    if not settings.get("recut", True) or steps < result.get("of", steps):
        return False
    more = GROWING if settings.get("lr_by_batch") == 0.25 and "beta1" in settings else set()
    return settings.keys() <= USUAL | more and settings.get("warmup") != 0


def is_peer(result: Row) -> bool:
    """Whether a result is a complete run of the peer with a curve."""
    steps = result.get("steps")
    is_complete = "error" not in result and steps is not None and steps >= result.get("of", steps)
    return is_complete and result["settings"].get("kind") == "peer" and len(result["val"]) > 3


def row(result: Row, folders: Sequence[Path], machine: str, number_type: str) -> Row:
    """A run as a line of the table; val_loss is the lowest, in nats per token."""
    settings = result["settings"]
    name = settings.get("data", "full")
    manifest = read_manifest(name, folders)
    train = manifest["splits"]["train"]
    val = manifest["splits"]["val"]
    unique = result.get("tokens_of_text", train["tokens"])
    tokens = result["tokens"] if "tokens" in result else unique * settings["passes"]
    shape = GPTConfig(
        n_layer=settings.get("layers", 4),
        n_head=settings.get("heads", 4),
        n_embd=settings.get("width", 256),
        vocab_size=manifest["vocab_size"],
        block_size=BLOCK_SIZE,
    )
    replaces = settings.get("hooks") == "law_replaced"
    return {
        "name": result["name"],
        "text": name.rpartition("_")[0] or name,
        "machine": machine,
        "type": number_type,
        "recipe": settings.get("kind", "ours"),
        "parameters": multiplied(shape),
        "tied": int(settings.get("tied", True)),
        "vocab_size": manifest["vocab_size"],
        "unique_tokens": unique,
        "tokens": round(tokens),
        "text_bytes": round(train["text_bytes"] * unique / train["tokens"]),
        "steps": result["steps"],
        "weight_decay": settings.get("weight_decay", 0.1),
        "table_decay": settings.get("adam_weight_decay", 0.0),
        "dropout": settings.get("dropout", 0.0),
        "replaced": settings.get("replace", REPLACED if replaces else 0.0),
        "bytes_per_token": round(val["text_bytes"] / val["tokens"], 4),
        "val_loss": result["best"],
        "last_val_loss": result.get("val_loss", result.get("last")),
        "curve": ",".join(f"{step}:{loss:.4f}" for step, loss in result["val"].items()),
    }


def logged(folders: Sequence[Path]) -> Iterator[Row]:
    """The runs of LOG."""
    full = read_manifest("full", folders)["splits"]
    for line in filter(str.strip, LOG.split("\n")):
        name = line.strip()[:20].strip()
        text, layers, heads, width, tokens, kind, *rest = line.strip()[20:].split()
        decay, table_decay, dropout, loss = map(float, rest)
        shape = GPTConfig(
            n_layer=int(layers),
            n_head=int(heads),
            n_embd=int(width),
            vocab_size=8192,
            block_size=BLOCK_SIZE,
        )
        of_text = LOG_TEXT
        if text == "full":
            of_text = {
                **full["train"],
                "bytes_per_token": full["val"]["text_bytes"] / full["val"]["tokens"],
            }
        yield {
            "name": name,
            "text": text,
            "machine": "CPU of LOG.md",
            "type": kind,
            "recipe": "ours",
            "parameters": multiplied(shape),
            "tied": 1,
            "vocab_size": 8192,
            "unique_tokens": of_text["tokens"],
            "tokens": int(tokens),
            "text_bytes": of_text["text_bytes"],
            "steps": "",
            "weight_decay": decay,
            "table_decay": table_decay,
            "dropout": dropout,
            "replaced": 0.0,
            "bytes_per_token": round(of_text["bytes_per_token"], 4),
            "val_loss": loss,
            "last_val_loss": loss,
            "curve": "",
        }


def read_manifest(name: str, folders: Sequence[Path]) -> Row:
    """The manifest of the text `name` in one of `folders`."""
    for folder in folders:
        file = folder / name / "manifest.json"
        if file.exists():
            manifest: Row = json.loads(file.read_text(encoding="utf-8"))
            return manifest
    raise SystemExit(f"no {name}/manifest.json in {', '.join(map(str, folders))}")
