"""Preparing text: MB/s of each stage by number of processes, peak memory, and the tokenizer alone.

    python benchmarks/preparing.py --text az_open.jsonl --megabytes 200

The text is made of the given file's documents: sentences in another order, so that none is a
duplicate. Each figure is from a process of its own; configurations take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMATS = ("txt", "jsonl", "csv", "parquet")


def main() -> None:
    """Measure each format with each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="JSON Lines with a text field")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(Path(args.measure[0]), int(args.measure[1]), Path(args.measure[2]))
        return
    with tempfile.TemporaryDirectory(prefix="preparing_") as name:
        folder = Path(name)
        tokenizer = make_tokenizer(args.text, folder)
        for file_format in args.formats:
            path = make_text(args.text, folder / f"text.{file_format}", args.megabytes * 10**6)
            for _ in range(args.rounds):
                for processes in args.processes:
                    run(args.text, path, processes, tokenizer)
            path.unlink()


def run(text: Path, path: Path, processes: int, tokenizer: Path) -> None:
    """Measure in a process of its own, and print its line."""
    command = [sys.executable, __file__, "--text", str(text)]
    subprocess.run([*command, "--measure", str(path), str(processes), str(tokenizer)], check=True)


def measure(path: Path, processes: int, tokenizer_path: Path) -> None:
    """Print the speeds of one preparation, and of the tokenizer library on one core."""
    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.data import building
    from azllm_lightning.data.shards import Manifest
    from azllm_lightning.data.tokenizer import Tokenizer

    seconds: dict[str, float] = {}
    for stage in ("select", "tokenize", "write_shards"):
        setattr(building, stage, timed(stage, getattr(building, stage), seconds))
    config = DataConfig(path=str(path), tokenizer=str(tokenizer_path), prepare_workers=processes)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        started = time.perf_counter()
        building.build(config, Path(folder), {})
        total = time.perf_counter() - started
        manifest = Manifest.read(Path(folder))
    megabytes = sum(split.text_bytes for split in manifest.splits.values()) / 1e6
    own = peak_megabytes()
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    sample = sample_texts(path.parent / "sample.txt")
    started = time.perf_counter()
    Tokenizer.from_file(tokenizer_path).encode_batch(sample)
    library = sum(len(text.encode("utf-8")) for text in sample) / 1e6
    library /= time.perf_counter() - started
    print(
        f"{path.suffix[1:]:<8}{processes} processes: {megabytes:.0f} MB, "
        f"reading {megabytes / seconds['select']:.1f} MB/s, "
        f"tokenizing {megabytes / seconds['tokenize']:.1f}, "
        f"writing {megabytes / seconds['write_shards']:.0f}, all {megabytes / total:.1f}; "
        f"peak {own:.0f} MB + {worker:.0f} MB per worker; "
        f"the library alone {library:.2f} MB/s per core",
        flush=True,
    )


def peak_megabytes() -> float:
    """The peak memory of this process alone; getrusage would include that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def timed(stage, function, seconds):  # type: ignore[no-untyped-def]
    """`function`, whose duration is recorded in `seconds`."""

    def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] = time.perf_counter() - started

    return wrapper


def make_tokenizer(text: Path, folder: Path) -> Path:
    """A tokenizer of 8,192 tokens of the text, and a sample of it to time the library with."""
    from azllm_lightning.data.tokenizer import Tokenizer

    texts = documents(text)
    sample = texts[:: max(1, len(texts) // 2000)]
    (folder / "sample.txt").write_text("\0".join(sample), encoding="utf-8")
    Tokenizer.train(texts, 8192).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def sample_texts(path: Path) -> list[str]:
    """The sample that `make_tokenizer` wrote."""
    return path.read_text(encoding="utf-8").split("\0")


def documents(text: Path) -> list[str]:
    """The texts of a JSON Lines file."""
    with text.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def make_text(text: Path, path: Path, num_bytes: int) -> Path:
    """Write about `num_bytes` of documents to `path`, in the format that its ending names."""
    texts = documents(text)
    draw = random.Random(0)
    rows: list[str] = []
    size = 0
    while size < num_bytes:
        sentences = re.split(r"(?<=[.!?]) ", draw.choice(texts).replace("\n\n", "\n"))
        draw.shuffle(sentences)
        rows.append(" ".join(sentences) + f" {len(rows)}.")
        size += len(rows[-1].encode("utf-8"))
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": rows}), path, row_group_size=10_000)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".txt":
            file.write("\n\n".join(rows))
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
        else:
            import csv

            writer = csv.writer(file)
            writer.writerow(["text"])
            writer.writerows([row] for row in rows)
    return path


if __name__ == "__main__":
    main()
