"""Settings as people type them: key=value with any characters, without Hydra's extra quotes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.shell import for_shell

TEXT_KEYS = frozenset(
    "run_name logs_dir ckpt_path init_from teachers prompt stop out check hf license "
    "trainer.deadline data.name data.path data.val_path data.mix data.dir data.tokenizer "
    "data.text_field data.source_field callbacks.samples.prompts pairs logger.wandb "
    "logger.trackio".split()
)
"""Keys whose value is text; unquoted, Hydra's grammar refuses ə, spaces, commas and apostrophes."""

LIST_KEYS = frozenset(
    "prompt stop run_name teachers data.path data.val_path callbacks.samples.prompts".split()
)
"""Those of them that can be a list: [one, two]; run_name for `report` only."""

SWITCH_KEYS = frozenset(("pairs",))
"""Those of them that true and false are not text for."""

LITERAL_KEYS = frozenset("prompt stop callbacks.samples.prompts".split())
"""Those of them in which ${...} is text too, and not a reference to another setting."""

COMMA_KEYS = frozenset(("data.mix",))
"""Those of them whose value is itself separated by commas: several of them are in quotes each."""

HYDRA_FLAGS = frozenset(
    "-h --help --hydra-help --version -c --cfg --resolve -p --package -r --run -m --multirun "
    "-sc --shell-completion -i --info --config-path -cp --config-name -cn --config-dir -cd "
    "--experimental-rerun".split()
)

FLAGS_WITH_VALUE = frozenset(
    "-c --cfg -p --package --config-path -cp --config-name -cn --config-dir -cd "
    "--experimental-rerun".split()
)
"""Those of them that the next argument belongs to, unless it follows an equals sign."""

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""The values that --info takes, if any."""

DASHES = ("-", "\N{EN DASH}", "\N{EM DASH}")
"""How an option begins; text programs turn -- into the longer ones."""

ITEM = re.compile(
    r"""(?:^|(?<=,))                              # at the start, or after a comma:
        (\s*"(?:[^"\\]|\\.)*"\s*(?=,|$)          # text in double quotes,
        |\s*'(?:[^'\\]|\\.)*'\s*(?=,|$)          # or in single ones,
        |\s*\[(?:[^][]|\[[^][]*\])*\]\s*(?=,|$)  # or a list, in which globs have brackets, too,
        |[^,]*)                                  # or anything without a comma
        (?:,|$)""",
    re.VERBOSE,
)
"""An item of a list, or of a sweep; an apostrophe within a word is no quote."""


@dataclass(frozen=True)
class ParsedOverride:
    """One override: the keys of its path, and what it does."""

    path: tuple[str, ...]
    is_deletion: bool

    def is_group(self, values: Mapping[str, Any]) -> bool:
        """Whether it chooses a file of a group (model=tiny, experiment=t4) in a config like
        `values`.
        """
        name = self.path[0]
        return name == "experiment" or (
            len(self.path) == 1 and isinstance(values.get(name), dict) and not self.is_deletion
        )


@lru_cache(maxsize=256)
def parse_override(text: str) -> ParsedOverride:
    """What one override that Hydra accepts means."""
    override = _parser().parse_override(hydra_overrides([text])[0])
    return ParsedOverride(tuple(override.key_or_group.split(".")), override.is_delete())


def hydra_overrides(args: Sequence[str]) -> list[str]:
    """`args` as Hydra's grammar requires them.

    The values of TEXT_KEYS and those that the grammar cannot read are quoted, and experiment=NAME,
    which adds a group, becomes +experiment=NAME; everything else passes unchanged. `null` and a
    value that is already quoted stay as they are. A list in brackets (of LIST_KEYS) and, in a
    multirun (-m), a comma keep their meaning, but for the comma of COMMA_KEYS. Options follow the
    settings: Hydra takes the settings in one piece.
    """
    settings, options = split_options(args)
    sweep = any(option in ("-m", "--multirun") for option in options)
    return [*(_hydra_override(setting, sweep) for setting in settings), *options]


def split_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings (key=value) and Hydra's options with their values among `args`."""
    settings: list[str] = []
    options: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-"):
            settings.append(arg)
            continue
        options.append(arg)
        is_info = arg in ("-i", "--info") and bool(rest) and rest[0] in INFO
        if rest and (arg in FLAGS_WITH_VALUE or is_info):
            options.append(rest.pop(0))
    return settings, options


def _hydra_override(arg: str, sweep: bool) -> str:
    key, equals, value = arg.partition("=")
    if key == "experiment" and equals:
        return f"+{arg}"
    name = key.lstrip("+")
    if not equals or value == "":
        return arg
    if name not in TEXT_KEYS:
        return f"{key}={_quoted(value)}" if _is_only_text(value) else arg
    if sweep and _is_sweep_function(value):
        return arg
    values = _alternatives(value, name) if sweep else [value]
    return f"{key}={','.join(_hydra_text(one, name) for one in values)}"


def _alternatives(value: str, name: str) -> list[str]:
    """The values of the runs of a multirun with name=value."""
    items = _items(value)
    is_one = "," not in value or isinstance(_parsed(value), (str, list))
    if name in COMMA_KEYS:
        is_one = not all(item == "null" or _is_quoted(item) for item in items)
    return [value] if is_one else items


def _hydra_text(value: str, name: str) -> str:
    """One value of TEXT_KEYS as Hydra's grammar requires it."""
    if value == "null" or _is_quoted(value):
        return value
    if name not in LITERAL_KEYS and value == "None":
        return "null"
    if name in SWITCH_KEYS and value.lower() in ("true", "false"):
        return value.lower()
    if name in LITERAL_KEYS:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if name in LIST_KEYS and value.startswith("[") and value.endswith("]"):
        return value if _is_list_of_quoted(value) else f"[{_quoted_items(value[1:-1])}]"
    return _quoted(value)


def reject_flags(args: Sequence[str], known_keys: Iterable[str]) -> None:
    """Raise ValueError, with what to type instead, for a setting typed as a flag (--max_steps)."""
    known = list(known_keys)
    for position, arg in enumerate(args):
        if not arg.startswith(DASHES) or arg.partition("=")[0] in HYDRA_FLAGS:
            continue
        bare = arg.lstrip("".join(DASHES))
        if f"--{bare.partition('=')[0]}" in HYDRA_FLAGS:
            raise ValueError(
                tr("{flag}: write --{option}, with two plain hyphens", flag=arg, option=bare)
            )
        name, equals, value = bare.partition("=")
        name = name.replace("-", "_")
        if not equals and position + 1 < len(args) and not args[position + 1].startswith("-"):
            value = args[position + 1]
        keys = [key for key in known if key == name or key.endswith(f".{name}")] or [name]
        typed = for_shell(f"{keys[0]}={value or 'VALUE'}")
        raise ValueError(
            tr(
                "{flag}: settings are typed without dashes; write {setting}",
                flag=arg,
                setting=typed,
            )
        )


def command(verb: str, overrides: Sequence[str]) -> str:
    """The shell command that runs `verb` with `overrides`."""
    typed = [_as_typed(override) for override in overrides]
    words = [_python(), "-m", f"azllm_lightning.{verb}", *typed]
    return " ".join(map(for_shell, words))


def _as_typed(override: str) -> str:
    """`override` without the quotes and the plus sign that only Hydra needs."""
    key, _, value = override.partition("=")
    key = "experiment" if key == "+experiment" else key
    unquoted = f"{key}={_parsed(value)}"
    return unquoted if hydra_overrides([unquoted]) == hydra_overrides([override]) else override


def _python() -> str:
    """The interpreter to type: python, or its path if its environment here is not active."""
    here = Path(sys.prefix)
    folder = Path.cwd()
    is_plain = sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ
    if is_plain or folder not in here.parents:
        return "python"
    return str(Path(sys.executable).relative_to(folder))


@cache
def _parser() -> OverridesParser:
    """Hydra's parser, whose creation takes longer than parsing a setting."""
    return OverridesParser.create()


def _parsed(value: str) -> Any:
    """What Hydra's grammar makes of a value; None where it cannot read it."""
    try:
        return _parser().parse_override(f"key={value}").value()
    except HydraException:
        return None


def _is_quoted(value: str) -> bool:
    is_wrapped = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return is_wrapped and isinstance(_parsed(value), str)


def _is_sweep_function(value: str) -> bool:
    """Whether it is choice(one,two), or another function of Hydra that makes a sweep."""
    return re.fullmatch(r"\w+\(.*\)", value) is not None and isinstance(_parsed(value), Sweep)


@lru_cache(maxsize=1024)
def _is_only_text(value: str) -> bool:
    """Whether Hydra's grammar reads `value` in quotes only."""
    try:
        _parser().parse_override(f"key={value}")
    except HydraException:
        return isinstance(_parsed(_quoted(value)), str)
    return False


def _is_list_of_quoted(value: str) -> bool:
    return isinstance(_parsed(value), list) and any(quote in value for quote in "'\"")


def quoted_list(items: Iterable[str]) -> str:
    """`items` as the value of one of LIST_KEYS, each taken literally."""
    return f"[{','.join(map(_quoted, items))}]"


def _items(text: str) -> list[str]:
    items = [item.strip() for item in ITEM.findall(text)] if text.strip() else []
    if len(items) > 1 and not items[-1]:  # a comma at the end, which is no item in Python either
        del items[-1]
    return items


def _quoted_items(text: str) -> str:
    return ",".join(item if _is_quoted(item) else _quoted(item) for item in _items(text))


def _quoted(value: str) -> str:
    # Inside quotes a backslash is literal unless a run of them ends at a quote; those are doubled.
    out = ""
    backslashes = 0
    for char in value:
        if char == "'":
            out += "\\" * backslashes + "\\"
        out += char
        backslashes = backslashes + 1 if char == "\\" else 0
    return "'" + out + "\\" * backslashes + "'"
