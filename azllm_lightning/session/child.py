"""Train in a child process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.effects import typed_keys


def resuming(settings: Iterable[str]) -> list[str]:
    """`settings` for the session that resumes their run, which has its own weights by then."""
    kept = [text for text in settings if "init_from" not in typed_keys([text])]
    return [*kept, "ckpt_path=last"]


def train_in_child(
    folder: Path,
    name: str,
    settings: list[str],
    ends_early: bool = False,
    seconds: float | None = None,
) -> None:
    """Run `azllm train SETTINGS run_name=NAME` in `folder` and wait for its end.

    Raises ValueError, with the end of its output, if it fails, if it completes despite
    `ends_early`, or if it stops early without that; TimeoutError if it is not done after
    `seconds`.
    """
    command = [sys.executable, "-m", "azllm_lightning.train", *settings, f"run_name={name}"]
    # The user's own callbacks are found in the user's current folder.
    python_path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    with (folder / "output.txt").open("w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": python_path},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(tr("not done after {seconds:.0f} s", seconds=seconds)) from None
        finally:
            if child.poll() is None:
                child.kill()
            if os.name == "posix":  # the other processes of a distributed run that was killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        output.seek(0)
        if code in (1, entrance.EXIT_USAGE) or ends_early == (code == entrance.EXIT_DONE):
            raise ValueError(
                tr(
                    "the run {name} ended with exit code {code}:\n{output}",
                    name=name,
                    code=code,
                    output=output.read()[-3000:],
                )
            )
