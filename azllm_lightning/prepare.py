"""python -m azllm_lightning.prepare: text becomes a tokenizer and token shards, ahead of a training."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.config.strict import from_mapping

if TYPE_CHECKING:
    from pathlib import Path

    from azllm_lightning.data.shards import Manifest

MOST_SOURCES = 12
"""Sources named, the largest first; a corpus may have hundreds."""


def main() -> None:
    """The console entrance."""
    cli.main("prepare", prepare)


def prepare(config: dict[str, Any], overrides: list[str] | None = None) -> Path:
    """Prepare the data of a composed prepare config unless it is done, print what there is, and return the folder.

    Raises ValueError and OSError as `azllm_lightning.data.pipeline.prepare` does, and `cli.Resumable` on a signal:
    what was begun is then removed, and the same command begins anew.
    """
    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.data.pipeline import prepare as prepare_data
    from azllm_lightning.data.shards import Manifest
    from azllm_lightning.training.stopping import Stopped, StopRequest

    typed, words = overrides or [], Words(config.get("lang", "en"))
    data = from_mapping(DataConfig, config["data"], "data")
    try:
        with StopRequest():
            folder = prepare_data(data)
    except Stopped:
        raise cli.Resumable(cli.command("prepare", typed), words("to_go_on")) from None
    print(f"{words('folder'):<12}{folder}\n{_report(words, Manifest.read(folder))}")
    print(f"{words('next'):<12}{cli.command('train', typed)}")
    return folder


def _report(words: Words, manifest: Manifest) -> str:
    lines = [f"{words('vocabulary'):<12}{words('vocab_size', tokens=manifest.vocab_size)}"]
    for name, split in manifest.splits.items():
        size = {
            "documents": split.documents,
            "megabytes": split.text_bytes / 1e6,
            "tokens": split.tokens,
        }
        lines.append(
            f"{name:<12}{words('split_size', **size, length=split.text_bytes / split.tokens)}"
        )
    cleaned = [
        f"{count:,} {what.replace('_', ' ')}" for what, count in manifest.cleaning.items() if count
    ]
    if cleaned:
        lines.append(f"{words('cleaning'):<12}{', '.join(cleaned)}")
    tokens: Counter[str] = Counter()
    for span in manifest.spans:
        tokens[span.source] += span.end - span.start
    named = [
        f"{source} {100 * count / tokens.total():.1f} %"
        for source, count in tokens.most_common(MOST_SOURCES)
    ]
    if len(tokens) > MOST_SOURCES:
        named.append(words("and_more", count=len(tokens) - MOST_SOURCES))
    lines.append(f"{words('sources'):<12}{', '.join(named)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
