"""The prompt at a terminal: what ends it, and what does not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from azllm_lightning.inference.interactive import Interruptions, converse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C is not a signal to send")


def answers(*lines: str | Callable[[], str]) -> Callable[[str], str]:
    """What is typed: a line, or what happens instead of one; then the end of the input."""
    script: Iterator[str | Callable[[], str]] = iter(lines)

    def ask(prompt: str) -> str:
        line = next(script, None)
        if line is None:
            raise EOFError
        return line if isinstance(line, str) else line()

    return ask


def press() -> str:
    """Ctrl+C."""
    os.kill(os.getpid(), signal.SIGINT)
    return ""


def test_blank_lines_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []
    converse(written.append, answers("", "Bir gün", "   ", "Ayı"))
    assert written == ["Bir gün", "Ayı"]
    assert "Ctrl+D: quit" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_or_in_a_text_ends_neither_program() -> None:
    written: list[str] = []

    def write(prompt: str) -> None:
        written.append(prompt)
        if prompt == "uzun":
            press()
            raise AssertionError("the text went on")

    converse(write, answers(press, "uzun", press, press, "Ayı"))
    assert written == ["uzun", "Ayı"]


def test_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    converse(lambda prompt: None, answers("a"))
    assert signal.getsignal(signal.SIGINT) is before


def test_between_two_texts_ctrl_c_does_nothing() -> None:
    interruptions = Interruptions()
    interruptions.handle(signal.SIGINT, None)
    with interruptions.allowed():
        with pytest.raises(KeyboardInterrupt):
            interruptions.handle(signal.SIGINT, None)
        interruptions.handle(signal.SIGINT, None)  # a second one, while the first is dealt with
