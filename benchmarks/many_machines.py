"""What preparing a large text by many tasks costs: the CPU seconds of each stage, and their sum.

    python benchmarks/many_machines.py --text az_open.jsonl --megabytes 40 --gigabytes 100

The four stages of data/cluster.py run in this process, on text that preparing.py makes. CPU
time is measured, not wall time, so that other programs hardly matter; waiting for disks is not
included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from preparing import documents, make_text, make_tokenizer

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.blocks import DIGEST_BYTES, read_block
from azllm_lightning.data.cluster import Stage, stages
from azllm_lightning.data.digest_set import Digests, DigestSet
from azllm_lightning.data.shards import Manifest
from azllm_lightning.data.tokenizer import Tokenizer

LARGE = 1 << 20
"""Digests that are added at once where this is not measured."""

PER_BLOCK = 4000
"""Documents of a block, about."""

SAMPLE_MB = DataConfig.tokenizer_sample_bytes / 1e6


def main() -> None:
    """Print the cost of each stage per MB, and for the text asked about."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="JSON Lines with a text field")
    parser.add_argument("--megabytes", type=int, default=40, help="size of the text to measure on")
    parser.add_argument("--gigabytes", type=float, default=100, help="size to compute the cost of")
    parser.add_argument("--tasks", type=int, default=64, help="cores of the computed example")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many_machines_") as name:
        seconds, megabytes, count = measure(args.text, Path(name), args.megabytes)
    total = args.gigabytes * 1000
    wanted = total / megabytes * count
    look_up = look_up_seconds(wanted / 2)  # on average, half of the documents are known
    rates = {key: value / megabytes for key, value in seconds.items()}
    many = (rates["clean"] + rates["tokenize"]) * total
    one = [
        ("choosing the documents", rates["select"] * total + look_up * wanted),
        ("reading them for the sample", rates["read"] * total),
        ("training the tokenizer", training_seconds(args.text) * SAMPLE_MB),
        ("writing the shards", rates["write"] * total),
    ]
    print(f"measured on {megabytes:.0f} MB, {count:,} documents; CPU time")
    for key, value in rates.items():
        print(f"{key:<10}{1 / value:8.1f} MB/s per core")
    print(f"look-up   {look_up * 1e6:8.2f} µs per document among {wanted / 2:,.0f}")
    print(f"\n{args.gigabytes:g} GB, {wanted:,.0f} documents:")
    print(
        f"many tasks: {many / 3600:.1f} core hours, {many / 3600 / args.tasks:.2f} h "
        f"on {args.tasks} cores"
    )
    for label, value in one:
        print(f"one task: {label}, {value / 60:.1f} min")
    alone = sum(value for _, value in one)
    print(
        f"all: {many / 3600 / args.tasks + alone / 3600:.2f} h; digests {wanted * 16 / 1e9:.1f} GB"
    )


def measure(text: Path, folder: Path, megabytes: int) -> tuple[dict[str, float], float, int]:
    """CPU seconds of each stage, and the MB and the documents that were prepared."""
    path = make_text(text, folder / "text.jsonl", megabytes * 10**6)
    tokenizer = make_tokenizer(text, folder)
    config = DataConfig(path=str(path), dir=str(folder / "data"), tokenizer=str(tokenizer))
    seconds: dict[str, float] = {}
    for stage in stages(config, 1):
        if stage.name == "tokenize":
            blocks = sorted((folder / ".azllm-data.tasks" / "work").glob("*/?_??????.npz"))
            seconds["read"] = cpu_seconds(partial(read_all, blocks))
        seconds[stage.name] = cpu_seconds(partial(finish, stage))
    splits = Manifest.read(folder / "data").splits.values()
    return (
        seconds,
        sum(split.text_bytes for split in splits) / 1e6,
        sum(split.documents for split in splits),
    )


def read_all(blocks: Iterable[Path]) -> None:
    """Read blocks with their text, as the training of the tokenizer does."""
    for block in blocks:
        read_block(block)


def finish(stage: Stage) -> None:
    """Do the work of the only task of `stage`."""
    for _ in stage.step(None, 0, 1) or ():
        pass


def training_seconds(text: Path) -> float:
    """CPU seconds of training a tokenizer, per MB of its sample."""
    texts = documents(text)
    megabytes = sum(len(each.encode("utf-8")) for each in texts) / 1e6
    return cpu_seconds(lambda: Tokenizer.train(texts, DataConfig.vocab_size)) / megabytes


def look_up_seconds(known: float) -> float:
    """CPU seconds of adding one digest to a set of `known` digests."""
    digests = DigestSet()
    draw = np.random.default_rng(0)
    for _ in range(max(1, round(known / LARGE))):
        digests.update(draw.integers(256, size=(LARGE, DIGEST_BYTES), dtype=np.uint8))
    blocks = [
        draw.integers(256, size=(PER_BLOCK, DIGEST_BYTES), dtype=np.uint8) for _ in range(200)
    ]
    return cpu_seconds(lambda: add_all(digests, blocks)) / (len(blocks) * PER_BLOCK)


def add_all(digests: DigestSet, blocks: Iterable[Digests]) -> None:
    """Look up and add the digests of each block."""
    for block in blocks:
        digests.add_new(block)


def cpu_seconds(function: Callable[[], object]) -> float:
    """The CPU time of all threads of this process during a call."""
    started = time.process_time()
    function()
    return time.process_time() - started


if __name__ == "__main__":
    main()
