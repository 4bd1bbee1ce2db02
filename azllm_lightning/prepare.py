"""python -m azllm_lightning.prepare: train a tokenizer and write token shards before training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.verbs import PrepareConfig

if TYPE_CHECKING:
    from azllm_lightning.data.shards import Manifest

SHOWN_SOURCES = 12
"""Sources listed by name, largest first; a corpus may have hundreds."""


def main() -> None:
    """Command-line entry point."""
    entrance.main("prepare", prepare, PrepareConfig.from_mapping)


def prepare(config: PrepareConfig) -> Path:
    """Prepare the text of `config` if necessary, print a summary, and return the folder.

    Raises ValueError and OSError as `data.pipeline.prepare` does, and `cli.entrance.Resumable` on a
    signal: what is finished is kept, and the same command goes on from there.
    """
    # Imported here, so that --help does not load numpy, tokenizers and torch.
    from azllm_lightning.data import removed
    from azllm_lightning.data.hints import hints, look
    from azllm_lightning.data.remarks import prepare_and_warn
    from azllm_lightning.data.shards import Manifest
    from azllm_lightning.data.typed import check_typed
    from azllm_lightning.planning.first import first_run
    from azllm_lightning.training.stopping import Stopped, StopRequest

    try:
        check_typed(config.data, config.overrides)
        with StopRequest() as stop:
            stop.begin()
            folder = prepare_and_warn(config.data)
    except Stopped:
        again = command("prepare", config.overrides)
        raise entrance.Resumable(again, tr("start again: {command}", command=again)) from None
    print(_line(tr("folder"), str(folder)))
    print(summary(Manifest.read(folder)))
    if examples := removed.examples(folder):
        print(_line(tr("removed"), str(folder / removed.REMOVED)))
        print("\n".join(_line("", example) for example in examples))
    for hint in hints(look(config.data)):
        print(_line(tr("note"), hint))
    planned = first_run(config.data, folder)
    print(_line(tr("next"), command("train", [*config.overrides, *planned])))
    return folder


def summary(manifest: Manifest) -> str:
    """What prepared data contains, in aligned lines."""
    from azllm_lightning.data.corpus import describe_cleaning

    lines = [_line(tr("vocabulary"), tr("{tokens:,} tokens", tokens=manifest.vocab_size))]
    for name, split in manifest.splits.items():
        documents = trn("{count:,} document", "{count:,} documents", split.documents)
        size = tr(
            "{size}, {tokens:,} tokens, {length:.2f} bytes per token",
            size=_size(split.text_bytes),
            tokens=split.tokens,
            length=split.text_bytes / split.tokens,
        )
        lines.append(_line(name, f"{documents}, {size}"))
    if cleaning := describe_cleaning(manifest.cleaning):
        lines.append(_line(tr("cleaning"), ", ".join(cleaning)))
    tokens: Counter[str] = Counter()
    for span in manifest.spans:
        tokens[span.source] += span.end - span.start
    sources = [
        f"{source} {100 * count / tokens.total():.1f} %"
        for source, count in tokens.most_common(SHOWN_SOURCES)
    ]
    if len(tokens) > SHOWN_SOURCES:
        sources.append(tr("and {count} more", count=len(tokens) - SHOWN_SOURCES))
    lines.append(_line(tr("sources"), ", ".join(sources)))
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def _line(label: str, content: str) -> str:
    return f"{label:<12}{content}"


if __name__ == "__main__":
    main()
