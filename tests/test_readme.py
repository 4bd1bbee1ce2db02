from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.cli.entrance import compose, conf_dir

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.az.md"]


def commands(name: str) -> list[list[str]]:
    """The commands of the project in a README, as [verb, override, ...]."""
    found = re.findall(
        r"^    !?python -m azllm_lightning\.(.*)$",
        (ROOT / name).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [shlex.split(command) for command in found]


def table(name: str) -> dict[str, str]:
    """The defaults that a README's table of settings gives, by key."""
    rows = re.findall(
        r"^\| (`[^|]*`) \| ([^|]*) \|", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    defaults = {}
    for keys, values in rows:
        names = re.findall(r"`([^`]+)`", keys)
        group = names[0].rpartition(".")[0]
        full = [key if "." in key or not group else f"{group}.{key}" for key in names]
        defaults |= dict(zip(full, values.replace("`", "").split(", "), strict=True))
    return defaults


@pytest.mark.parametrize("command", commands("README.md"), ids=" ".join)
def test_every_command_is_accepted(command: list[str]) -> None:
    from azllm_lightning.session.build import check

    verb, *overrides = command
    assert (conf_dir() / f"{verb}.yaml").is_file()
    config = compose(overrides, verb)
    if verb == "train":
        check({**config, "logs_dir": "lightning_logs"})  # colab's and kaggle's folders are not here


def test_both_languages_give_the_same_commands() -> None:
    english, azerbaijani = (commands(name) for name in READMES)
    assert len(english) >= 10
    assert azerbaijani == english


@pytest.mark.parametrize("name", READMES)
def test_the_table_gives_the_true_defaults(name: str) -> None:
    config = compose()
    defaults = table(name)
    assert len(defaults) >= 20
    for group in ("data", "model", "optimizer", "schedule"):
        assert compose([f"{group}={defaults.pop(group)}"]) == config
    assert defaults.pop("run_name")  # it follows from the data
    for key, told in defaults.items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        assert value == (told if isinstance(value, str) else json.loads(told)), key


def test_the_tour_of_the_code_names_every_file() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [
        path.name for path in (ROOT / "azllm_lightning").rglob("*.py") if path.name != "__init__.py"
    ]
    assert not [name for name in files if name not in re.findall(r"[\w.]+", tour)]
