"""The rules of the layout: who imports whom, what conf/ and the code agree on, how much there may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import azllm_lightning
from azllm_lightning.cli.entrance import compose, conf_dir
from azllm_lightning.config.callbacks import CallbacksConfig, HealthConfig, SamplesConfig
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.session.build import check, model_config

PACKAGE = Path(azllm_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    "cli config azerbaijani data model formats inference runs training callbacks session"
).split()
CHOICES = sorted(
    path.relative_to(conf_dir()).with_suffix("").as_posix() for path in conf_dir().glob("*/*.yaml")
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


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_imports_only_from_folders_before_it(folder: str) -> None:
    allowed = {*ORDER[: ORDER.index(folder) + 1]}
    sources = sorted((PACKAGE / folder).rglob("*.py"))
    assert sources
    for source in sources:
        own = {
            name.split(".")[1] for name in imports(source) if name.startswith("azllm_lightning.")
        }
        assert own <= allowed, source


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
        ("training", {"tqdm", "omegaconf"}),
    ],
)
def test_a_folder_knows_nothing_of(folder: str, forbidden: set[str]) -> None:
    for source in (PACKAGE / folder).rglob("*.py"):
        assert forbidden.isdisjoint(name.partition(".")[0] for name in imports(source)), source


def code_lines(source: Path) -> int:
    """Lines with code on them: neither blank, nor comment, nor docstring."""
    text = source.read_text(encoding="utf-8")
    told = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in told
        for number, line in lines
    )


def test_size() -> None:
    # The core makes text into a checkpoint; what watches it has a limit of its own; language and verbs lie beside.
    core = [source for source in SOURCES if source.parent.name in ("data", "model", "training")]
    watching = [source for source in SOURCES if source.parent.name == "callbacks"]
    assert sum(map(code_lines, core)) < 4000
    assert sum(map(code_lines, watching)) < 1000
    lines = {
        source.name: len(source.read_text(encoding="utf-8").splitlines()) for source in SOURCES
    }
    assert {name: number for name, number in lines.items() if number > 300} == {}
    assert not [source for source in SOURCES if "utils" in source.stem]


def test_public_names_are_there_and_no_verb_among_them() -> None:
    for name in azllm_lightning.__all__:
        assert getattr(azllm_lightning, name).__name__ == name
    assert {source.stem for source in PACKAGE.glob("*.py")}.isdisjoint(azllm_lightning.__all__)


def test_generating_imports_no_lightning() -> None:
    code = (
        "import sys; from azllm_lightning import load, sample, Tokenizer, GPT\n"
        "try: load('yox')\n"
        "except ValueError: pass\n"
        "sys.exit(' '.join({'lightning', 'hydra', 'tensorboard', 'torchmetrics', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120
    )
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "",
    )  # sys.exit of a text is told on stderr; '' is nothing


def names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


GROUPS = {
    "data/text": names(DataConfig),
    **dict.fromkeys(
        ("model/course", "model/laptop", "model/nano", "model/small10m", "model/tiny"),
        names(GPTConfig) - {"vocab_size", "block_size", "eos_id"},
    ),
    "optimizer/adamw": names(OptimizerConfig),
    "optimizer/muon": names(MuonConfig),
    **dict.fromkeys(("schedule/cosine", "schedule/linear", "schedule/wsd"), names(ScheduleConfig)),
    "trainer/default": names(TrainerConfig),
    "callbacks/default": names(CallbacksConfig),
}


@pytest.mark.parametrize(
    "choice", [choice for choice in CHOICES if choice.partition("/")[0] != "experiment"]
)
def test_conf_and_dataclass_have_the_same_keys(choice: str) -> None:
    values = yaml.safe_load((conf_dir() / f"{choice}.yaml").read_text(encoding="utf-8"))
    if values.pop("defaults", None) is None and not choice.startswith("logger/"):
        assert values.keys() == GROUPS[choice]
    elif choice.startswith("data/"):
        assert values.keys() <= GROUPS["data/text"]
    if choice.startswith("callbacks/"):
        assert values["health"].keys() == names(HealthConfig)
        assert values["samples"].keys() == names(SamplesConfig)


@pytest.mark.parametrize("choice", ["train", *CHOICES])
def test_every_key_is_explained(choice: str) -> None:
    first, *rest = (conf_dir() / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    if choice.startswith(
        "experiment/"
    ):  # its keys are explained in their groups; it says what it is
        assert first == "# @package _global_"
        assert re.match(r"# \w+", rest[0])
        return
    own = (
        rest[: rest.index(hydra[0])]
        if (hydra := [line for line in rest if line.startswith("hydra:")])
        else rest
    )
    for above, line in zip([first, *own], own, strict=False):
        if re.match(r" *\w+: *[^ #]", line):
            assert " # " in line or above.startswith("# "), line


def test_cpu_is_the_default() -> None:
    assert compose(["+experiment=cpu"]) == compose()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_a_valid_config(choice: str) -> None:
    group, _, name = choice.partition("/")
    config = compose([f"+experiment={name}" if group == "experiment" else f"{group}={name}"])
    check({**config, "logs_dir": "lightning_logs"})  # colab's and kaggle's folders are not here


def test_a_drive_that_is_not_mounted_is_told() -> None:
    with pytest.raises(
        ValueError,
        match=r"logs_dir=/content/drive/MyDrive/lightning_logs.*mount Google Drive first",
    ):
        check(compose(["+experiment=colab"]))


def test_t4_is_the_run_of_the_course() -> None:
    config = compose(["+experiment=t4"])
    data, model, trainer = config["data"], config["model"], config["trainer"]
    assert (model["n_layer"], model["n_head"], model["n_embd"]) == (12, 12, 768)
    assert (data["name"], data["vocab_size"], data["block_size"], data["batch_size"]) == (
        "fineweb2",
        32_000,
        512,
        12,
    )
    assert (data["val_windows"], data["max_bytes"]) == (2400, 700_000_000)
    assert (trainer["accumulate_grad_batches"], trainer["precision"]) == (4, "16-mixed")
    assert (
        trainer["max_steps"],
        trainer["val_every_steps"],
        trainer["checkpoint_every_steps"],
    ) == (5000, 500, 500)
    assert trainer["accelerator"] == "gpu"
    assert trainer["gradient_clip_val"] == 1.0


def test_course_is_t4_by_the_recipe_of_the_course() -> None:
    ours, theirs = compose(["+experiment=t4"]), compose(["+experiment=course"])
    assert {key for key in ours if ours[key] != theirs[key]} == {
        "run_name",
        "optimizer",
        "schedule",
    }
    adamw = {"name": "adamw", "lr": 6e-4, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
    assert theirs["optimizer"] == adamw
    cosine = {
        "name": "cosine",
        "warmup_steps": 100,
        "total_steps": None,
        "decay_ratio": 1.0,
        "min_lr_ratio": 0.1,
    }
    assert theirs["schedule"] == cosine


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("model/")])
def test_models_have_the_size_that_their_files_tell(choice: str) -> None:
    text = (conf_dir() / f"{choice}.yaml").read_text(encoding="utf-8")
    told = re.match(r"# ([\d.]+) M parameters at a vocabulary of ([\d,]+)", text)
    assert told is not None
    config = compose([f"model={choice.partition('/')[2]}"])
    size = model_config(config, int(told[2].replace(",", "")), 256, 0).num_params() / 1e6
    decimals = len(told[1].partition(".")[2])
    assert f"{size:.{decimals}f}" == told[1]


def test_the_course_model_tied_has_110_million() -> None:
    config = compose(["model=course", "model.tie_embeddings=true"])
    assert round(model_config(config, 32_000, 512, 0).num_params() / 1e6) == 110
