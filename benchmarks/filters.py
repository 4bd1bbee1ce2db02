"""What data.near_duplicates, data.languages and data.repeated_lines do to val_loss, and their cost.

    python benchmarks/filters.py TEXT                  # trains a model of 0.7 M seven times
    python benchmarks/filters.py TEXT --cost           # MB/s of `prepare` per filter, no training

TEXT is a .jsonl file of documents (az_open.jsonl). It has little to remove. So the training text is
made dirty: 600 kB of documents, a tenth of which come ten times more with 3 % of their words
changed, each with six lines of a menu around it, and 30 % of all documents are Turkish, from a
small grammar. Each filter then removes its own kind. All runs have one tokenizer, one validation
text (150 kB of other documents, clean) and the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import machine

CLEAN_BYTES, VAL_BYTES = 600_000, 150_000
COPIES, COPIED, CHANGED, TURKISH = 10, 0.1, 0.03, 0.3
FILTERS = {
    "near-duplicates": "data.near_duplicates=0.8",
    "languages": "data.languages=az",
    "repeated lines": "data.repeated_lines=50",
}
MENU = (
    "Ana səhifə | Xəbərlər | İdman | Mədəniyyət | Əlaqə",
    "Facebook-da paylaş  Twitter-də paylaş  WhatsApp-da paylaş",
    "Bu səhifəni çap et",
    "Oxşar xəbərlər və ən çox oxunan yazılar",
    "Saytın materiallarından istifadə edərkən istinad zəruridir",
    "Bütün hüquqlar qorunur",
)
GRAMMAR = (
    "Dün,Bugün,Geçen hafta,Sabahleyin,Akşamüstü,Her gün".split(","),
    "arkadaşım,öğretmen,küçük çocuk,komşumuz,yaşlı adam,kız kardeşim".split(","),
    "bahçede,okulda,çarşıda,evin önünde,köyde,deniz kıyısında".split(","),
    "eski bir kitap,büyük bir ağaç,güzel çiçekler,yeni oyuncaklar,taze ekmek".split(","),
    "gördü,buldu,bekledi,satın aldı,düşündü,anlattı,unuttu,değiştirdi".split(","),
)


def main() -> None:
    """Prepare the texts, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help=".jsonl file of documents with the field text")
    parser.add_argument("--cost", action="store_true", help="only the speed of `prepare`")
    parser.add_argument("--steps", type=int, default=120, help="steps per training")
    parser.add_argument("--work", type=Path, default=Path("filters"), help="folder for all of it")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    machine.show(machine.describe())
    (cost if args.cost else losses)(args)


def losses(args: argparse.Namespace) -> None:
    """Train on the clean text, on the dirty one, and on what the filters leave of that."""
    rng = random.Random(0)
    texts = [text for text in read(args.text) if len(text) > 400]
    rng.shuffle(texts)
    validation = list(take(texts, VAL_BYTES))
    clean = list(take(texts[len(validation) :], CLEAN_BYTES))
    write(args.work / "val.jsonl", validation)
    write(args.work / "clean.jsonl", clean)
    write(args.work / "dirty.jsonl", dirty(clean, rng))
    all_of_them = list(FILTERS.values())
    runs = {
        "clean, no filter": ("clean", []),
        "dirty, no filter": ("dirty", []),
        **{f"dirty, {name}": ("dirty", [setting]) for name, setting in FILTERS.items()},
        "dirty, all three": ("dirty", all_of_them),
        "clean, all three": ("clean", all_of_them),
    }
    print("| text | removed | training text, MB | val_loss | val_bpb |\n|---|---|---|---|---|")
    for number, (name, (text, filters)) in enumerate(runs.items()):
        data = args.work / f"data_{number}"
        settings = [f"data.path={args.work / text}.jsonl", *filters]
        if number:
            settings.append(f"data.tokenizer={args.work / 'data_0' / 'tokenizer.json'}")
        prepare(data, f"data.val_path={args.work / 'val.jsonl'}", *settings)
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        kinds = ("near_duplicates", "other_languages", "repeated_lines")
        removed = ", ".join(f"{manifest['cleaning'].get(kind, 0):,}" for kind in kinds)
        size = manifest["splits"]["train"]["text_bytes"] / 1e6
        summary = train(args, data, f"run_{number}")
        loss, bpb = summary["val_loss"], summary.get("val_bpb", float("nan"))
        print(f"| {name} | {removed} | {size:.2f} | {loss:.4f} | {bpb:.4f} |", flush=True)


def cost(args: argparse.Namespace) -> None:
    """Seconds of `prepare` for the text as it is, with each filter and without."""
    size = sum(len(text.encode("utf-8")) for text in read(args.text)) / 1e6
    print("| filter | s | MB/s | removed |\n|---|---|---|---|")
    kinds = {"none": [], **{name: [setting] for name, setting in FILTERS.items()}}
    first = args.work / "cost_0"
    for number, (name, filters) in enumerate(kinds.items()):
        data = args.work / f"cost_{number}"
        tokenizer = [f"data.tokenizer={first / 'tokenizer.json'}"] if number else []
        started = time.perf_counter()
        prepare(data, f"data.path={args.text}", *filters, *tokenizer)
        if not number:  # again, without training the tokenizer
            data = args.work / "cost_again"
            started = time.perf_counter()
            prepare(data, f"data.path={args.text}", f"data.tokenizer={first / 'tokenizer.json'}")
        seconds = time.perf_counter() - started
        cleaning = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["cleaning"]
        kinds_removed = ("near_duplicates", "other_languages", "repeated_lines")
        removed = sum(cleaning.get(kind, 0) for kind in kinds_removed)
        print(f"| {name} | {seconds:.1f} | {size / seconds:.1f} | {removed} |", flush=True)


def dirty(clean: list[str], rng: random.Random) -> list[str]:
    """`clean` with near-duplicates, a menu around each document, and Turkish."""
    copied = clean[: round(COPIED * len(clean))]
    texts = clean + [changed(text, rng) for text in copied for _ in range(COPIES)]
    texts += [turkish(rng) for _ in range(round(TURKISH / (1 - TURKISH) * len(texts)))]
    rng.shuffle(texts)
    return ["\n".join([*MENU[:4], text, *MENU[4:]]) for text in texts]


def changed(text: str, rng: random.Random) -> str:
    """`text` with some words exchanged for others of it."""
    words = text.split(" ")
    for _ in range(round(CHANGED * len(words))):
        words[rng.randrange(len(words))] = rng.choice(words)
    return " ".join(words)


def turkish(rng: random.Random) -> str:
    """A document of 15 Turkish sentences."""
    return " ".join(" ".join(map(rng.choice, GRAMMAR)) + "." for _ in range(15))


def prepare(folder: Path, *settings: str) -> None:
    """Prepare data in `folder`."""
    values = [f"data.dir={folder}", "data.vocab_size=2048", *settings]
    run("azllm_lightning.prepare", "data=text", *values)


def train(args: argparse.Namespace, data: Path, name: str) -> dict[str, float]:
    """Train a small model on prepared data; returns the summary of the run."""
    logs = args.work / "runs"
    values = [
        "model=nano",
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=128",
        "schedule.warmup_steps=20",
        "trainer.global_batch_size=8",
        f"trainer.max_steps={args.steps}",
        f"trainer.val_every_steps={args.steps}",
        f"trainer.checkpoint_every_steps={args.steps}",
        "data.val_windows=64",
        f"logs_dir={logs}",
        f"run_name={name}",
    ]
    run("azllm_lightning.train", "data=text", f"data.dir={data}", *values)
    (summary,) = (logs / name).glob("version_*/summary.json")
    found: dict[str, float] = json.loads(summary.read_text(encoding="utf-8"))
    return found


def run(module: str, *settings: str) -> None:
    """Run a command of ours; if it fails, exit with its message."""
    command = [sys.executable, "-m", module, *settings]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        output = done.stdout[-2000:] + done.stderr[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{output}")


def read(path: Path) -> Iterator[str]:
    """The texts of a .jsonl file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def take(texts: list[str], num_bytes: int) -> Iterator[str]:
    """The first of `texts` that have so many bytes together; long ones are cut."""
    for text in texts:
        if num_bytes <= 0:
            return
        yield text[:4000]
        num_bytes -= len(text[:4000].encode("utf-8"))


def write(path: Path, texts: list[str]) -> None:
    """Write `texts` as .jsonl."""
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
