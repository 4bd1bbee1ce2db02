"""The rules of the house: who imports whom, and what conf/ and the code agree on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import azllm_lightning
from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.config.callbacks import (
    CallbacksConfig,
    HealthConfig,
    LoggerConfig,
    SamplesConfig,
)
from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.model import ModelConfig
from azllm_lightning.config.optimizer import AdamWConfig, MuonConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.config.trainer import TrainerConfig

PACKAGE = Path(azllm_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    "cli",
    "config",
    "disk",
    "azerbaijani",
    "data",
    "model",
    "formats",
    "inference",
    "runs",
    "training",
    "planning",
    "callbacks",
    "report",
    "session",
    "machine",
)
CHOICES = sorted(
    path.relative_to(conf_dir()).with_suffix("").as_posix()
    for path in conf_dir().glob("*/*.yaml")
    if path.parent.name != "hydra"
)


def imports(source: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(source: Path) -> str:
    parts = source.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def own_imports(source: Path) -> set[str]:
    """The modules of the package that a file imports."""
    modules = {module_name(other) for other in SOURCES}
    return {name for name in imports(source) if name in modules and name != "azllm_lightning"}


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_from_folders_before_it(folder: str) -> None:
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    sources = sorted((PACKAGE / folder).rglob("*.py"))
    assert sources
    for source in sources:
        own = {
            name.split(".")[1] for name in imports(source) if name.startswith("azllm_lightning.")
        }
        assert own <= allowed, source


@pytest.mark.thorough
def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module_name(source): own_imports(source) for source in SOURCES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module in done:
            return
        for imported in graph[module]:
            if imported.rpartition(".")[0] != module:  # a package and its own module
                visit(imported, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def private_names(source: Path) -> set[str]:
    """Names with a leading underscore that a file takes from another module of the package."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("azllm_lightning"):
            names |= {alias.name for alias in node.names}
    return {name for name in names if re.match(r"_[a-z]", name)}


TESTS = sorted((PACKAGE.parent / "tests").rglob("*.py"))
SCRIPTS = sorted((PACKAGE.parent / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("source", [*SOURCES, *TESTS, *SCRIPTS], ids=lambda path: path.name)
def test_private_names_stay_in_their_file(source: Path) -> None:
    assert private_names(source) == set()


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("azerbaijani", {"torch", "lightning", "hydra", "omegaconf", "numpy"}),
        (
            "model",
            {
                "lightning",
                "hydra",
                "omegaconf",
                "logging",
                "torchmetrics",
                "tensorboard",
                "tqdm",
                "yaml",
            },
        ),
        ("config", {"torch", "lightning", "hydra", "omegaconf", "numpy"}),
        ("training", {"tqdm", "omegaconf", "hydra", "yaml"}),
    ],
)
def test_a_folder_knows_nothing_of(folder: str, forbidden: set[str]) -> None:
    for source in (PACKAGE / folder).rglob("*.py"):
        assert forbidden.isdisjoint(name.partition(".")[0] for name in imports(source)), source


def test_only_the_command_line_and_the_users_own_classes_know_of_hydra() -> None:
    knowing = {
        source.relative_to(PACKAGE).as_posix()
        for source in SOURCES
        if {"hydra", "omegaconf"} & {name.partition(".")[0] for name in imports(source)}
    }
    allowed = {"session/build.py"}
    assert {name for name in knowing if not name.startswith("cli/")} == allowed


def test_words_for_a_shell_are_those_of_the_shell_here() -> None:
    """shlex knows only those of POSIX."""
    knowing = [
        source.relative_to(PACKAGE).as_posix() for source in SOURCES if "shlex" in imports(source)
    ]
    assert knowing == ["cli/shell.py"]


@pytest.mark.parametrize("verb", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_a_verb_can_be_read_at_a_glance(verb: str) -> None:
    assert len((PACKAGE / f"{verb}.py").read_text(encoding="utf-8").splitlines()) < 100


def test_no_two_modules_of_the_package_have_one_name() -> None:
    names = [source.stem for source in SOURCES if not source.stem.startswith("__")]
    in_config = {path.stem for path in (PACKAGE / "config").glob("*.py")}
    twins = {name for name in names if names.count(name) > 1}
    # config/<noun>.py has the settings of <room>/<noun>.py, and both mirror conf/<noun>.
    assert twins - in_config == set()
    assert not [source for source in SOURCES if "utils" in source.stem]


def test_public_names_are_there() -> None:
    for name in azllm_lightning.__all__:
        assert callable(getattr(azllm_lightning, name))


def test_train_can_be_called_however_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azllm_lightning", "azllm_lightning.train"):  # as if they were not imported yet
        monkeypatch.delitem(sys.modules, name, raising=False)
    code = (
        "from azllm_lightning import train\n"
        "import azllm_lightning.train\n"
        "from azllm_lightning import train as again\n"
        "functions = (train, again, azllm_lightning.train, azllm_lightning.train.train)"
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["azllm_lightning"] is not azllm_lightning
    for function in names["functions"]:
        with pytest.raises(AttributeError, match="lang"):
            function(None)


def test_generating_imports_no_lightning() -> None:
    code = (
        "import sys; from azllm_lightning import load, sample, Tokenizer, GPT\n"
        "try: load('yox')\n"
        "except ValueError: pass\n"
        "heavy = {'lightning', 'hydra.core.hydra_config', 'tensorboard', 'torchmetrics', "
        "'pyarrow'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120
    )
    # sys.exit of a text prints it on stderr; '' is nothing.
    assert (done.returncode, done.stderr.strip()) == (1, "")


def names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


GROUPS = {
    "data/text": names(DataConfig),
    "model/nano": names(ModelConfig),
    "optimizer/adamw": names(AdamWConfig),
    "optimizer/muon": names(MuonConfig),
    "schedule/power": names(ScheduleConfig),
    "trainer/default": names(TrainerConfig),
    "callbacks/default": names(CallbacksConfig) - {"custom"},
    "logger/tensorboard": names(LoggerConfig) - {"custom"},
}
"""The files of conf/ with every key of their group; all others change some keys of one of these."""


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if "experiment" not in choice])
def test_conf_and_dataclass_have_the_same_keys(choice: str) -> None:
    values = yaml.safe_load((conf_dir() / f"{choice}.yaml").read_text(encoding="utf-8"))
    defaults = values.pop("defaults", None)
    if defaults is None:
        assert choice in GROUPS, f"{choice}.yaml has every key of its group: add it to GROUPS"
        assert values.keys() == GROUPS[choice]
    else:
        group = choice.partition("/")[0]
        assert values.keys() <= GROUPS[f"{group}/{defaults[0]}"]
    if choice.startswith("callbacks/"):
        assert values["health"].keys() == names(HealthConfig)
        assert values["samples"].keys() == names(SamplesConfig)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_a_valid_config(choice: str) -> None:
    group, _, name = choice.partition("/")
    needed = ["teachers=[a,b]"] if name == "distil" else []
    config = compose([f"{group}={name}", *needed])
    assert compose(config.overrides) == config


def test_kaggle_and_colab_are_t4_in_a_place_that_stays() -> None:
    for name in ("kaggle", "colab"):
        config = compose([f"experiment={name}"])
        t4 = compose(["experiment=t4"])
        assert (config.model, config.optimizer) == (t4.model, t4.optimizer)
        assert config.trainer.global_batch_size == t4.trainer.global_batch_size
        assert config.trainer.deadline == "11h30m"


def test_on_colab_the_clock_decides_when_a_state_is_saved() -> None:
    trainer = compose(["experiment=colab"]).trainer
    assert trainer.checkpoint_every_minutes == 30
    assert trainer.checkpoint_every_steps >= trainer.max_steps


def test_t4_is_the_run_of_the_course() -> None:
    config = compose(["experiment=t4"])
    data, model, trainer = config.data, config.model, config.trainer
    assert (model.n_layer, model.n_head, model.n_embd) == (12, 6, 768)
    assert (data.name, data.vocab_size, data.block_size) == ("fineweb2", 32_000, 512)
    assert (data.val_windows, data.max_bytes) == (2400, 700_000_000)
    assert (trainer.global_batch_size, trainer.micro_batch_size) == (48, 24)
    assert (trainer.precision, trainer.accelerator) == ("16-mixed", "gpu")
    assert (trainer.max_steps, trainer.val_every_steps) == (5000, 500)
    assert trainer.checkpoint_every_steps == 500
    assert trainer.gradient_clip_val == 1.0


def test_course_is_t4_with_the_recipe_of_the_course() -> None:
    ours = compose(["experiment=t4"]).to_mapping()
    theirs = compose(["experiment=course"]).to_mapping()
    changed = {key for key in ours if ours[key] != theirs[key]}
    random = {"init_embeddings", "init_attention"}
    assert changed == {"run_name", "model", "optimizer", "schedule", "overrides", *random}
    assert theirs["model"] == {**ours["model"], "n_head": 12, "n_kv_head": 12}
    assert {theirs[key] for key in random} == {"random"}
    adamw = {"name": "adamw", "lr": 6e-4, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
    assert theirs["optimizer"] == adamw
    cosine = {
        "name": "cosine",
        "warmup_steps": 100,
        "total_steps": None,
        "decay_ratio": 1.0,
        "min_lr_ratio": 0.1,
        "branches": 1,
    }
    assert theirs["schedule"] == cosine


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("model/")])
def test_models_have_the_size_that_their_files_state(choice: str) -> None:
    text = (conf_dir() / f"{choice}.yaml").read_text(encoding="utf-8")
    stated = re.match(r"# ([\d.]+) M parameters at a vocabulary of ([\d,]+)", text)
    assert stated is not None
    model = compose([f"model={choice.partition('/')[2]}"]).model
    size = model.for_data(int(stated[2].replace(",", "")), 256, 0).num_params() / 1e6
    decimals = len(stated[1].partition(".")[2])
    assert f"{size:.{decimals}f}" == stated[1]


def test_the_course_model_tied_has_110_million() -> None:
    model = compose(["model=course", "model.tie_embeddings=true"]).model
    assert round(model.for_data(32_000, 512, 0).num_params() / 1e6) == 110
