"""Call a function in a process of its own: a crash, a hang or memory on the GPU stays there."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from azllm_lightning.cli.messages import language, tr
from azllm_lightning.training.stopping import signal_name

MARK = "azllm-result: "
"""Starts the line with the result, since libraries print to stdout as well."""


def isolated(target: str, *args: str, seconds: float) -> dict[str, Any]:
    """The result, as JSON would carry it, of the function `module:name` called with `args`.

    Raises ValueError with a reason of one line if it raises or crashes, and TimeoutError if it
    takes more than `seconds`.
    """
    command = [sys.executable, "-m", "azllm_lightning.machine.isolated", target, *args]
    process = subprocess.Popen(
        command,
        env={**os.environ, "AZLLM_LANG": language(), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl+C comes to this process only, which ends the other
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(tr("not done after {seconds:.0f} s", seconds=seconds)) from None
    finally:
        end_with_children(process)
    results = [line for line in output.splitlines() if line.startswith(MARK)]
    if not results:
        raise ValueError(
            tr("its process ended with exit code {code}", code=exit_text(process.returncode))
        )
    result: dict[str, Any] = json.loads(results[-1].removeprefix(MARK))
    if "error" in result:
        raise ValueError(result["error"])
    return result


def end_with_children(process: subprocess.Popen[str]) -> None:
    """Kill the process and, where the system has process groups, those that it started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def exit_text(code: int) -> str:
    """An exit code, with the name of the signal that it stands for."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"{code} ({signal_name(-code)})"
    return str(code)


def one_line(error: BaseException) -> str:
    """The line of an error that says most, as people should see it.

    A run that failed ends with "error: ...", or a traceback with the error in its last line. What
    torch.compile raises has the error in its second line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    start = tr("error: {message}", message="")
    marked = [line.removeprefix(start) for line in lines if line.startswith(start)]
    if marked:
        return marked[-1]
    if not lines:
        return type(error).__name__
    if lines[0].endswith("raised:") and len(lines) > 1:
        return lines[1]
    if isinstance(error, ValueError | OSError):
        return lines[-1] if "Traceback" in str(error) else lines[0]
    return f"{type(error).__name__}: {lines[0]}"


def main() -> None:
    """Call the function that the command line names, and print its result."""
    target, *args = sys.argv[1:]
    module, _, name = target.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*args)
    except Exception as error:
        result = {"error": one_line(error)}
    print(MARK + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
