"""The suite of `evaluate` for several models, in one table: ours, the peer recipe's, anyone's.

    python benchmarks/suite.py ours=lightning_logs/small peer=PEER_FOLDER --data DATA_DIR

Trains nothing. A model is a run folder or a checkpoint of ours, or a folder of transformers (such
as `peer_recipe.py --save` writes). DATA_DIR is the prepared text that the models were trained on:
its validation split is scored, and samples are compared with its training split. `--text` scores
another text. Results are kept as NAME.json in `--out`, and a model that has one is not measured
again. Prints Markdown: the figures, the accuracy on each phenomenon, and for the first model the
phenomena below 70 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from azllm_lightning import compose
from azllm_lightning.evaluate import evaluate
from azllm_lightning.formats.huggingface import HF_CONFIG
from azllm_lightning.formats.suite_card import Row, suite_rows
from azllm_lightning.inference.pair_scores import named

WEAK = 0.7


def main() -> None:
    """Measure what has not been measured, and print the tables."""
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for item in args.models:
        name, _, model = item.partition("=")
        path = out / f"{name}.json"
        if not path.is_file():
            measure(model, path, args.data, args.text)
        results[name] = json.loads(path.read_text(encoding="utf-8"))
    print(tables(results))


def arguments(typed: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", help="folder of prepared shards")
    parser.add_argument("--text", help="text to score in place of the validation split")
    parser.add_argument("--out", default="suite", help="folder for the results")
    return parser.parse_args(typed)


def measure(model: str, path: Path, data: str | None, text: str | None) -> dict[str, Any]:
    """Run the suite on one model, and write its results to `path`."""
    key = "hf" if (Path(model) / HF_CONFIG).is_file() else "ckpt_path"
    overrides = [f"{key}={model}", "suite=true", f"out={path}"]
    if text is not None:
        overrides.append(f"data.path={text}")
    elif data is not None:
        overrides.append(f"data.dir={data}")
    return evaluate(compose(overrides, "evaluate"))


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of several suites, a column per model."""
    names = list(results)
    rows = {name: {row.name: row for row in suite_rows(found)} for name, found in results.items()}
    labels = list(dict.fromkeys(label for found in rows.values() for label in found))
    figures = []
    for label in labels:
        figures.append([label, *(_cell(rows[name].get(label)) for name in names)])
    phenomena = {
        name: {**found["pairs"]["phenomena"], **found["turkish"]["phenomena"]}
        for name, found in results.items()
    }
    shares = [
        [named(key), *(f"{phenomena[name][key]['accuracy']:.1%}" for name in names)]
        for key in phenomena[names[0]]
    ]
    first = results[names[0]]
    weak = [
        f"- {named(key)}: {row['accuracy']:.1%}"
        for key, row in phenomena[names[0]].items()
        if row["accuracy"] < WEAK
    ]
    text = first["text"]["text"]
    origin = f"Commit {first['commit']}, data {first['data_fingerprint']}, text {text}."
    parts = [origin, table(["measure", *names], figures), table(["phenomenon", *names], shares)]
    if weak:
        parts.append(f"Below {WEAK:.0%} for {names[0]}:\n\n" + "\n".join(weak))
    return "\n\n".join(parts)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.value} ({row.interval})" if row.interval else row.value


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
