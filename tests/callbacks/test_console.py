from __future__ import annotations

import io
import logging
import math
import os
import re
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from driven import DrivenRun
from events import Finished
from tqdm.auto import tqdm

from azllm_lightning.callbacks import console
from azllm_lightning.callbacks.console import Console, TqdmHandler
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.messages import use_language

Train = Callable[..., Path]
posix = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> DrivenRun:
    """A driven run of 100 steps with a Console, in a time of its own."""
    run = DrivenRun()
    run.callbacks.append(Console(run.history))
    run.trainer.max_steps = 100
    monkeypatch.setattr("time.perf_counter", lambda: run.now)
    monkeypatch.setattr("time.monotonic", lambda: run.now)
    return run


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the console logs."""
    logged: list[str] = []
    monkeypatch.setattr(console.log, "info", logged.append)
    return logged


@pytest.mark.parametrize(
    ("lang", "wanted"),
    [
        ("en", r"time      about 12 min 56 s, ends around (\d{4}-\d\d-\d\d )?\d\d:\d\d"),
        ("az", r"vaxt      təxminən 12 dəq 56 san, (saat|\d{4}-\d\d-\d\d) .* radələrində bitəcək"),
    ],
)
def test_the_end_is_announced_once_when_enough_was_measured(
    shown: DrivenRun, lines: list[str], lang: str, wanted: str
) -> None:
    use_language(lang)
    shown.call("on_train_start")
    for _ in range(10):
        shown.step(seconds=8)
    announced = [line for line in lines if line.startswith(("time ", "vaxt "))]
    assert len(announced) == 1
    assert re.fullmatch(wanted, announced[0])  # after step 3: 97 steps of 8 s


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(60, r"but trainer\.deadline stops it at"), (10**6, "ends around")]
)
def test_an_end_after_the_deadline_is_not_announced(
    shown: DrivenRun, lines: list[str], seconds: int, wanted: str
) -> None:
    shown.callbacks[-1] = Console(shown.history, deadline=time.time() + seconds)
    shown.call("on_train_start")
    for _ in range(10):
        shown.step(seconds=8)
    assert re.search(wanted, next(line for line in lines if line.startswith("time ")))


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(None, r"about 92592592 d \d+ h"), (60, r"about .* trainer\.deadline stops it at .*")],
)
def test_an_end_that_has_no_date_is_a_duration(
    shown: DrivenRun, lines: list[str], seconds: int | None, wanted: str
) -> None:
    deadline = None if seconds is None else time.time() + seconds
    shown.callbacks[-1] = Console(shown.history, deadline=deadline)
    shown.trainer.max_steps = 10**12
    shown.call("on_train_start")
    for _ in range(3):
        shown.step(seconds=8)
    (announced,) = (line for line in lines if line.startswith("time "))
    assert re.fullmatch(rf"time +{wanted}", announced, re.DOTALL)


def test_times_are_added_up_only_until_the_end_is_announced(
    shown: DrivenRun, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []

    def counting(values: list[float]) -> float:
        added.append(len(values))
        return math.fsum(values)

    monkeypatch.setattr(console, "sum", counting, raising=False)
    shown.call("on_train_start")
    for _ in range(30):
        shown.step(seconds=8)
    assert lines[0].startswith("time ")
    assert added
    assert max(added) < 5


def test_a_short_end_is_not_announced(shown: DrivenRun, lines: list[str]) -> None:
    shown.trainer.max_steps = 20
    shown.call("on_train_start")
    for _ in range(20):
        shown.step(seconds=1.25)
    assert lines == []


def test_without_a_terminal_a_line_now_and_then_replaces_the_bar(
    shown: DrivenRun, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown.call("on_train_start")
    shown.module.logs_now = True
    for _ in range(45):
        shown.step(loss=2.5, seconds=2)
    assert lines[1:] == [
        "step 15/100  train_loss 2.5000  lr 3.00e-03  128 tokens/s  02:50 left",
        "step 30/100  train_loss 2.5000  lr 3.00e-03  128 tokens/s  02:20 left",
        "step 45/100  train_loss 2.5000  lr 3.00e-03  128 tokens/s  01:50 left",
    ]
    assert capsys.readouterr().err == ""


def test_a_real_run_without_a_terminal_has_no_bar(finished: Finished) -> None:
    assert "\r" not in finished.out + finished.err
    assert "%|" not in finished.err
    steps = re.findall(r"^step (\d)  val_loss \d", finished.out, re.MULTILINE)
    assert steps == ["0", "4", "8"]


@contextmanager
def terminal(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard error is a terminal of this size; the list gets what was written to it."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    parts: list[bytes] = []
    written: list[str] = []

    def read() -> None:
        while b"\0" not in (part := os.read(ours, 4096)):
            parts.append(part)
        parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            yield written
        finally:
            stream.write("\0")
            stream.flush()
            reader.join()
            os.close(ours)
            written.append(b"".join(parts).decode().rstrip("\0"))


def train(run: DrivenRun) -> None:
    """Twelve steps with a validation before and one after them."""
    run.trainer.max_steps = 12
    run.validate((0, None, 7.6))
    run.call("on_train_start")
    run.module.logs_now = True
    for _ in range(12):
        run.step(loss=3.25, seconds=30)
    run.validate((12, 3.3, 3.2))
    run.call("on_train_end")


class EagerBar(tqdm):  # type: ignore[type-arg]
    """A bar that is drawn at each step, however quick they are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "mininterval": 0})


@posix
@pytest.mark.parametrize(
    ("rows", "columns", "lang"),
    [(40, 80, "az"), (0, 0, "en")],  # 0: a terminal that does not report its size
)
def test_the_bar_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], rows: int, columns: int, lang: str
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    monkeypatch.setattr(console, "tqdm", EagerBar)
    run = DrivenRun()
    monkeypatch.setattr("time.perf_counter", lambda: run.now)
    use_language(lang)
    with terminal(rows, columns, monkeypatch) as written:
        run.callbacks.append(Console(run.history))
        train(run)
    states = [state for state in re.split(r"[\r\n]+", written[0]) if "%|" in state]
    assert re.fullmatch(r"100%\|.*\| 12/12 *", states[-1])
    figures = {
        "en": r"loss 3\.250 val 7\.600 ppl 25\.79 9 tokens/s 0\d:\d\d left",
        "az": r"loss 3\.250 val 7\.600 ppl 25\.79 9 token/s 0\d:\d\d qalıb",
    }
    assert any(re.search(figures[lang], state) for state in states)
    validating = {"en": "validating", "az": "validasiya gedir"}
    assert any(validating[lang] in state for state in states)
    assert max(map(len, states)) <= 80


@posix
def test_a_batch_job_on_kaggle_has_no_bar(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    run = DrivenRun()
    with terminal(40, 80, monkeypatch) as written:
        run.callbacks.append(Console(run.history))
        train(run)
    assert written == [""]


def test_a_run_in_azerbaijani(train_short: Train, capsys: pytest.CaptureFixture[str]) -> None:
    target = "azllm_lightning.callbacks.interrupt.Interrupt"
    stop = [f"+callbacks.stop.{pair}" for pair in (f"_target_={target}", "step=6", "kill=false")]
    with pytest.raises(Resumable):
        train_short("lang=az", *stop)
    captured = capsys.readouterr()
    assert "addım 4  val_loss " in captured.out
    assert "SIGTERM ilə 6-cı addımda dayandırıldı, saxlanıldı" in captured.out
    assert "SIGTERM: bu addım bitirilir" in captured.err
    folder = train_short("ckpt_path=last")
    captured = capsys.readouterr()
    assert "davam edilir: " in captured.out
    table = re.search(
        r"^addım  orta train_loss  val_loss .*\n((?: +\d+ .*\n)+)", captured.out, re.MULTILINE
    )
    assert table is not None
    # With the validations of the first session:
    assert [int(line.split()[0]) for line in table[1].splitlines()] == [0, 4, 8]
    english = r"\b(step|steps|best|done|tokens|left|resuming|stopped)\b(?!\.ckpt)"
    assert not re.findall(english, captured.out)
    assert "rekord" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["cp1252", "cp857", "ascii"])
def test_a_console_that_cannot_write_every_letter(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
    text = "addım 4  val_loss 2.8119  ↓ 0.120  rekord; ə ↑"
    TqdmHandler().emit(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))
    shown = written.getvalue().decode(encoding)
    assert re.fullmatch(r"add[ı?]m 4  val_loss 2\.8119  - 0\.120  rekord; \? \+\n", shown)


def test_compiling_is_announced_before_it_begins_where_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    run = DrivenRun()
    run.callbacks.append(Console(run.history, compiles=True))
    run.call("on_sanity_check_start")
    run.call("on_train_start")
    assert [line.partition(":")[0] for line in lines] == ["compiling the model"]


@posix
@pytest.mark.parametrize("compiles", [True, False])
def test_the_bar_says_what_the_first_step_waits_for(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], compiles: bool
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    run = DrivenRun()
    with terminal(40, 80, monkeypatch) as written:
        run.callbacks.append(Console(run.history, compiles=compiles))
        run.call("on_sanity_check_start")
        run.call("on_validation_start")
        run.call("on_train_start")
        run.call("on_train_end")
    states = [state.split("| ")[-1] for state in written[0].split("\r") if "%|" in state]
    first = "compiling" if compiles else "validating"
    assert any(first in state for state in states)
    assert any(("compiling" if compiles else "first step") in state for state in states)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def emit(level: int, text: str, **extra: bool) -> None:
    record = logging.LogRecord("x", level, "", 0, text, None, None)
    vars(record).update(extra)
    TqdmHandler().emit(record)


@pytest.mark.parametrize("setting", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_has_colors_unless_they_are_turned_off(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | setting).items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    error = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    emit(logging.INFO, "step 4  val_loss 2.8119  ↓ 0.120  best")
    emit(logging.WARNING, "step 4: overfitting")
    emit(logging.INFO, "in train.log only", already_shown=True)
    if setting:
        assert out.getvalue() == "step 4  val_loss 2.8119  ↓ 0.120  best\n"
        assert error.getvalue() == "step 4: overfitting\n"
    else:
        assert "\x1b[32m↓ 0.120\x1b[0m" in out.getvalue()
        assert error.getvalue() == "\x1b[33mstep 4: overfitting\x1b[0m\n"


def test_what_is_not_a_terminal_has_no_colors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    emit(logging.INFO, "best      val_loss 1.0 ↓ 0.120  best")
    emit(logging.WARNING, "warning")
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_train_log_has_all_that_the_terminal_said(
    train_short: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings of libraries, signals, and the lines from before there was a folder included."""
    target = "azllm_lightning.callbacks.interrupt.Interrupt"
    stop = [f"+callbacks.stop.{pair}" for pair in (f"_target_={target}", "step=3", "kill=false")]
    with pytest.raises(Resumable):
        train_short("data.tales_bytes=61_000", *stop)
    captured = capsys.readouterr()
    log = Path("lightning_logs/tiny/version_0/train.log").read_text(encoding="utf-8")
    said = [*captured.out.splitlines(), *captured.err.splitlines()]
    assert any(line.startswith("preparing the text") for line in said)
    assert any(line.startswith("SIGTERM: finishing") for line in said)
    missing = [line for line in said if line and line not in log]
    assert missing == []
    assert "resume: python -m azllm_lightning.train" in log


def test_train_log_has_warnings_of_libraries(
    train_short: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "on_train_start", lambda *_: warnings.warn("odd", stacklevel=1))
    with pytest.warns(UserWarning, match="odd"):
        folder = train_short("trainer.max_steps=1")
    assert "UserWarning: odd" in (folder / "train.log").read_text(encoding="utf-8")
