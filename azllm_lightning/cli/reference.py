"""What each setting means, read from the comments in conf/: for --help and the documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.cli.keys import keys_of
from azllm_lightning.cli.messages import tr

WIDTH = 80


@dataclass(frozen=True)
class Setting:
    """One key of a file in conf/: its path there, its default as written, and its comment."""

    key: str
    default: str
    meaning: str


def read_settings(file: Path) -> list[Setting]:
    """The settings in a file of conf/, in order, those of nested groups included.

    The meaning of a key is the comment behind its value, with the comment lines that continue it,
    or else the comment lines above it.
    """
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    return list(_settings(root, text.splitlines(), "")) if root is not None else []


def description(file: Path) -> str:
    """What a file of conf/ says about itself: the comment lines at its top."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines)


def choices(group: str) -> dict[str, str]:
    """The files of a group in conf/ with the first lines of their descriptions."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return {file.stem: description(file).split("\n")[0] for file in files}


def roots_and_groups(verb: str) -> tuple[list[Path], list[str]]:
    """The files in conf/ that a verb is composed from, and the groups that one can choose from."""
    root = conf_dir() / f"{verb}.yaml"
    roots = [root]
    groups: list[str] = []
    for entry in yaml.safe_load(root.read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, dict):
            names = {key.removeprefix("override ") for key in entry} - {"hydra", *groups}
            groups += sorted(names)
        elif entry != "_self_":
            more_roots, more_groups = roots_and_groups(entry)
            roots = more_roots + roots
            groups += more_groups
    return roots, groups


def meanings(verb: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What each key of a composed config of `verb` means, where conf/ says so."""
    roots, groups = roots_and_groups(verb)
    found = {item.key: item.meaning for root in roots for item in read_settings(root)}
    for group in groups:
        chosen = values[group]
        # Other choices contain only what they change; if several files explain a key, the
        # chosen one wins.
        files = [file for file in sorted((conf_dir() / group).glob("*.yaml")) if is_complete(file)]
        files += [
            file for file in [conf_dir() / group / f"{chosen.get('name')}.yaml"] if file.is_file()
        ]
        for file in files:
            for item in read_settings(file):
                if item.meaning:
                    found[f"{group}.{item.key}"] = item.meaning
    return found


def help_text(verb: str, values: Mapping[str, Any]) -> str:
    """What --help prints: usage, the choices of each group, and every key with its value and
    meaning.
    """
    usage = tr(description(conf_dir() / f"{verb}.yaml"))
    explained = meanings(verb, values)
    lines = [usage]
    _, groups = roots_and_groups(verb)
    if "trainer" in groups:  # an experiment changes several groups of a run
        groups = ["experiment", *groups]
    if groups:
        lines += ["", tr("Groups (group=choice):"), ""]
    for group in groups:
        names = ", ".join(choices(group))
        lines += textwrap.wrap(
            f"{group}: {names}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    lines += ["", tr("Settings (key=value), with the values that this command would use:"), ""]
    for key in keys_of(values):
        value = values
        for part in key.split("."):
            value = value[part]
        if not isinstance(value, dict):
            lines.append(f"  {key}={_shown(value)}")
            meaning = explained.get(key, "")
            lines += textwrap.wrap(
                tr(meaning) if meaning else "",
                WIDTH,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
            )
    return "\n".join(lines)


def is_complete(file: Path) -> bool:
    """Whether a file of a group has every key, and does not build on another one."""
    return "defaults" not in yaml.safe_load(file.read_text(encoding="utf-8"))


def _shown(value: object) -> str:
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _settings(node: yaml.Node, lines: list[str], prefix: str) -> Iterator[Setting]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if path == "defaults":
            continue
        start = value.start_mark
        is_group = isinstance(value, yaml.MappingNode) and start.line > key.start_mark.line
        if is_group:
            yield Setting(path, "", _comment(lines, key.end_mark.line, key.end_mark.column))
            yield from _settings(value, lines, f"{path}.")
        else:
            default = lines[start.line][start.column : value.end_mark.column]
            yield Setting(path, default, _comment(lines, start.line, value.end_mark.column))


def _comment(lines: list[str], row: int, column: int) -> str:
    """The comment behind `column` in line `row` with its continuation, else the lines above the
    key.
    """
    parts = []
    if (match := re.search(r"(?:^|\s)# ?(.*)", lines[row][column:])) is not None:
        parts.append(match[1].strip())
        for line in lines[row + 1 :]:
            if (more := re.fullmatch(r"\s+# ?(.*)", line)) is None:
                break
            parts.append(more[1].strip())
    else:
        indent = re.match(r" *", lines[row])
        assert indent is not None
        for line in reversed(lines[:row]):
            if (above := re.fullmatch(rf"{indent[0]}# ?(.*)", line)) is None:
                break
            parts.insert(0, above[1].strip())
    return " ".join(parts)
