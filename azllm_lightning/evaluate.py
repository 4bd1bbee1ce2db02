"""python -m azllm_lightning.evaluate: how well a model predicts text it has not seen, and what grammar it knows."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.config.strict import from_mapping

if TYPE_CHECKING:
    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.inference.scoring import Score, Scorer

COLUMNS = {
    "val_loss": "{:.4f}",
    "val_ppl": "{:.2f}",
    "val_bpb": "{:.4f}",
    "tokens_per_word": "{:.2f}",
    "bytes_per_token": "{:.2f}",
    "documents": "{:,}",
    "bytes": "{:,}",
}
ALL = "all"


@dataclass(frozen=True)
class EvaluateConfig:
    """The settings of conf/evaluate.yaml, commented there."""

    ckpt_path: str
    run_name: str | None
    logs_dir: str
    hf: str | None
    pairs: bool
    stride: int | None
    block_size: int | None
    out: str | None
    data: dict[str, Any]
    lang: str = "en"


class _Documents(NamedTuple):
    """(source, text) of each document, where they come from, and their UTF-8 bytes if known."""

    texts: Iterable[tuple[str, str]]
    where: str
    num_bytes: int | None


def main() -> None:
    """The console entrance."""
    cli.main("evaluate", evaluate)


def evaluate(config: dict[str, Any], overrides: list[str] | None = None) -> dict[str, Any]:
    """Print the table of a composed evaluate config, write it as JSON, and return what was written.

    Raises ValueError where the model, the text or a setting is not there or out of range, OSError where the JSON cannot
    be written.
    """
    settings = from_mapping(EvaluateConfig, config, "")
    words = Words(settings.lang)
    import torch

    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.formats.load import load
    from azllm_lightning.inference.scoring import hf_scorer, scorer_of
    from azllm_lightning.runs.folder import find_checkpoint, write_json

    data = from_mapping(DataConfig, settings.data, "data")
    has_text = data.path is not None or data.dir is not None
    if settings.pairs and has_text:
        raise ValueError(
            "pairs=true scores sentences of its own and reads no text: leave out data.path and data.dir"
        )
    checkpoint = None
    if settings.hf is None or not (settings.pairs or has_text):
        checkpoint = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    out = _out(settings, checkpoint)
    documents = None if settings.pairs else _documents(data, checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.hf is not None:
        scorer = hf_scorer(settings.hf, device, settings.block_size)
    else:
        assert checkpoint is not None
        scorer = scorer_of(*load(checkpoint, device), settings.block_size)
    found: dict[str, Any] = {
        "model": settings.hf or str(checkpoint),
        "start_token": bool(scorer.start),
    }
    print(f"{words('model'):<12}{found['model']}", file=sys.stderr)
    if documents is None:
        found |= _grammar(scorer, settings.stride, words)
    else:
        print(f"{words('text'):<12}{documents.where}", file=sys.stderr)
        found |= {"text": documents.where, **_prediction(scorer, documents, settings.stride, words)}
    write_json(out, found)
    print(f"{words('written'):<12}{out}", file=sys.stderr)
    return found


def _out(settings: EvaluateConfig, checkpoint: Path | None) -> Path:
    """The file for the JSON: by default in the run's folder, or beside a checkpoint that lies alone."""
    if settings.out is not None:
        out = Path(settings.out)
    else:
        name = "pairs.json" if settings.pairs else "evaluation.json"
        if settings.hf is not None or checkpoint is None:
            out = Path(name)
        else:
            folder = checkpoint.absolute().parent
            out = (folder.parent if folder.name == "checkpoints" else folder) / name
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise ValueError(f"out={out} cannot be written: name a file in a folder that exists")
    return out


def _documents(data: DataConfig, checkpoint: Path | None) -> _Documents:
    """The text to score: that of data.path, else the validation split of data.dir or of the checkpoint's run."""
    import yaml

    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.data.corpus import documents
    from azllm_lightning.data.pipeline import prepared_folder
    from azllm_lightning.data.shards import MANIFEST, Manifest
    from azllm_lightning.formats.load import read_checkpoint

    if data.path is not None:
        found = ((document.source, document.text) for document in documents(data))
        return _Documents(found, ", ".join(data.paths), None)
    if data.dir is not None:
        folder = Path(data.dir).expanduser()
    else:
        assert checkpoint is not None
        other = "give data.dir=FOLDER (prepared data, of which the validation split is taken) or data.path=TEXT"
        stored = (
            yaml.safe_load(read_checkpoint(checkpoint)["azllm"]["config"])
            if checkpoint.is_file()
            else None
        )
        if not stored:
            raise ValueError(f"{checkpoint} does not say what text it was trained on: {other}")
        try:
            folder = prepared_folder(from_mapping(DataConfig, stored["data"], "data"))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"the validation text of {checkpoint} is not to be found ({error}): {other}"
            ) from None
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"the validation text of {checkpoint} is not in {folder}, where it was prepared: {other}"
            )
    return _Documents(
        _validation_split(folder),
        f"{folder}, validation split",
        Manifest.read(folder).splits["val"].text_bytes,
    )


def _validation_split(folder: Path) -> Iterator[tuple[str, str]]:
    """(source, text) of each validation document of prepared data."""
    import numpy as np

    from azllm_lightning.data.shards import TokenShards
    from azllm_lightning.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(folder)
    shards = TokenShards.open(folder, "val", tokenizer)
    for span in shards.manifest.spans:
        if span.split == "val":
            tokens = shards.read(span.start, span.end - span.start)
            for ids in np.split(tokens, np.flatnonzero(tokens == tokenizer.eot_id) + 1)[:-1]:
                yield span.source, tokenizer.decode(ids.tolist())


def _prediction(
    scorer: Scorer, documents: _Documents, stride: int | None, words: Words
) -> dict[str, Any]:
    """The figures of each source and of all, printed as a table."""
    from azllm_lightning.data.progress import Progress
    from azllm_lightning.inference.scoring import Score, score

    waiting: deque[str] = deque()

    def texts() -> Iterator[str]:
        for source, text in documents.texts:
            waiting.append(source)
            yield text

    sums: dict[str, Score] = {}
    with Progress("evaluating", documents.num_bytes) as progress:
        for one in score(scorer, texts(), stride):
            source = waiting.popleft()
            sums[source] = sums.get(source, Score()) + one
            progress.add(one.num_bytes)
    total = sum(sums.values(), Score())
    sources = {source: sums[source].figures() for source in sorted(sums)}
    figures = total.figures()
    rows = [
        [name, *(COLUMNS[key].format(row[key]) for key in COLUMNS)]
        for name, row in [*sources.items(), (ALL, figures)]
    ]
    print(_table([words("source"), *COLUMNS], rows))
    stride = stride or max(1, scorer.block_size // 2)
    print(words("how_scored", window=scorer.block_size, stride=stride))
    if not scorer.start:
        left_out = {
            "tokens": total.tokens - total.scored_tokens,
            "size": total.num_bytes - total.scored_bytes,
        }
        print(words("no_start", **left_out))
    if total.unknown_tokens:
        print(words("unknown_tokens", tokens=total.unknown_tokens))
    return {
        "block_size": scorer.block_size,
        "stride": stride,
        "sources": sources,
        ALL: figures,
    }


def _grammar(scorer: Scorer, stride: int | None, words: Words) -> dict[str, Any]:
    """The share of minimal pairs told right, by phenomenon and in all, printed as a table."""
    from azllm_lightning.azerbaijani.pairs import minimal_pairs
    from azllm_lightning.data.progress import Progress
    from azllm_lightning.inference.scoring import score, wilson_interval

    pairs = minimal_pairs()
    sentences = [sentence for pair in pairs for sentence in (pair.right, pair.wrong)]
    nll = []
    with Progress(
        "evaluating", sum(len(sentence.encode("utf-8")) for sentence in sentences)
    ) as progress:
        for one in score(scorer, sentences, stride):
            nll.append(one.nll)
            progress.add(one.num_bytes)
    told: dict[str, list[bool]] = {}
    for pair, right, wrong in zip(pairs, nll[::2], nll[1::2], strict=True):
        told.setdefault(pair.phenomenon, []).append(right < wrong)
    everything = [one for ones in told.values() for one in ones]
    found = {}
    for name, ones in [*told.items(), (ALL, everything)]:
        low, high = wilson_interval(sum(ones), len(ones))
        found[name] = {
            "accuracy": sum(ones) / len(ones),
            "low": low,
            "high": high,
            "pairs": len(ones),
        }
    rows = [
        [
            name,
            f"{row['accuracy']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['pairs']:,}",
        ]
        for name, row in found.items()
    ]
    print(_table([words("phenomenon"), words("accuracy"), words("interval"), words("pairs")], rows))
    print(words("how_told"))
    if not scorer.start:
        print(words("no_start_pairs"))
    return {ALL: found.pop(ALL), "phenomena": found}


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    )


if __name__ == "__main__":
    main()
