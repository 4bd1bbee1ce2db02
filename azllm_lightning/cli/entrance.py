"""The entrance that every verb shares: type naturally, get one clear message when something is wrong.

Hydra composes; this file only quotes the values that a person types as plain text, finds conf/, and turns errors into
exit codes (0 done, 2 bad configuration or input, 75 stopped early but resumable). It imports nothing heavy: what a
verb needs is imported when the verb runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from azllm_lightning.config.strict import unknown_key

EXIT_DONE, EXIT_USAGE, EXIT_RESUMABLE = 0, 2, 75

TEXT_KEYS = frozenset(
    "run_name logs_dir ckpt_path init_from prompt stop out hf data.path data.val_path data.dir data.tokenizer "
    "data.text_field data.source_field".split()
)
"""Keys whose values are text that a person types; Hydra's grammar would refuse ə, spaces, commas or apostrophes."""

LIST_KEYS = frozenset(["stop", "data.path", "data.val_path"])
"""Those of them that can be a list: [one, two]."""

LITERAL_KEYS = frozenset(["prompt", "stop"])
"""Those of them in which ${...} is text too, and no reference to another setting."""


class Resumable(Exception):
    """The run stopped before its end and can go on by `command`, which is shown after the words `told`."""

    def __init__(self, command: str, told: str = "To go on") -> None:
        super().__init__(command)
        self.told = told


def conf_dir() -> Path:
    """The folder of Hydra configs: the packaged one if there is one, else the repository's."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def quote_overrides(args: Sequence[str]) -> list[str]:
    """Quote the values of TEXT_KEYS as Hydra's grammar wants them; everything else passes unchanged.

    `null` and a value that is already quoted stay as they are. A list in brackets (of LIST_KEYS) and, in a multirun
    (-m), a comma keep their meaning.
    """
    sweep = any(arg in ("-m", "--multirun") for arg in args)
    quoted = []
    for arg in args:
        key, equals, value = arg.partition("=")
        name = key.lstrip("+")
        if not equals or name not in TEXT_KEYS or value in ("", "null") or _is_quoted(value):
            quoted.append(arg)
            continue
        if name in LITERAL_KEYS:
            value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        if name in LIST_KEYS and value.startswith("[") and value.endswith("]"):
            value = (
                "[" + ",".join(map(_quote, value[1:-1].split(","))) + "]"
                if _parse(value) is None
                else value
            )
        elif sweep and "," in value:
            value = ",".join(map(_quote, value.split(","))) if _parse(value) is None else value
        else:
            value = _quote(value)
        quoted.append(f"{key}={value}")
    return quoted


def command(verb: str, overrides: Sequence[str]) -> str:
    """The command of `verb` as a person types it: `overrides` without the quotes that only Hydra needs."""
    typed = []
    for override in overrides:
        key, _, value = override.partition("=")
        unquoted = f"{key}={_parse(value)}"
        typed.append(unquoted if quote_overrides([unquoted]) == [override] else override)
    return shlex.join([_python(), "-m", f"azllm_lightning.{verb}", *typed])


def _python() -> str:
    """python, or the path of this one where its environment is not activated and plain python would be another."""
    here, folder = Path(sys.prefix), Path.cwd()
    if sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ or folder not in here.parents:
        return "python"
    return str(Path(sys.executable).relative_to(folder))


def compose(overrides: Sequence[str] = (), verb: str = "train") -> dict[str, Any]:
    """The configuration of `verb` as a plain dict, with `overrides` as on the command line; for notebooks and tests.

    Example: ``compose(["+experiment=t4", "trainer.max_steps=10"])``. Raises ValueError with Hydra's own complaint.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    try:
        if GlobalHydra.instance().is_initialized():
            return plain(hydra.compose(config_name=verb, overrides=quote_overrides(overrides)))
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(hydra.compose(config_name=verb, overrides=quote_overrides(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, verb)) from None


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers: what validation, checkpoints and YAML want."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def main(verb: str, run: Callable[[dict[str, Any], list[str]], object]) -> None:
    """Run `run(config, overrides)` under Hydra with conf/<verb>.yaml, and leave with an exit code.

    `config` is plain and resolved; `overrides` are the ones typed, for a resume to lay over the stored config.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may not speak UTF-8 by itself
            stream.reconfigure(encoding="utf-8", errors="replace")
    sys.argv[1:] = quote_overrides(sys.argv[1:])
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # let errors reach the handler below instead of Hydra's own printer

    @contextlib.contextmanager
    def exit_code() -> Iterator[None]:
        try:
            yield
        except Resumable as stop:
            print(f"{stop.told}: {stop}", file=sys.stderr, flush=True)
            sys.exit(EXIT_RESUMABLE)
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            if os.environ.get("AZLLM_TRACEBACK"):
                raise
            print(f"error: {explain(error, verb)}", file=sys.stderr, flush=True)
            sys.exit(EXIT_USAGE)

    def task(config: DictConfig) -> None:
        with (
            exit_code()
        ):  # here too: what leaves a task as an exception, Hydra announces with a line of its own
            run(plain(config), list(HydraConfig.get().overrides.task))

    with exit_code():
        hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(task)()


def explain(error: BaseException, verb: str) -> str:
    """What `error` says; for Hydra's complaints in the words of this project, with the way out."""
    message = str(error).strip() or type(error).__name__
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        if not equals or not key.strip() or key != key.strip():
            return (
                f"{error.override} is not a setting, which is typed key=value without spaces around the sign; "
                'if it belongs to a text with spaces, quote all of it: prompt="Bir gün"'
            )
        return (
            f"{error.override} cannot be read: a number is written in digits, and a text here needs quotes within the "
            f"quotes of the shell, \"{key}='{value}'\""
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} is not there; choose one of {', '.join(error.options)}"
    if message.startswith("Config group override must be"):
        return "a group (model, data, trainer, ...) takes one of its choices, such as model=nano; --help lists them"
    if match := re.match("Ambiguous value for argument '(.+)'\n", message):
        return (
            f"{match[1]} can mean four things: write a number with a point, 0.5; quote a text with a comma twice, "
            "\"key='a,b'\"; write a list as key=[a,b]; for a run with each value add -m"
        )
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {message.splitlines()[0]}"
    unknown = re.match(r"Could not override '([^']+)'\.\nTo append to your config", message)
    return unknown_key(unknown[1], _keys(compose(verb=verb))) if unknown else message


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _parse(value: str) -> Any:
    """What Hydra's grammar makes of a value; None where it cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None


def _is_quoted(value: str) -> bool:
    return (
        len(value) > 1
        and value[0] == value[-1]
        and value[0] in "'\""
        and isinstance(_parse(value), str)
    )


def _quote(value: str) -> str:
    # Inside quotes a backslash is literal unless a run of them ends at a quote; those are doubled.
    out, backslashes = "", 0
    for char in value:
        if char == "'":
            out += "\\" * backslashes + "\\"
        out += char
        backslashes = backslashes + 1 if char == "\\" else 0
    return "'" + out + "\\" * backslashes + "'"
