"""The settings of all verbs but train: one dataclass per conf/<verb>.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from azllm_lightning.cli.messages import LANGUAGES, tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.config.strict import Problems, from_mapping


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The settings of conf/prepare.yaml."""

    data: DataConfig
    lang: str
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = Problems()
        problems.require_choice("lang", self.lang, LANGUAGES)
        problems.attempt(self.data.check_source)
        problems.raise_if_any()

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> PrepareConfig:
        """The config of a composed mapping; `overrides` is what was typed to get it."""
        return replace(from_mapping(cls, values), overrides=tuple(overrides))


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """The settings of conf/generate.yaml."""

    prompt: str | None
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    num_samples: int
    stop: str | list[str] | None
    lang: str

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.require_choice("lang", self.lang, LANGUAGES)
        samples = self.num_samples
        problems.require(samples >= 1, "num_samples", samples, tr("at least 1"))
        problems.raise_if_any()

    @property
    def stops(self) -> list[str]:
        """The stop strings; a typed \\n becomes a line break."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text.replace("\\n", "\n") for text in given]

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> GenerateConfig:
        """The config of a composed mapping."""
        return from_mapping(cls, values)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The settings of conf/evaluate.yaml; `data` has only the keys that name and read the text."""

    ckpt_path: str
    run_name: str | None
    logs_dir: str
    hf: str | None
    pairs: bool
    stride: int | None
    block_size: int | None
    out: str | None
    data: DataConfig
    lang: str

    def __post_init__(self) -> None:
        problems = Problems()
        problems.require_choice("lang", self.lang, LANGUAGES)
        if self.pairs and self.has_text:
            problems.add(
                tr(
                    "pairs=true scores its own sentences and reads no text: omit data.path and "
                    "data.dir"
                )
            )
        problems.raise_if_any()

    @property
    def has_text(self) -> bool:
        """Whether a text was given, in place of the validation split of the model's own run."""
        return self.data.path is not None or self.data.dir is not None

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> EvaluateConfig:
        """The config of a composed mapping."""
        return from_mapping(cls, values)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The settings of conf/export.yaml."""

    out: str | None
    format: str
    quant: str
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    license: str
    lang: str

    def __post_init__(self) -> None:
        problems = Problems()
        problems.require_choice("format", self.format, ("hf", "gguf", "pt"))
        problems.require_choice("quant", self.quant, ("f16", "q8_0"))
        problems.require_choice("lang", self.lang, LANGUAGES)
        if not self.out:
            problems.add(tr("out is not set: name the folder to write, out=FOLDER"))
        problems.raise_if_any()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> ExportConfig:
        """The config of a composed mapping."""
        return from_mapping(cls, values)


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The settings of conf/runs.yaml."""

    logs_dir: str
    lang: str

    def __post_init__(self) -> None:
        problems = Problems()
        problems.require_choice("lang", self.lang, LANGUAGES)
        problems.raise_if_any()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunsConfig:
        """The config of a composed mapping."""
        return from_mapping(cls, values)
