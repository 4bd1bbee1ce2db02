"""What --help and the docs say about each setting comes from conf/, and it is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from azllm_lightning.cli.composition import composed_mapping, conf_dir
from azllm_lightning.cli.keys import keys_of
from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.cli.reference import (
    description,
    help_text,
    meanings,
    read_settings,
)
from azllm_lightning.config.compose import CONFIGS


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_setting_of_a_verb_has_a_meaning(verb: str) -> None:
    values = composed_mapping(verb)
    explained = meanings(verb, values)
    groups = {key for key in keys_of(values) if isinstance(at(values, key), dict)}
    assert [key for key in keys_of(values) if key not in groups and not explained.get(key)] == []


def at(values: dict[str, object], key: str) -> object:
    found: object = values
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found


def test_comments_are_read_behind_values_below_them_and_above_them(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "# What it is.\n# More.\n\na: 1 # one\nb: 'x # y' # two,\n   # continued\n"
        "# above\nc: [1, 2]\ngroup: # inner\n  d: null # four\ne: 5\n",
        encoding="utf-8",
    )
    found = {item.key: (item.default, item.meaning) for item in read_settings(file)}
    assert found == {
        "a": ("1", "one"),
        "b": ("'x # y'", "two, continued"),
        "c": ("[1, 2]", "above"),
        "group": ("", "inner"),
        "group.d": ("null", "four"),
        "e": ("5", ""),
    }
    assert description(file) == "What it is.\nMore."


def test_help_shows_usage_groups_values_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text("train", composed_mapping("train", ["trainer.max_steps=7"]))
    for part in (
        "azllm_lightning.train experiment=t4",
        "experiment: colab, course, debug",
        "  trainer.max_steps=7\n      length of the run",
        "global_batch_size",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 120


def test_help_is_there_in_azerbaijani() -> None:
    use_language("az")
    try:
        text = help_text("generate", composed_mapping("generate"))
    finally:
        use_language(None)
    assert "ə" in text.splitlines()[0]
    assert "most tokens" not in text


@pytest.mark.parametrize("file", sorted(conf_dir().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is(file: Path) -> None:
    assert description(file).strip()


DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_of_all_settings_are_those_of_conf() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "settings.py"), "--check"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(file.stem for file in conf_dir().glob("*.yaml")))
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_of_all_settings_has_those_of_every_verb(lang: str, verb: str) -> None:
    page = (DOCS / "settings" / f"{lang}.md").read_text(encoding="utf-8")
    assert page.count(f"### `{verb}`\n") == 1
    section = page.partition(f"### `{verb}`\n")[2].partition("\n### ")[0]
    keys = [item.key for item in read_settings(conf_dir() / f"{verb}.yaml") if item.default]
    assert re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE) == keys


@pytest.mark.parametrize(
    ("verb", "groups"),
    [
        ("train", "experiment data model optimizer schedule trainer callbacks logger"),
        ("prove_resume", "experiment data model optimizer schedule trainer callbacks logger"),
        ("check", "experiment data model optimizer schedule trainer callbacks logger"),
        ("prepare", "data"),
        ("evaluate", ""),
        ("runs", ""),
    ],
)
def test_help_lists_the_groups_that_a_verb_has(verb: str, groups: str) -> None:
    lines = help_text(verb, composed_mapping(verb)).splitlines()
    listed = [line.split(":")[0].strip() for line in lines if re.match(r"  [a-z]+: [a-z]", line)]
    assert listed == groups.split()
