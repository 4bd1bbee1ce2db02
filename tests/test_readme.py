"""README and docs: commands work, both languages agree, links lead somewhere, one address."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.cli import messages
from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.cli.messages import LANGUAGES
from azllm_lightning.cli.reference import choices
from azllm_lightning.config.compose import compose
from azllm_lightning.inference.device import TORCH

ROOT = Path(__file__).parents[1]
READMES = {"en": ROOT / "README.md", "az": ROOT / "README.az.md"}
PAGES = sorted(path.name for path in (ROOT / "docs" / "en").glob("*.md"))
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/en/*.md", "docs/az/*.md", "benchmarks/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
OTHERS_MESSAGES = ("ensurepip is not available", "running scripts is disabled")
"""What Debian and PowerShell say, not we."""

COMMAND = re.compile(r"^!?(?:python -m azllm_lightning\.|azllm )(?=\w)(.*)$")


def translations(name: str) -> tuple[Path, Path]:
    """The English and the Azerbaijani file of a page of the docs, or of README."""
    if name == "README":
        return READMES["en"], READMES["az"]
    return ROOT / "docs" / "en" / name, ROOT / "docs" / "az" / name


def code(path: Path) -> list[str]:
    """The lines of a page's code blocks, and its inline code."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    return [line for block in blocks for line in block.splitlines()] + inline


def examples(path: Path) -> list[str]:
    """The commands of a page, or those in the comments of a file of conf/, as they are typed."""
    if path.suffix == ".yaml":
        return re.findall(
            r"^#  +(\S+=.*?|python .*?)(?:  .*)?$", path.read_text("utf-8"), re.MULTILINE
        )
    return [
        re.sub(r" +# .*", "", line)
        for line in code(path)
        if re.match(r"!|nohup |python |azllm ", line)
    ]


def commands(path: Path) -> list[list[str]]:
    """The project's commands in a page, as [verb, override, ...]; indented ones are output."""
    found = [match[1] for line in code(path) if (match := COMMAND.match(line))]
    return [shlex.split(command, comments=True) for command in found]


def all_commands() -> list[list[str]]:
    """Every command of the English pages, once."""
    found = [command for name in ("README", *PAGES) for command in commands(translations(name)[0])]
    return [shlex.split(line) for line in dict.fromkeys(shlex.join(command) for command in found)]


def fixed_code(path: Path) -> list[str]:
    """The code blocks that are the same in each language, without comments: commands and Python."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(
        r"^```(?:bash|powershell|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    return [re.sub(r" *# .*", "", line) for block in blocks for line in block.splitlines()]


def quoted_messages(lang: str) -> list[str]:
    """The messages that the docs explain: headings of one page, the first column of another."""
    docs = ROOT / "docs" / lang
    headings = re.findall(
        r"^\*\*`(.+?)`", (docs / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    watching = (docs / "watching.md").read_text(encoding="utf-8")
    (table_rows,) = re.findall(r"^\|---\|---\|---\|\n\| (?!!)((?:.+\n)+)", watching, re.MULTILINE)
    ours = [text for text in headings if text not in OTHERS_MESSAGES]
    return ours + [row.strip("| ").split(" | ")[0] for row in table_rows.splitlines()]


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(name: str) -> dict[str, str]:
    """The defaults that the table of settings of a page gives, by key."""
    rows = re.findall(
        r"^\| (`[^|]*`) \| ([^|]*) \|", Path(name).read_text(encoding="utf-8"), re.MULTILINE
    )
    defaults = {}
    for keys, values in rows:
        names = re.findall(r"`([^`]+)`", keys)
        group = names[0].rpartition(".")[0]
        full = [key if "." in key or not group else f"{group}.{key}" for key in names]
        defaults |= dict(zip(full, values.replace("`", "").split(", "), strict=True))
    return defaults


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_command_is_accepted(command: list[str]) -> None:
    verb, *overrides = command
    assert (conf_dir() / f"{verb}.yaml").is_file()
    compose(overrides, verb)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted((ROOT / "conf").rglob("*.yaml"))], ids=lambda path: path.stem
)
def test_no_shell_reads_a_setting_as_a_pattern(path: Path) -> None:
    """Outside quotes, zsh ends with "no matches found" at a list, and every shell expands `*`."""
    for example in examples(path):
        outside = re.sub(r""""[^"]*"|'[^']*'""", "", example)
        assert not re.search(r"[\[*]", outside.replace("[...]", "")), example


def test_there_are_commands_of_every_verb() -> None:
    verbs = {command[0] for command in all_commands()}
    assert verbs == {path.stem for path in conf_dir().glob("*.yaml")}


@pytest.mark.parametrize("name", ["README", *PAGES])
def test_both_languages_give_the_same_commands(name: str) -> None:
    english, azerbaijani = translations(name)
    assert commands(azerbaijani) == commands(english)
    assert fixed_code(azerbaijani) == fixed_code(english)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_messages_that_are_quoted_exist(lang: str) -> None:
    """Word by word, with numbers in the place of fields, and `...` for anything."""
    known = messages.translations()
    ours = list(known if lang == "en" else known.values())
    quotes = quoted_messages(lang)
    assert len(quotes) > 15
    for quote in quotes:
        parts = re.split(r"(\.\.\.|\d[\d.,]*\b%?)", quote)
        parts[::2] = map(re.escape, parts[::2])
        parts[1::2] = [
            ".*" if part == "..." else rf"(?:{{[^{{}}]+}}|{re.escape(part)})"
            for part in parts[1::2]
        ]
        assert any(re.search("".join(parts), text) for text in ours), quote


def test_both_languages_quote_the_same_number_of_messages() -> None:
    assert len(quoted_messages("az")) == len(quoted_messages("en"))


def test_both_languages_have_the_same_pages() -> None:
    assert sorted(path.name for path in (ROOT / "docs" / "az").glob("*.md")) == PAGES


@pytest.mark.parametrize("language", READMES)
def test_a_readme_is_short(language: str) -> None:
    assert READMES[language].stat().st_size <= 10_000


@pytest.mark.parametrize("language", ["en", "az"])
def test_the_table_gives_the_true_defaults(language: str) -> None:
    config = compose()
    defaults = table(str(ROOT / "docs" / language / "settings.md"))
    assert len(defaults) >= 20
    for group in ("data", "model", "optimizer", "schedule"):
        assert getattr(compose([f"{group}={defaults.pop(group)}"]), group) == getattr(config, group)
    assert defaults.pop("run_name")  # it follows from the data
    for key, text in defaults.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        assert value == (text if isinstance(value, str) else json.loads(text)), key


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = re.sub(
        r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for link in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_the_address_is_the_one_in_pyproject() -> None:
    check = [sys.executable, str(ROOT / "docs" / "address.py"), "--check"]
    done = subprocess.run(check, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bounds_of_torch_are_those_in_pyproject() -> None:
    assert f'"{TORCH}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    for file in (*workflows, *(ROOT / "docs" / lang / "first_model.md" for lang in ("en", "az"))):
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r'"(torch[<>][^"]*)"', text)) <= {TORCH}, file


def test_the_tour_of_the_code_names_every_file() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [
        path.name for path in (ROOT / "azllm_lightning").rglob("*.py") if path.name != "__init__.py"
    ]
    missing = [name for name in files if name not in re.findall(r"[\w.]+", tour)]
    assert not missing, f"add to the tour in CONTRIBUTING.md: {', '.join(missing)}"


@pytest.mark.parametrize("lang", ["en", "az"])
@pytest.mark.parametrize("group", ["data", "model", "optimizer", "schedule"])
def test_the_table_of_settings_lists_the_choices(group: str, lang: str) -> None:
    text = (ROOT / "docs" / lang / "settings.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{group}` \| `\w+` \| ([^|]*) \|$", text, re.MULTILINE)
    assert row is not None
    assert set(row[1].rpartition(": ")[2].split(", ")) == set(choices(group))
