"""How well a model predicts the documents of a text, by source."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.data.corpus import Document, bytes_to_read, documents
from azllm_lightning.data.pipeline import prepared_folder, with_prepared
from azllm_lightning.data.progress import Progress
from azllm_lightning.data.shards import MANIFEST, Manifest, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import read_checkpoint, stored_config
from azllm_lightning.inference.scoring import Score, default_stride, score
from azllm_lightning.inference.tables import WIDTH, table

if TYPE_CHECKING:
    from azllm_lightning.inference.scoring import Scorer


LEAST_SHARE = 0.01
"""Of training text in a text that is scored: less lowers the loss by 1 % at most, and formulas, as
in laws, are often as much.
"""


class TextToScore(NamedTuple):
    """Its documents, where they come from, and the sum of their `read_bytes` if known."""

    documents: Iterable[Document]
    origin: str
    num_bytes: int | None


def text_to_score(data: DataConfig, checkpoint: Path | None) -> TextToScore:
    """The text of data.path, else the validation split of data.dir or of the checkpoint's run.

    Raises ValueError if the text is not there.
    """
    if data.path is not None:
        return TextToScore(documents(data), ", ".join(data.paths), bytes_to_read(data))
    if data.dir is not None:
        folder = Path(data.dir)
    else:
        assert checkpoint is not None
        folder = prepared_folder_of(checkpoint)
    return TextToScore(
        _validation_documents(folder),
        tr("{folder}, validation split", folder=folder),
        Manifest.read(folder).splits["val"].text_bytes,
    )


def prepared_folder_of(checkpoint: Path) -> Path:
    """The prepared data that a checkpoint's run was trained on."""
    way_out = tr(
        "give data.dir=FOLDER (prepared data; its validation split is scored) or data.path=TEXT"
    )
    content = read_checkpoint(checkpoint) if checkpoint.is_file() else None
    stored = stored_config(content) if content is not None else {}
    if content is None or not stored:
        raise ValueError(
            tr(
                "{checkpoint} does not record what text it was trained on: {way_out}",
                checkpoint=checkpoint,
                way_out=way_out,
            )
        )
    try:
        config = from_mapping(DataConfig, stored["data"], "data")
        saved = content["azllm"]
        place = with_prepared(config, saved.get("data", ""), saved.get("validation"))
        folder = prepared_folder(place)
    except (ValueError, OSError) as error:
        raise ValueError(
            tr(
                "the validation text of {checkpoint} was not found ({error}): {way_out}",
                checkpoint=checkpoint,
                error=error,
                way_out=way_out,
            )
        ) from None
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            tr(
                "the validation text of {checkpoint} is no longer in {folder}: {way_out}",
                checkpoint=checkpoint,
                folder=folder,
                way_out=way_out,
            )
        )
    return folder


def _validation_documents(folder: Path) -> Iterator[Document]:
    """The validation documents of prepared data."""
    tokenizer = Tokenizer.from_file(folder)
    shards = TokenShards.open(folder, "val", tokenizer)
    for span in shards.manifest.spans:
        if span.split == "val":
            tokens = shards.read(span.start, span.end - span.start)
            for ids in np.split(tokens, np.flatnonzero(tokens == tokenizer.eot_id) + 1)[:-1]:
                text = tokenizer.decode(ids.tolist())
                yield Document(text, span.source, span.split, len(text.encode("utf-8")))


def score_by_source(scorer: Scorer, text: TextToScore, stride: int | None) -> dict[str, Score]:
    """The score of each source, in alphabetical order; `stride` as in `score`."""
    pending: deque[Document] = deque()

    def texts() -> Iterator[str]:
        for document in text.documents:
            pending.append(document)
            yield document.text

    sums: dict[str, Score] = {}
    with Progress(tr("evaluating"), text.num_bytes) as progress:
        for document_score in score(scorer, texts(), stride):
            document = pending.popleft()
            sums[document.source] = sums.get(document.source, Score()) + document_score
            progress.add(document.read_bytes)
    return {source: sums[source] for source in sorted(sums)}


def text_results(scorer: Scorer, scores: dict[str, Score], stride: int | None) -> dict[str, Any]:
    """What is stored as JSON: the window, and the metrics by source and of all together."""
    total = sum(scores.values(), Score())
    return {
        "block_size": scorer.block_size,
        "stride": stride or default_stride(scorer.block_size),
        "sources": {source: one.metrics() for source, one in scores.items()},
        "all": total.metrics(),
    }


def text_report(scorer: Scorer, results: dict[str, Any]) -> str:
    """What is printed of `text_results`: a table, and how it was measured."""
    heads = [
        tr("source"),
        tr("loss"),
        "ppl",
        "bpb",
        tr("tokens/word"),
        tr("bytes/token"),
        tr("docs"),
        tr("bytes"),
    ]
    total = results["all"]
    rows = [
        _row(source, metrics)
        for source, metrics in [*results["sources"].items(), (tr("all"), total)]
    ]
    lines = [
        table(heads, rows),
        tr(
            "windows of {window:,} tokens, stride {stride:,}, fp32",
            window=results["block_size"],
            stride=results["stride"],
        ),
        tr("loss: nats per token; bpb: bits per byte of the normalized text"),
        tr("the end-of-text token is context only and is not scored"),
        tr(
            "training's val_loss differs: it is over windows that do not overlap, with less "
            "context, and over data.val_windows of them"
        ),
    ]
    if not scorer.start:
        lines.append(
            tr(
                "no start token: the first token of each document is not scored "
                "({tokens:,} tokens, {size:,} bytes)",
                tokens=total["tokens"] - total["scored_tokens"],
                size=total["bytes"] - total["scored_bytes"],
            )
        )
    if total["unknown_tokens"]:
        lines.append(
            trn(
                "{count:,} unknown token, for text that the tokenizer cannot represent: the bpb of "
                "this model is too low",
                "{count:,} unknown tokens, for text that the tokenizer cannot represent: the bpb "
                "of this model is too low",
                total["unknown_tokens"],
            )
        )
    return "\n".join(lines[:1] + [textwrap.fill(line, WIDTH) for line in lines[1:]])


def training_text_note(share: float | None) -> str:
    """What is said of a text of which `share` is training text of the model; None: not known."""
    if share is None:
        return tr("whether the model was trained on this text is not known here")
    return textwrap.fill(
        tr(
            "{share:.1%} of this text is training text of the model, word for word: how well it "
            "predicts is shown only by text that it has not read",
            share=share,
        ),
        WIDTH,
    )


def _row(source: str, metrics: dict[str, Any]) -> list[str]:
    ppl = metrics["val_ppl"]
    return [
        source,
        f"{metrics['val_loss']:.4f}",
        f"{ppl:.2f}" if ppl < 1000 else f"{ppl:,.0f}",
        f"{metrics['val_bpb']:.4f}",
        f"{metrics['tokens_per_word']:.2f}",
        f"{metrics['bytes_per_token']:.2f}",
        f"{metrics['documents']:,}",
        f"{metrics['bytes']:,}" if metrics["bytes"] < 1e8 else f"{metrics['bytes'] / 1e6:,.0f} M",
    ]
