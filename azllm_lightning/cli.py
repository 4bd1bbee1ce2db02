"""The entrance that every verb shares: type naturally, get one clear message when something is wrong.

Hydra composes; this file only quotes the values that a person types as plain text, finds conf/, and turns errors into
exit codes (0 done, 2 bad configuration or input, 75 stopped early but resumable). It imports nothing heavy: what a
verb needs is imported when the verb runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

EXIT_DONE, EXIT_USAGE, EXIT_RESUMABLE = 0, 2, 75

TEXT_KEYS = frozenset(
    "run_name ckpt_path init_from prompt stop out hf data.path data.val_path data.dir data.tokenizer".split()
)
"""Keys whose values are text that a person types; Hydra's grammar would refuse ə, spaces, commas or apostrophes."""


class Resumable(Exception):
    """The run stopped before its end and can go on; the message is the command that does it."""


def conf_dir() -> Path:
    """The folder of Hydra configs: the packaged one if there is one, else the repository's."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def quote_overrides(args: Sequence[str]) -> list[str]:
    """Quote the values of TEXT_KEYS as Hydra's grammar wants them; everything else passes unchanged.

    `null`, a list in brackets and a value that is already quoted stay as they are. In a multirun (-m) a comma still
    means a sweep.
    """
    sweep = any(arg in ("-m", "--multirun") for arg in args)
    quoted = []
    for arg in args:
        key, equals, value = arg.partition("=")
        plain = not equals or key.lstrip("+") not in TEXT_KEYS or value in ("", "null") or _is_list_or_quoted(value)
        quoted.append(arg if plain or (sweep and "," in value) else f"{key}={_quote(value)}")
    return quoted


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
        raise ValueError(explain(error)) from None


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
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach the handler below instead of Hydra's own printer

    def task(config: DictConfig) -> None:
        run(plain(config), list(HydraConfig.get().overrides.task))

    try:
        hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(task)()
    except Resumable as stop:
        print(f"Stopped. To go on: {stop}", file=sys.stderr, flush=True)
        sys.exit(EXIT_RESUMABLE)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if os.environ.get("AZLLM_TRACEBACK"):
            raise
        print(f"error: {explain(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)


def explain(error: BaseException) -> str:
    """The message of `error` and, where Hydra wrapped it, of its cause; without type names or traces."""
    parts = [str(error).strip() or type(error).__name__]
    if isinstance(error, HydraException) and error.__cause__ is not None:
        cause = str(error.__cause__).strip()
        if cause and cause not in parts[0]:
            parts.append(cause)
    return "\n".join(parts)


def _is_list_or_quoted(value: str) -> bool:
    if value.startswith("[") and value.endswith("]"):
        return True
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"key={value}").value(), QuotedString | str)
    except HydraException:
        return False


def _quote(value: str) -> str:
    # Inside quotes a backslash is literal unless a run of them ends at a quote; those are doubled.
    out, backslashes = "", 0
    for char in value:
        if char == "'":
            out += "\\" * backslashes + "\\"
        out += char
        backslashes = backslashes + 1 if char == "\\" else 0
    return "'" + out + "\\" * backslashes + "'"
