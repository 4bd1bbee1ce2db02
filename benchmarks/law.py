"""The runs behind azllm_lightning/planning/law.py, and the law's fit to them.

    python benchmarks/law.py shards TEXT OTHER --work law    # parts of TEXT, one validation text
    python benchmarks/law.py trials --work law > list.jsonl  # the runs, most important first
    python benchmarks/trials.py list.jsonl ...
    python benchmarks/law.py table RESULTS --work law        # into planning/runs.tsv
    python benchmarks/law.py fit                             # coefficients, errors of unseen runs

TEXT is a file of documents (az_open.jsonl: 14 MB of Azerbaijani). Its documents are shuffled; a
part is what comes first, with a tokenizer of its own, as somebody with so much text would have it.

`trials --small` lists runs of minutes on one core of a CPU. Those, and runs of the benchmarks of
the recipe and of little text, are what the law is fitted to. The others, for a GPU, have not been
run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import law_fit
import law_forecast
import law_table
from trial_settings import DEFAULTS

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.planning import rule
from azllm_lightning.planning.choice import multiplied

VAL_BYTES = 400_000
SEED = 0
PARTS = {
    "0.1mb": 100_000,
    "0.25mb": 250_000,
    "0.5mb": 500_000,
    "1mb": 1_000_000,
    "4mb": 4_000_000,
    "all": 1_000_000_000,
}
"""Bytes of each part of the text."""

VOCABULARIES = {
    "0.1mb": (2048,),
    "0.25mb": (1024, 2048, 8192),
    "0.5mb": (2048,),
    "1mb": (2048, 4096, 8192),
    "4mb": (4096, 8192),
    "all": (4096, 8192, 16384),
}

BLOCK_SIZE = 256
MODELS = {
    "a": (2, 1, 64),
    "b": (3, 2, 128),
    "c": (4, 3, 192),
    "1m": (4, 3, 96),
    "2m": (4, 2, 128),
    "tiny": (4, 4, 256),
    "small10m": (6, 5, 320),
    "17m": (8, 6, 384),
    "laptop": (8, 8, 512),
}
"""Layers, heads and width; with 8,192 tokens they have 0.6 to 30 M parameters."""

SMALL = """
    b 0.25mb 2048  1
    a 0.25mb 2048  1
    b 0.1mb  2048  4
    a 0.1mb  2048  8
    b 0.25mb 2048  4
    b 0.1mb  2048  1
    b 0.5mb  2048  1
    a 0.25mb 2048  4
    c 0.25mb 2048  1
    b 0.1mb  2048  8
    a 1mb    2048  1
    b 0.25mb 1024  1
    a 0.1mb  2048  1 16
    b 0.25mb 2048  2
    a 0.5mb  2048  1 4
    c 0.1mb  2048  1 4
"""

WIDE = """
    a all    4096  1
    c 4mb    4096  0.1 0.3
    a 0.25mb 2048  16 32
    b 0.25mb 2048  16
    c 1mb    2048  0.3 1 2
    a 1mb    2048  8 32
    a 4mb    4096  4
    b all    4096  1
    a all    4096  2
    b 0.5mb  2048  32
    b 1mb    2048  4
"""
"""For the ends of the range: little of a long text, all of it, and up to 32 passes."""

GRID = """
    tiny     0.25mb 8192  1 4 16 32
    tiny     1mb    8192  1 2 4 8 16 32
    tiny     4mb    8192  1 2 4 8
    tiny     all    8192  1 2 4
    2m       1mb    8192  1 4 16
    17m      1mb    8192  2 8 16
    1m       4mb    8192  1 4
    17m      4mb    8192  2 4
    2m       0.25mb 8192  2 8 32
    17m      0.25mb 8192  1 4 16
    small10m all    8192  1 2
    1m       all    8192  1 4
    small10m 1mb    8192  1 4 16
    small10m 4mb    8192  1 4
    2m       4mb    8192  2 8
"""
"""Model, part, vocabulary, and passes: the first runs, with the settings of the rules."""

VARIANTS = (
    ("tiny", "1mb", 2, 0.1, 0.0, 0.0),
    ("tiny", "1mb", 2, 3.0, 3.0, 0.1),
    ("tiny", "4mb", 2, 0.1, 0.0, 0.0),
    ("tiny", "4mb", 2, 3.0, 3.0, 0.0),
    ("tiny", "4mb", 4, 1.0, 1.0, 0.0),
    ("tiny", "all", 4, 1.0, 1.0, 0.0),
    ("2m", "4mb", 8, 1.0, 1.0, 0.0),
    ("2m", "4mb", 8, 0.3, 0.3, 0.0),
    ("1m", "all", 4, 0.3, 0.3, 0.0),
    ("17m", "1mb", 8, 6.0, 6.0, 0.3),
    ("17m", "1mb", 16, 6.0, 3.0, 0.3),
    ("17m", "0.25mb", 16, 6.0, 6.0, 0.3),
    ("tiny", "0.25mb", 16, 6.0, 6.0, 0.2),
    ("tiny", "0.25mb", 1, 1.0, 1.0, 0.0),
)
"""The same with another decay of matrices and tables, and another dropout: is the rule right?"""

VOCABULARY_GRID = """
    tiny     1mb    2048  4 16
    tiny     1mb    4096  4 16
    tiny     0.25mb 2048  4 16
    tiny     0.25mb 1024  16
    tiny     all    4096  1
    tiny     all    16384 1
    c        1mb    4096  8
    c        4mb    4096  4
    17m      all    16384 1
"""

KIND_GRID = """
    tiny     legislation          8192  4 16
    tiny     wikipedia-literature 8192  4 16
    tiny     other                8192  4 16
"""
"""Text of other kinds, a megabyte of each: how well does its compressibility predict its loss?"""

KINDS = ("legislation", "wikipedia-literature")
"""Sources of TEXT that are a kind of their own."""

KIND_BYTES = 1_000_000

LAST = """
    1m       0.25mb 8192  1 4 16
    1m       1mb    8192  2 8
    c        1mb    8192  8
    c        4mb    8192  4
    c        all    8192  2
    2m       all    8192  2
    17m      all    8192  1
    tiny     4mb    8192  16
    1m       1mb    8192  32
    small10m 0.25mb 8192  2 8 16
    small10m all    8192  4
    laptop   1mb    8192  4
    laptop   all    8192  1
    tiny     all    8192  8
    17m      4mb    8192  8
    1m       4mb    8192  16
    17m      1mb    8192  32
    17m      all    8192  4
"""
"""What time is left for."""

CURVE = 8
"""Validations of a run."""


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    shards_parser = parts.add_parser("shards")
    shards_parser.add_argument("text", type=Path, help="JSON lines with `text` and `source`")
    shards_parser.add_argument("other", type=Path, help="text of another kind (az_poetry.jsonl)")
    shards_parser.add_argument("--work", type=Path, default=Path("law"))
    trials_parser = parts.add_parser("trials")
    trials_parser.add_argument("--work", type=Path, default=Path("law"))
    trials_parser.add_argument("--small", action="store_true")
    table_parser = parts.add_parser("table")
    table_parser.add_argument("results", nargs="+", help="FILE:MACHINE:TYPE, of trials.py")
    table_parser.add_argument("--work", type=Path, nargs="+", default=[Path("law")])
    parts.add_parser("fit")
    args = parser.parse_args()
    if args.part == "shards":
        shards(args.text, args.other, args.work)
    if args.part == "trials":
        for trial in small_trials(args.work) if args.small else trials(args.work):
            print(json.dumps(trial))
    if args.part == "table":
        law_table.table(args.results, args.work)
    if args.part == "fit":
        law_fit.main()
        law_forecast.main()


def shards(text: Path, other: Path, work: Path) -> None:
    """Write the parts of `text` to `work`, each prepared with every vocabulary."""
    work.mkdir(parents=True, exist_ok=True)
    sources = read(text)
    everything = [document for documents in sources.values() for document in documents]
    random.Random(SEED).shuffle(everything)
    val, rest = first_bytes(everything, VAL_BYTES)
    for name, num_bytes in PARTS.items():
        chosen = first_bytes(rest, num_bytes)[0]
        for vocab_size in VOCABULARIES[name]:
            prepare(work, name, vocab_size, chosen, val)
    sources["other"] = [document for documents in read(other).values() for document in documents]
    for name in (*KINDS, "other"):
        random.Random(SEED).shuffle(sources[name])
        val, rest = first_bytes(sources[name], VAL_BYTES // 4)
        prepare(work, name, 8192, first_bytes(rest, KIND_BYTES)[0], val)


def read(path: Path) -> dict[str, list[str]]:
    """The documents of a file by their source, as lines of JSON with `text` only."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        document = json.dumps({"text": values["text"]}, ensure_ascii=False)
        found.setdefault(values.get("source", path.stem), []).append(document)
    return found


def prepare(work: Path, name: str, vocab_size: int, train: list[str], val: list[str]) -> None:
    """Write a part of the text, and prepare it."""
    files = {"path": work / f"{name}.jsonl", "val_path": work / f"{name}_val.jsonl"}
    for path, documents in zip(files.values(), (train, val), strict=True):
        path.write_text("\n".join(documents) + "\n", encoding="utf-8")
    settings = [f"data.{key}={path}" for key, path in files.items()]
    settings += [f"data.vocab_size={vocab_size}", f"data.dir={folder(work, name, vocab_size)}"]
    command = [sys.executable, "-m", "azllm_lightning.prepare", "data=text", *settings]
    subprocess.run(command, check=True)
    for path in files.values():
        path.unlink()


def trials(work: Path) -> Iterator[dict[str, Any]]:
    """The runs, most important first, as `trials.run_trial` takes them."""
    for name, part, vocab_size, passes in grid(GRID):
        yield trial(work, name, part, vocab_size, passes, rule.regularization(passes))
    for name, part, passes, decay, table_decay, dropout in VARIANTS:
        other = rule.Regularization(decay, table_decay, dropout, 0.0)
        yield trial(work, name, part, 8192, passes, other)
    for name, part, vocab_size, passes in grid(VOCABULARY_GRID + KIND_GRID + LAST):
        yield trial(work, name, part, vocab_size, passes, rule.regularization(passes))


def small_trials(work: Path) -> Iterator[dict[str, Any]]:
    """The runs for a CPU, in fp32, with fewer validation windows."""
    for name, part, vocab_size, passes in grid(SMALL + WIDE):
        per_token = parameters(name, vocab_size) / unique_tokens(folder(work, part, vocab_size))
        regularization = rule.regularization(passes, per_token)
        yield {
            **trial(work, name, part, vocab_size, passes, regularization),
            "precision": "fp32",
            "val_windows": 64,
        }


def parameters(model: str, vocab_size: int) -> int:
    """Those of a model that are multiplied, with a head that is not tied."""
    layers, heads, width = MODELS[model]
    shape = GPTConfig(
        vocab_size=vocab_size, block_size=BLOCK_SIZE, n_layer=layers, n_head=heads, n_embd=width
    )
    return multiplied(shape)


def grid(text: str) -> Iterator[tuple[str, str, int, float]]:
    """(model, part, vocabulary, passes) of each run in a table like GRID."""
    for line in text.split("\n"):
        if line.strip():
            name, part, vocab_size, *all_passes = line.split()
            for passes in all_passes:
                yield name, part, int(vocab_size), float(passes)


def trial(
    work: Path,
    model: str,
    part: str,
    vocab_size: int,
    passes: float,
    regularization: rule.Regularization,
) -> dict[str, Any]:
    """The settings of one run."""
    data = folder(work, part, vocab_size)
    unique = unique_tokens(data)
    batch = rule.batch_sequences(unique * passes, BLOCK_SIZE)
    steps = max(1, round(unique * passes / (batch * BLOCK_SIZE)))
    layers, heads, width = MODELS[model]
    return {
        "name": f"{model}-{part}-{vocab_size}-{passes:g}-{regularization.weight_decay:g}-induction",
        "data": str(data.relative_to(work.parent)),
        "layers": layers,
        "heads": heads,
        "width": width,
        "affix_rate": DEFAULTS["affix_rate"],
        "embeddings": DEFAULTS["embeddings"],
        "attention": DEFAULTS["attention"],
        "batch": batch,
        "steps": steps,
        "warmup": rule.warmup_steps(steps),
        "weight_decay": regularization.weight_decay,
        "adam_weight_decay": regularization.table_decay,
        "dropout": regularization.dropout,
        "schedule": "linear",  # as all runs of the table
        "tied": False,
        "val_windows": None,
        "val_every": max(1, steps // CURVE),
        "replace": regularization.replaced,
    }


def unique_tokens(data: Path) -> int:
    """Tokens of the complete windows of prepared text."""
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    tokens: int = manifest["splits"]["train"]["tokens"]
    return tokens // BLOCK_SIZE * BLOCK_SIZE


def folder(work: Path, part: str, vocab_size: int) -> Path:
    """Where the shards of a part are."""
    return work / f"{part}_{vocab_size}"


def first_bytes(documents: list[str], num_bytes: int) -> tuple[list[str], list[str]]:
    """The documents that make up about `num_bytes`, and the rest."""
    total = 0
    for index, document in enumerate(documents):
        if total >= num_bytes:
            return documents[:index], documents[index:]
        total += len(json.loads(document)["text"].encode("utf-8"))
    return documents, []


if __name__ == "__main__":
    main()
