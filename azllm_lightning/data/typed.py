"""Settings of the text that contradict each other, which only files can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.data.pipeline import content_settings
from azllm_lightning.data.shards import MANIFEST, Manifest
from azllm_lightning.data.tokenizer import Tokenizer


def check_typed(config: DataConfig, overrides: Sequence[str]) -> None:
    """Raise ValueError if data.dir was prepared from another text than the one in `overrides`, or
    data.tokenizer has another size than the data.vocab_size there.
    """
    typed = typed_keys(overrides)
    if {"data", "data.path", "data.val_path"} & typed:
        _check_text(config)
    if "data.vocab_size" in typed and config.tokenizer is not None:
        size = Tokenizer.from_file(config.tokenizer).vocab_size
        if size != config.vocab_size:
            raise ValueError(
                tr(
                    "data.vocab_size={asked}: data.tokenizer={path} has {size:,} tokens; "
                    "omit data.vocab_size, or data.tokenizer to train one of that size",
                    asked=config.vocab_size,
                    path=config.tokenizer,
                    size=size,
                )
            )


def _check_text(config: DataConfig) -> None:
    folder = Path(config.dir) if config.dir is not None else None
    if folder is None or not (folder / MANIFEST).is_file():
        return
    stored = Manifest.read(folder).made_from
    asked = {"path": config.path, "val_path": config.val_path}
    if config.name == "tales":
        asked["name"] = config.name
    for key, value in asked.items():
        if value is not None and places(value) != places(stored.get(key)):
            raise ValueError(
                tr(
                    "data.dir={folder} was prepared from data.{key}={stored}, not from {value}: "
                    "omit data.dir, or give it another folder; to train on what is there, omit "
                    "data.{key}",
                    folder=folder,
                    key=key,
                    stored=stored.get(key),
                    value=value,
                )
            )


def changed(config: DataConfig, before: Mapping[str, Any]) -> list[str]:
    """The settings of `config` that decide what the prepared data has and were others `before`."""

    def comparable(key: str, value: Any) -> Any:
        return places(value) if key in ("path", "val_path") else value

    return [
        key
        for key, value in content_settings(config).items()
        if key in before and comparable(key, before[key]) != comparable(key, value)
    ]


def places(paths: str | list[str] | None) -> list[str]:
    """`paths` in a form in which two spellings of one place are equal."""
    given = [paths] if isinstance(paths, str) else paths or []
    return [path if "://" in path else str(Path(path).resolve()) for path in given]
