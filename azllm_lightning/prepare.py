"""python -m azllm_lightning.prepare: text becomes a tokenizer and token shards, ahead of a training."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from azllm_lightning import cli
from azllm_lightning.settings import from_mapping

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

    Raises ValueError and OSError as `azllm_lightning.data.prepare.prepare` does, and `cli.Resumable` on a signal:
    what was begun is then removed, and the same command begins anew.
    """
    from azllm_lightning.data.config import DataConfig
    from azllm_lightning.data.prepare import prepare as prepare_data
    from azllm_lightning.data.shards import Manifest
    from azllm_lightning.training.stopping import Stopped, StopRequest

    typed = overrides or []
    data = from_mapping(DataConfig, config["data"], "data")
    try:
        with StopRequest():
            folder = prepare_data(data)
    except Stopped:
        raise cli.Resumable(cli.command("prepare", typed)) from None
    print(f"folder      {folder}\n{_report(Manifest.read(folder))}")
    print(f"next        {cli.command('train', typed)}")
    return folder


def _report(manifest: Manifest) -> str:
    lines = [f"vocabulary  {manifest.vocab_size:,} tokens"]
    for name, split in manifest.splits.items():
        lines.append(
            f"{name:<12}{split.documents:,} documents, {split.text_bytes / 1e6:,.1f} MB, {split.tokens:,} tokens, "
            f"{split.text_bytes / split.tokens:.2f} bytes a token"
        )
    cleaned = [f"{count:,} {what.replace('_', ' ')}" for what, count in manifest.cleaning.items() if count]
    if cleaned:
        lines.append("cleaning    " + ", ".join(cleaned))
    tokens: Counter[str] = Counter()
    for span in manifest.spans:
        tokens[span.source] += span.end - span.start
    named = [f"{source} {100 * count / tokens.total():.1f} %" for source, count in tokens.most_common(MOST_SOURCES)]
    if len(tokens) > MOST_SOURCES:
        named.append(f"and {len(tokens) - MOST_SOURCES} more")
    lines.append("sources     " + ", ".join(named))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
