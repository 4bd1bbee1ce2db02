"""The table of the law's runs, azllm_lightning/planning/runs.tsv, from the results of trials.

Called by `python benchmarks/law.py table`. Runs of ours with the package's optimizer are in it,
and those of the peer that were validated often, whose curves the forecast uses. Trials of other
settings say nothing about the law.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trial_settings import DEFAULTS

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.planning.choice import multiplied
from azllm_lightning.planning.law import RUNS

Row = dict[str, Any]

BLOCK_SIZE = 256
USUAL = set(
    """name kind data data_root device precision seed block batch steps warmup val_windows val_every
    layers heads width tied weight_decay adam_weight_decay affix_rate embeddings attention
    dropout replace schedule""".split()
)
"""Settings of a trial that may differ from the package's."""


def table(results: Sequence[str], folders: Sequence[Path]) -> None:
    """Add the runs of files of results to the table, each named FILE:MACHINE:TYPE, whose texts are
    in `folders`; a run replaces one of the same name.
    """
    names, *lines = [line.split("\t") for line in RUNS.read_text(encoding="utf-8").splitlines()]
    rows: dict[str, Row] = {line[0]: dict(zip(names, line, strict=True)) for line in lines}
    for given in results:
        path, machine, number_type = given.rsplit(":", 2)
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            if is_ours(result) or is_peer(result):
                rows[result["name"]] = row(result, folders, machine, number_type)
    ordered = [rows[name] for name in sorted(rows)]
    text = ["\t".join(names), *("\t".join(str(values[n]) for n in names) for values in ordered)]
    RUNS.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{len(rows)} runs in {RUNS}")


def is_ours(result: Row) -> bool:
    """Whether a result is a complete run with the package's optimizer, whose rates fall in a line
    or by the package's power.
    """
    settings = result["settings"]
    if "error" in result or settings.get("kind", "ours") != "ours":
        return False
    if schedule(settings) not in ("linear", "power"):
        return False
    return settings.keys() <= USUAL and settings.get("warmup") != 0


def schedule(settings: Row) -> str:
    """How the rate of a trial falls."""
    name: str = settings.get("schedule", DEFAULTS["schedule"])
    return name


def is_peer(result: Row) -> bool:
    """Whether a result is a complete run of the peer with a curve."""
    is_complete = "error" not in result
    return is_complete and result["settings"].get("kind") == "peer" and len(result["val"]) > 3


def row(result: Row, folders: Sequence[Path], machine: str, number_type: str) -> Row:
    """A run as a line of the table; val_loss is the lowest, in nats per token."""
    settings = result["settings"]
    name = settings.get("data", "full")
    manifest = read_manifest(name, folders)
    train = manifest["splits"]["train"]
    val = manifest["splits"]["val"]
    shape = GPTConfig(
        n_layer=settings.get("layers", 4),
        n_head=settings.get("heads", 4),
        n_embd=settings.get("width", 256),
        vocab_size=manifest["vocab_size"],
        block_size=BLOCK_SIZE,
    )
    return {
        "name": result["name"],
        "text": Path(name).name.rpartition("_")[0] or name,
        "machine": machine,
        "type": number_type,
        "recipe": settings.get("kind", "ours"),
        "parameters": multiplied(shape),
        "tied": int(settings.get("tied", False)),
        "vocab_size": manifest["vocab_size"],
        "unique_tokens": train["tokens"],
        "tokens": result["tokens"],
        "text_bytes": train["text_bytes"],
        "steps": result["steps"],
        "weight_decay": settings.get("weight_decay", 0.1),
        "table_decay": settings.get("adam_weight_decay", 0.0),
        "affix_rate": 0.0
        if is_peer(result)
        else settings.get("affix_rate", DEFAULTS["affix_rate"]),
        "embeddings": "random"
        if is_peer(result)
        else settings.get("embeddings", DEFAULTS["embeddings"]),
        "attention": "random"
        if is_peer(result)
        else settings.get("attention", DEFAULTS["attention"]),
        "schedule": "cosine" if is_peer(result) else schedule(settings),
        "dropout": settings.get("dropout", 0.0),
        "replaced": settings.get("replace", 0.0),
        "bytes_per_token": round(val["text_bytes"] / val["tokens"], 4),
        "val_loss": result["best"],
        "last_val_loss": result["val_loss"],
        "curve": ",".join(f"{step}:{loss:.4f}" for step, loss in result["val"].items()),
    }


def read_manifest(name: str, folders: Sequence[Path]) -> Row:
    """The manifest of the text `name` in one of `folders`."""
    for folder in folders:
        file = folder / name / "manifest.json"
        if file.exists():
            manifest: Row = json.loads(file.read_text(encoding="utf-8"))
            return manifest
    raise SystemExit(f"no {name}/manifest.json in {', '.join(map(str, folders))}")
