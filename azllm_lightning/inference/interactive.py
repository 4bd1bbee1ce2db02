"""A prompt at a terminal, which Ctrl+C never ends: it stops the text that is being written."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from azllm_lightning.cli.messages import tr

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Interruptions:
    """Ctrl+C raises KeyboardInterrupt once in each `allowed` block, and does nothing elsewhere."""

    def __init__(self) -> None:
        self._allowed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Ctrl+C does."""
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Run a block that Ctrl+C ends early."""
        try:
            self._allowed = True
            yield
            self._allowed = False
        except KeyboardInterrupt:
            print(file=sys.stderr)  # the next prompt begins on a line of its own


def converse(write: Callable[[str], None], ask: Callable[[str], str]) -> None:
    """Ask for the beginnings of texts, and `write` each, until the end of the input.

    Blank lines are ignored. Ctrl+C ends the text, or the line that is being typed.
    """
    keys = tr("Ctrl+Z, then Enter") if sys.platform == "win32" else "Ctrl+D"
    message = tr(
        "Type the beginning of a text, then Enter. Ctrl+C: stop the current text. {keys}: quit.",
        keys=keys,
    )
    print(message, file=sys.stderr)
    interruptions = Interruptions()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interruptions.handle) if in_main else None
    try:
        while True:
            with interruptions.allowed():
                prompt = ask("> ")
                if not prompt.strip():
                    continue
                if BROKEN in prompt:
                    text = tr("the bytes that are not UTF-8 became {char}", char=BROKEN)
                    print(text, file=sys.stderr)
                write(prompt)
    except EOFError:
        print(file=sys.stderr)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
