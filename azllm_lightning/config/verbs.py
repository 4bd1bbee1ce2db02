"""The settings of all verbs but train: one dataclass per conf/<verb>.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli.messages import check_language, tr
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.effects import (
    CHECKPOINT,
    DATA,
    EVALUATE,
    GENERATE,
    NAMED_CHECKPOINTS,
    PLAN,
    PROVE_RESUME,
    ignored_settings,
    typed_keys,
)
from azllm_lightning.config.local_paths import LocalPath, OutputPath, TextPath
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.config.strict import Problems, from_mapping

if TYPE_CHECKING:
    from typing_extensions import Self


MEASURES = ("second_half", "pairs", "samples", "suite")
"""The settings of `evaluate` that choose another measure than the loss on a text."""


@dataclass(frozen=True, kw_only=True)
class VerbConfig:
    """What every verb has: the language of its messages, and what was typed to get its settings."""

    lang: str
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(lambda: check_language(self.lang))
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return []

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """The config of a composed mapping; `overrides` is what was typed to get it."""
        return replace(from_mapping(cls, values), overrides=tuple(overrides))


@dataclass(frozen=True, kw_only=True)
class ProveResumeConfig(RunConfig):
    """The settings of conf/prove_resume.yaml: those of train, and whether to break the restore."""

    control: bool

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        replaced = ignored_settings(PROVE_RESUME, self, self.overrides)
        return [*replaced, *super().ignored()]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(VerbConfig):
    """The settings of conf/prepare.yaml."""

    data: DataConfig

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        problems.attempt(self.data.check_source)
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return ignored_settings(DATA, self, self.overrides)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(VerbConfig, SamplingConfig):
    """The settings of conf/generate.yaml."""

    prompt: str | list[str] | None
    ckpt_path: LocalPath
    run_name: str | None
    logs_dir: OutputPath
    num_samples: int
    stop: str | list[str] | None

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(lambda: VerbConfig.__post_init__(self))
        problems.attempt(lambda: SamplingConfig.__post_init__(self))
        problems.attempt(lambda: _check_run(self))
        wanted = tr("a text, or a list with at least one")
        problems.require(self.prompt != [], "prompt", self.prompt, wanted)
        samples = self.num_samples
        problems.require(samples >= 1, "num_samples", samples, tr("at least 1"))
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return ignored_settings(GENERATE, self, self.overrides)

    @property
    def prompts(self) -> list[str]:
        """The prompts, of which each is continued by itself."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []

    @property
    def stops(self) -> list[str]:
        """The stop strings; a typed \\n becomes a line break."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text.replace("\\n", "\n") for text in given]


@dataclass(frozen=True, kw_only=True)
class ChatConfig(VerbConfig, SamplingConfig):
    """The settings of conf/chat.yaml."""

    ckpt_path: LocalPath
    run_name: str | None
    logs_dir: OutputPath
    host: str
    port: int

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(lambda: VerbConfig.__post_init__(self))
        problems.attempt(lambda: SamplingConfig.__post_init__(self))
        problems.attempt(lambda: _check_run(self))
        problems.require(0 <= self.port < 2**16, "port", self.port, tr("from 0 to 65535"))
        # An empty one would mean all addresses.
        problems.require(self.host != "", "host", self.host, tr("a host name or an address"))
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return ignored_settings(CHECKPOINT, self, self.overrides)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(VerbConfig):
    """The settings of conf/evaluate.yaml; `data` has only the keys that name and read the text."""

    ckpt_path: LocalPath
    run_name: str | None
    logs_dir: OutputPath
    hf: LocalPath | None
    second_half: bool
    pairs: bool | TextPath
    samples: bool
    suite: bool
    stride: int | None
    block_size: int | None
    out: OutputPath | None
    data: DataConfig

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        problems.attempt(lambda: _check_run(self))
        if self.data.path is not None and self.data.dir is not None:
            problems.add(
                tr(
                    "data.path={path} and data.dir={folder} are two texts: omit one of the two",
                    path=self.data.path,
                    folder=self.data.dir,
                )
            )
        measures = [name for name in MEASURES if getattr(self, name)]
        if len(measures) > 1:
            problems.add(
                tr(
                    "{measures} are different measures: choose one, or suite=true alone for all",
                    measures=", ".join(measures),
                )
            )
        if self.pairs and self.has_text:
            problems.add(
                tr(
                    "pairs={pairs} reads no text: omit data.path and data.dir",
                    pairs=self.pairs if isinstance(self.pairs, str) else "true",
                )
            )
        if self.samples and self.data.path is not None:
            problems.add(
                tr(
                    "samples=true compares samples with prepared training text: give data.dir, or "
                    "omit data.path"
                )
            )
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return ignored_settings(EVALUATE, self, self.overrides)

    @property
    def has_text(self) -> bool:
        """Whether a text was given, in place of the validation split of the model's own run."""
        return self.data.path is not None or self.data.dir is not None

    @property
    def needs_run(self) -> bool:
        """Whether the text is that of a run of ours, also if the model is not."""
        return not (self.pairs or self.samples or self.has_text)


UNKNOWN = "unknown"
"""The license of a model whose authors have not chosen one."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(VerbConfig):
    """The settings of conf/export.yaml."""

    out: OutputPath | None
    format: str
    quant: str
    ckpt_path: LocalPath
    run_name: str | None
    logs_dir: OutputPath
    license: str

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        problems.require_choice("format", self.format, ("hf", "gguf", "pt"))
        problems.require_choice("quant", self.quant, ("f16", "q8_0"))
        problems.attempt(lambda: _check_run(self))
        if self.format != "gguf" and "quant" in typed_keys(self.overrides):
            problems.add(
                tr(
                    "quant={quant} is for format=gguf, and format={format}: omit one of the two",
                    quant=self.quant,
                    format=self.format,
                )
            )
        wanted = tr("a license such as apache-2.0, or unknown")
        problems.require(self.license.strip() != "", "license", self.license, wanted)
        if not self.out:
            problems.add(tr("out is not set: name the folder to write, out=FOLDER"))
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return ignored_settings(CHECKPOINT, self, self.overrides)


@dataclass(frozen=True, kw_only=True)
class RunsConfig(VerbConfig):
    """The settings of conf/runs.yaml."""

    logs_dir: OutputPath


@dataclass(frozen=True, kw_only=True)
class ReportConfig(VerbConfig):
    """The settings of conf/report.yaml."""

    run_name: str | list[str] | None
    logs_dir: OutputPath
    out: OutputPath | None

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        wanted = tr("the name of a run, or a list of names")
        problems.require(self.run_name not in ([], ""), "run_name", self.run_name, wanted)
        problems.raise_if_any()

    @property
    def names(self) -> list[str | None]:
        """The runs on the page; None is the newest."""
        if isinstance(self.run_name, list):
            return list(dict.fromkeys(self.run_name))
        return [self.run_name]


@dataclass(frozen=True, kw_only=True)
class AroundRunConfig(VerbConfig):
    """A verb that accepts the settings of a run next to its own."""

    run: RunConfig

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return self.run.ignored()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """The config of a composed mapping; the run keeps only the overrides that are its own."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(RunConfig)}
        typed = [text for text in overrides if text.partition("=")[0].lstrip("+") not in own]
        run = {key: value for key, value in values.items() if key not in own}
        mine = {key: values[key] for key in ("lang", *own) if key in values}
        return super().from_mapping({**mine, "run": {**run, "overrides": typed}}, overrides)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(AroundRunConfig):
    """The settings of conf/check.yaml: those of a run, how long to check, and where to write the
    figures.
    """

    out: OutputPath
    minutes: float

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        problems.require(self.minutes > 0, "minutes", self.minutes, tr("above 0"))
        if self.run.ckpt_path is not None:
            problems.add(
                tr(
                    "ckpt_path={ckpt_path}: check trains its own runs; omit ckpt_path",
                    ckpt_path=self.run.ckpt_path,
                )
            )
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class PlanConfig(AroundRunConfig):
    """The settings of conf/plan.yaml: those of a run, how long it may take, the `check.json` of its
    machine, and where to write the figures.
    """

    hours: float
    check: LocalPath | None
    out: OutputPath | None

    def __post_init__(self) -> None:
        problems = Problems()
        problems.attempt(super().__post_init__)
        problems.require(self.hours > 0, "hours", self.hours, tr("above 0"))
        if self.run.ckpt_path is not None:
            problems.add(
                tr("ckpt_path={ckpt_path}: plan is for a new run", ckpt_path=self.run.ckpt_path)
            )
        # The law knows neither what these gain nor what a teacher costs.
        models = {"init_from": self.run.init_from, "teachers": ", ".join(self.run.teacher_paths)}
        for key, value in models.items():
            if value:
                problems.add(
                    tr(
                        "{key}={value}: plan is for models trained from scratch on text alone; "
                        "omit {key} (python -m azllm_lightning.check measures how long a run with "
                        "it takes)",
                        key=key,
                        value=value,
                    )
                )
        if self.run.data.name == "tales":
            problems.add(tr("data=tales needs no plan: python -m azllm_lightning.train"))
        elif self.run.data.path is None and self.run.data.dir is None:
            problems.add(tr("data.path is not set: name the text, data.path=FILE or FOLDER"))
        problems.raise_if_any()

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""
        return [*super().ignored(), *ignored_settings(PLAN, self, self.overrides)]


def _check_run(config: GenerateConfig | ChatConfig | EvaluateConfig | ExportConfig) -> None:
    """Raise ValueError if run_name and ckpt_path name two runs."""
    if config.run_name is not None and config.ckpt_path not in NAMED_CHECKPOINTS:
        raise ValueError(
            tr(
                "run_name={run_name} goes with ckpt_path=best or last, and "
                "ckpt_path={ckpt_path} names the file itself: omit one of the two",
                run_name=config.run_name,
                ckpt_path=config.ckpt_path,
            )
        )
