"""RunConfig: all settings of a run, validated once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from azllm_lightning.cli.messages import check_language, tr
from azllm_lightning.cli.overrides import quoted_list
from azllm_lightning.config.callbacks import CallbacksConfig, LoggerConfig
from azllm_lightning.config.data import DataConfig, as_list
from azllm_lightning.config.effects import DATA, TRAIN, ignored_settings, typed_keys
from azllm_lightning.config.local_paths import (
    LocalPath,
    OutputPath,
    check_folder_name,
    run_as_meant,
)
from azllm_lightning.config.model import GPTConfig, ModelConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.config.strict import Problems, from_mapping
from azllm_lightning.config.trainer import AutoChoices, TrainerConfig

if TYPE_CHECKING:
    from typing_extensions import Self


ENDINGS = re.compile(r"(\.(txt|jsonl|ndjson|json|csv|tsv|parquet|gz|zst|xz|bz2))+$", re.IGNORECASE)
"""Endings of files of text, which are no part of a run's name."""

INIT_EMBEDDINGS = ("neighbors", "random")
INIT_ATTENTION = ("induction", "random")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run, as conf/train.yaml and its groups explain them.

    A composed config may contain `auto`; `session.resolve` replaces it by the value for this
    machine and data. The result, called settled, is what a run stores, together with what `auto`
    chose. `overrides` is what was typed on top of the defaults.

    Raises ValueError with every mistake at once.
    """

    run_name: str
    logs_dir: OutputPath
    seed: int
    ckpt_path: LocalPath | None
    init_from: LocalPath | None
    lang: str
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    callbacks: CallbacksConfig
    logger: LoggerConfig
    teachers: LocalPath | list[LocalPath] | None = None
    teacher_share: float = 0.5
    teacher_temperature: float = 1.0
    init_embeddings: str = "random"
    init_attention: str = "random"
    """Both as in runs that began before they were settings."""
    auto: AutoChoices = field(default_factory=AutoChoices)
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._find_named_models()
        problems = Problems()
        problems.attempt(lambda: check_language(self.lang))
        problems.require_choice("init_embeddings", self.init_embeddings, INIT_EMBEDDINGS)
        problems.require_choice("init_attention", self.init_attention, INIT_ATTENTION)
        wanted = tr("from 0 to {highest}", highest=2**32 - 1)
        problems.require(0 <= self.seed < 2**32, "seed", self.seed, wanted)
        is_share = 0 < self.teacher_share <= 1
        wanted = tr("above 0 and at most 1")
        problems.require(is_share, "teacher_share", self.teacher_share, wanted)
        temperature = self.teacher_temperature
        problems.require(temperature > 0, "teacher_temperature", temperature, tr("above 0"))
        if self.teachers == [] and self.ckpt_path is None:
            problems.add(
                tr(
                    "teachers is empty: give the models that this one learns from, "
                    "teachers=[RUN,RUN], or teachers=null for none"
                )
            )
        problems.attempt(lambda: check_run_name(self.run_name))
        if self.run_name != unicodedata.normalize("NFC", self.run_name):
            # Two spellings of one name would be two runs.
            object.__setattr__(self, "run_name", unicodedata.normalize("NFC", self.run_name))
        if self.ckpt_path is None:
            problems.attempt(self.data.check_source)
            problems.attempt(self.model.check_heads)
        elif self.init_from is not None and "init_from" in typed_keys(self.overrides):
            problems.add(
                tr(
                    "ckpt_path={ckpt_path} resumes a run with its own weights, and "
                    "init_from={init_from} starts a new run: omit one of the two",
                    ckpt_path=self.ckpt_path,
                    init_from=self.init_from,
                )
            )
        problems.raise_if_any()

    def _find_named_models(self) -> None:
        """Have init_from and teachers mean by a run's name what other commands do by run_name."""
        if self.init_from is not None:
            object.__setattr__(self, "init_from", run_as_meant(self.init_from, self.logs_dir))
        if isinstance(self.teachers, str):
            object.__setattr__(self, "teachers", run_as_meant(self.teachers, self.logs_dir))
        elif self.teachers is not None:
            found = [run_as_meant(teacher, self.logs_dir) for teacher in self.teachers]
            object.__setattr__(self, "teachers", found)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """The config of a composed or stored mapping; `overrides` is what was typed to get it."""
        values = {key: value for key, value in values.items() if key != "overrides"}
        if values.get("run_name", "") is None:
            values["run_name"] = _name_of_text(values.get("data"))
        return replace(from_mapping(cls, values), overrides=tuple(overrides))

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> Self:
        """The config of a mapping that names its overrides; its settings belong to no `group`."""
        return cls.from_mapping(values, values["overrides"])

    @property
    def teacher_paths(self) -> list[str]:
        """`teachers` as a list, empty if null."""
        return as_list(self.teachers)

    def other_models(self) -> list[str]:
        """init_from, teachers and data.tokenizer as overrides that mean the same in any folder."""
        found = []
        if self.init_from is not None:
            found.append(f"init_from={Path(self.init_from).absolute()}")
        if self.teachers:
            places = [str(Path(path).absolute()) for path in self.teacher_paths]
            found.append(f"teachers={quoted_list(places)}")
        if self.data.tokenizer is not None:
            found.append(f"data.tokenizer={Path(self.data.tokenizer).absolute()}")
        return found

    @property
    def shape(self) -> GPTConfig:
        """The model's complete shape; only a settled config has one."""
        assert isinstance(self.model, GPTConfig), "the data has not been seen yet"
        return self.model

    @property
    def given_name(self) -> str | None:
        """run_name; None where it is only the default, the name of the text."""
        defaults = (self.data.name, default_run_name(self.data))
        is_default = self.run_name in [unicodedata.normalize("NFC", name) for name in defaults]
        is_typed = "run_name" in typed_keys(self.overrides)
        return self.run_name if is_typed or not is_default else None

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect.

        On a resume the stored settings count: see `session.resolve`.
        """
        if self.ckpt_path is not None:
            return []
        return ignored_settings([*TRAIN, *DATA], self, self.overrides)

    def to_mapping(self) -> dict[str, Any]:
        """Plain types in the form of conf/, so that `from_mapping` gives an equal config."""
        values = asdict(self)
        values["optimizer"] = self.optimizer.to_dict()
        values["overrides"] = list(self.overrides)
        for group in ("callbacks", "logger"):
            values[group] |= values[group].pop("custom")
        return values

    def to_yaml(self) -> str:
        """What a run folder and its checkpoints store; `yaml.safe_load` gives `to_mapping`."""
        return yaml.safe_dump(self.to_mapping(), allow_unicode=True, sort_keys=False)


def default_run_name(data: DataConfig) -> str:
    """The name of a run without one: that of the file or folder of its text; data.name if the text
    has another one, or if that cannot be a folder's name.
    """
    places = [*data.paths[:1], *([] if data.dir is None else [data.dir])]
    if data.name != "text" or not places:
        return data.name
    parts = [part for part in re.split(r"[/\\]", places[0].partition("?")[0]) if part]
    parts = [part for part in parts if not re.search(r"[*\[\]{}]", part)]
    if not parts or parts[-1] in (".", ".."):
        parts = [Path(*parts).resolve().name]
    last = unicodedata.normalize("NFC", ENDINGS.sub("", parts[-1]))
    name = re.sub(r"[^\w .+=@#()-]", "_", last).strip(" .")
    try:
        check_run_name(name)
    except ValueError:
        return data.name
    return name


def _name_of_text(values: Any) -> str:
    """The same of the settings of the text before they are checked."""
    try:
        return default_run_name(from_mapping(DataConfig, values, "data"))
    except (ValueError, AttributeError, TypeError):  # reported with all other mistakes
        return DataConfig.name


def check_run_name(name: str) -> None:
    """Raise ValueError unless `name` can name a folder on every system."""
    check_folder_name("run_name", name)
