"""The entry point that all verbs share: sys.argv becomes checked settings, errors become exit
codes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig

import azllm_lightning
from azllm_lightning.cli.colors import RED, has_colors, paint
from azllm_lightning.cli.composition import (
    HYDRA_ERRORS,
    composed_mapping,
    conf_dir,
    explanation,
    plain,
)
from azllm_lightning.cli.keys import keys_of
from azllm_lightning.cli.memory import is_out_of_memory, out_of_memory_message
from azllm_lightning.cli.messages import LANGUAGES, tr, use_language
from azllm_lightning.cli.overrides import (
    DASHES,
    hydra_overrides,
    reject_flags,
    split_options,
)
from azllm_lightning.cli.reference import help_text
from azllm_lightning.cli.shell import without_foreign_quotes
from azllm_lightning.cli.streams import OutputClosed, make_streams_last

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_RESUMABLE = 75
EXIT_INTERRUPTED = 130
"""After Ctrl+C where there is nothing to resume, as shells have it."""
EXIT_CLOSED = 141
"""Nobody reads the output any more, as shells have it for SIGPIPE."""

PRINTING_VERBS = ("generate", "runs")
"""Verbs whose result is what they print; the others go on without a reader."""


class Settings(Protocol):
    """What an entry point needs to know of the settings of a verb."""

    def ignored(self) -> list[str]:
        """A message for each setting that was typed and has no effect."""


Config = TypeVar("Config", bound=Settings)


class Resumable(Exception):
    """The work stopped before its end; `command` continues it, as `message` says."""

    exit_code = EXIT_RESUMABLE

    def __init__(self, command: str, message: str | None = None) -> None:
        super().__init__(command)
        self.command = command
        self.message = message or tr("resume: {command}", command=command)


def main(
    verb: str,
    run: Callable[[Config], object],
    read: Callable[[Mapping[str, Any], Sequence[str]], Config],
    score: Callable[[Any], float] | None = None,
) -> None:
    """Call `run` with the settings of `verb`, composed from conf/<verb>.yaml and sys.argv.

    `read` turns the composed mapping and the overrides into settings. `score` turns what `run`
    returns into the number that a sweeper of Hydra (-m hydra/sweeper=optuna) compares. Exits with
    code 0 when done, 2 after one message about bad settings or input, and 75 after printing the
    command that resumes a stopped run; with 130 after Ctrl+C. AZLLM_TRACEBACK=1 shows the traceback
    of an error.
    """
    make_streams_last(has_result=verb in PRINTING_VERBS)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    # A script with the line ends of Windows leaves a carriage return after its last word.
    args = without_foreign_quotes([arg.rstrip("\r") for arg in sys.argv[1:]])
    use_language(typed_language(args))
    with _exit_code(verb, args):
        if {"-h", "--help"} & set(args):
            print(help_text(verb, composed_mapping(verb, split_options(args)[0])))
            return
        if "--version" in args:
            print(version_text())
            return
        if any(arg.startswith(DASHES) for arg in args):
            reject_flags(args, keys_of(composed_mapping(verb)))
        _run_under_hydra(verb, hydra_overrides(args), run, read, score)


def _run_under_hydra(
    verb: str,
    args: list[str],
    run: Callable[[Config], object],
    read: Callable[[Mapping[str, Any], Sequence[str]], Config],
    score: Callable[[Any], float] | None,
) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig

    # Hydra would print errors itself; this lets them reach `_exit_code`.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = args

    def task(config: DictConfig) -> float | None:
        with _exit_code(verb):  # here too: Hydra adds a line of its own to exceptions
            values = plain(config)
            use_language(values.get("lang") if values.get("lang") in LANGUAGES else None)
            settings = read(values, list(HydraConfig.get().overrides.task))
            if is_first_process():
                for message in settings.ignored():
                    print(for_terminal(message), file=sys.stderr, flush=True)
            result = run(settings)
        return score(result) if score is not None and is_first_process() else None

    hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(task)()


def is_first_process() -> bool:
    """Whether this process speaks for those that torchrun or srun started with it."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


@contextlib.contextmanager
def _exit_code(verb: str, args: Sequence[str] = ()) -> Iterator[None]:
    """Turn an error, that of composing `args` included, into one message and an exit code."""
    try:
        yield
    except Resumable as stop:
        print(stop.message, file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OutputClosed:
        sys.exit(EXIT_CLOSED)
    except (*HYDRA_ERRORS, ValueError, OSError, MemoryError, RuntimeError) as error:
        is_expected = isinstance(error, (*HYDRA_ERRORS, ValueError, OSError))
        if os.environ.get("AZLLM_TRACEBACK") or not (is_expected or is_out_of_memory(error)):
            raise
        settings, options = split_options(args)
        # Options may name other files, or several values for each setting.
        typed = [] if options else settings
        reason = explanation(error, verb, typed) if is_expected else out_of_memory_message(error)
        message = tr("error: {message}", message=reason)
        message = for_terminal(message)
        if has_colors(sys.stderr):
            message = paint(message, RED)
        print(message, file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)


def for_terminal(message: str) -> str:
    """`message` in lines that fit the terminal; unchanged where none is."""
    if not sys.stderr.isatty():
        return message
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in message.splitlines()
    )


def version_text() -> str:
    """What --version prints."""
    return f"azllm-lightning {azllm_lightning.__version__}"


def typed_language(args: Sequence[str]) -> str | None:
    """The language of messages about settings that do not compose."""
    typed = [arg.partition("=")[2] for arg in args if arg.startswith("lang=")]
    return typed[-1] if typed and typed[-1] in LANGUAGES else None
