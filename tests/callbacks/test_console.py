from __future__ import annotations

import io
import logging
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm.auto import tqdm

from azllm_lightning.callbacks import console
from azllm_lightning.callbacks.console import Console, TqdmHandler
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli.entrance import Resumable

Train = Callable[..., Path]
posix = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")


class Session:
    """A Console and a Throughput in a run whose time a test makes: micro-batches of 1 s, 2 of them a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int = 0, steps: int = 100) -> None:
        self.clock = 1000.0
        monkeypatch.setattr("time.perf_counter", lambda: self.clock)
        self.io: Any = SimpleNamespace(seconds=0.0)
        self.throughput = Throughput(self.io, 1.0)
        self.console = Console(Words(), self.throughput)
        values = {
            "global_step": start,
            "max_steps": steps,
            "val_check_interval": 20,
            "accumulate_grad_batches": 2,
        }
        self.trainer: Any = SimpleNamespace(**values, is_global_zero=False, callback_metrics={})
        self.module: Any = SimpleNamespace(step_report=None, logs_now=False, last_validation={})
        monkeypatch.setattr(console, "CausalLM", SimpleNamespace)
        monkeypatch.setattr("azllm_lightning.callbacks.throughput.CausalLM", SimpleNamespace)

    def begin(self) -> None:
        self.throughput.on_train_start(self.trainer, self.module)
        self.console.on_train_start(self.trainer, self.module)

    def step(self, seconds: float = 2.0, saving: float = 0.0) -> None:
        """An optimizer step of two micro-batches, with a save before it."""
        for micro in range(2):
            for callback in (self.throughput, self.console):
                callback.on_train_batch_start(self.trainer, self.module, None, micro)
            if micro == 0:
                self.clock += saving
                self.io.seconds += saving
            self.clock += seconds / 2
            self.module.step_report = SimpleNamespace(loss=2.0, lr=1e-3) if micro else None
            self.trainer.global_step += micro
            for callback in (self.throughput, self.console):
                callback.on_train_batch_end(self.trainer, self.module)

    def validate(self, seconds: float, saving: float = 0.0, compiling: float = 0.0) -> None:
        """A validation of 9 batches and samples; then the best weights are saved."""
        values = {"val_loss": 3.0, "val_ppl": 20.0, "val_bpb": 1.0}
        self.module.last_validation = values
        for callback in (self.throughput, self.console):
            callback.on_validation_start(self.trainer, self.module)
        self.clock += compiling
        for batch in range(9):
            self.clock += seconds / 10
            self.console.on_validation_batch_end(self.trainer, self.module, None, None, batch)
        self.clock += seconds / 10
        for callback in (self.throughput, self.console):
            callback.on_validation_end(self.trainer, self.module)
        self.clock += saving
        self.io.seconds += saving

    @property
    def left(self) -> float | None:
        return self.console.remaining.seconds(self.trainer)


def test_the_time_left_is_that_of_steps_and_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch)
    session.validate(30, compiling=60)
    session.begin()
    session.step(50)  # the first compiles too
    assert session.left is None
    session.step()
    assert session.left == pytest.approx(98 * 2 + 10 * 30)
    for _ in range(8):
        session.step()
    assert session.left == pytest.approx(
        90 * 2 + 10 * 30
    )  # the one after this step is still to come
    session.validate(40)
    session.step()
    assert session.left == pytest.approx(
        89 * 2 + 9 * 40
    )  # a validation is no part of the step after it
    assert session.throughput.step_seconds[1:] == pytest.approx([2.0] * 10)


def test_the_time_left_counts_saving_by_what_it_took_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(monkeypatch)
    session.validate(30)
    session.begin()
    for _ in range(10):
        session.step()
    session.validate(30, saving=4)
    session.step(saving=7)
    assert session.left == pytest.approx(89 * 2 + 9 * 30 + 89 * 11 / 11)


def test_the_time_left_is_right_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch)
    session.validate(30)
    session.begin()
    for _ in range(10):
        session.step()
    session.validate(30)
    session.step()
    state = session.console.state_dict()
    resumed = Session(monkeypatch, start=11)
    resumed.console.load_state_dict(state)
    resumed.begin()
    resumed.step(50)
    assert resumed.left is None
    resumed.step(4)  # a slower machine
    assert resumed.left == pytest.approx(87 * 4 + 9 * 30)
    assert [row.step for row in resumed.console.validations] == [0, 10]


def test_the_end_is_told_once_when_enough_was_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(monkeypatch)
    session.trainer.is_global_zero = True
    logger = logging.getLogger("azllm_lightning")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])  # whatever tests before this one left there
    with caplog.at_level(logging.INFO, "azllm_lightning"):
        session.validate(30)
        session.begin()
        for _ in range(20):
            session.step()
    told = [message for message in caplog.messages if message.startswith("time ")]
    assert len(told) == 1
    assert re.fullmatch(
        r"time      about 8 min 8 s, ends about (\d{4}-\d\d-\d\d )?\d\d:\d\d", told[0]
    )  # from step 6


def test_where_no_terminal_is_a_line_now_and_then_takes_the_place_of_the_bar(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    told = capsys.readouterr()
    assert "train_loss " not in re.sub(
        r"\nstep  train_loss.*", "", told.out
    )  # in a second none is due
    assert "\r" not in told.out + told.err
    assert "%|" not in told.err
    monkeypatch.setattr(console, "LINE_EVERY_SECONDS", 0.0)
    train_tiny()
    told = capsys.readouterr()
    lines = re.findall(
        r"^step \d/8  train_loss \d\.\d{4}  lr \d\.\d\de-\d\d.*$", told.out, re.MULTILINE
    )
    assert len(lines) == 8
    assert re.search(r"  [\d,]+ tokens/s  00:0\d left$", lines[-1])
    assert "%|" not in told.err


@contextmanager
def terminal(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard error is a terminal of this size; what was written to it is in the list afterwards."""
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


@posix
@pytest.mark.parametrize(
    ("rows", "columns", "lang"), [(40, 80, "az"), (0, 0, "en")]
)  # 0: it does not tell its size
def test_the_bar_fits_the_terminal(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, lang: str
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    with terminal(rows, columns, monkeypatch) as written:
        train_tiny("trainer.max_steps=12", f"lang={lang}")
    states = [state for state in re.split(r"[\r\n]+", written[0]) if "%|" in state]
    assert re.fullmatch(r"100%\|.*\| 12/12 *", states[-1])
    figures = {
        "en": r"loss \d.*val \d.*ppl \d.*tokens/s.* left",
        "az": r"itki \d.*val \d.*ppl \d.*token/s.* qalır",
    }
    assert any(re.search(figures[lang], state) for state in states)
    assert max(map(len, states)) <= 80
    assert any(Words(lang)("validating") in state for state in states)


@posix
def test_a_batch_job_on_kaggle_has_no_bar(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    with terminal(40, 80, monkeypatch) as written:
        train_tiny()
    assert written == [""]


def test_a_run_in_azerbaijani(
    train_tiny: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stop = [f"+callbacks.stop.{pair}" for pair in ("step=6", "kill=false")]
    with pytest.raises(Resumable) as stopped:
        train_tiny(
            "lang=az",
            "+callbacks.stop._target_=azllm_lightning.callbacks.interrupt.Interrupt",
            *stop,
        )
    assert stopped.value.told == "Davam etmək üçün"
    told = capsys.readouterr()
    assert "Addım 4  Validasiya itkisi " in told.out
    assert "dayandırıldı: SIGTERM, addım 6" in told.out
    assert "SIGTERM: bu addım bitirilir və saxlanılır" in told.err
    folder = train_tiny("ckpt_path=last")
    told = capsys.readouterr()
    assert "davam edilir: " in told.out
    table = re.search(
        r"^Addım  Təlim itkisi  Validasiya itkisi .*\n((?: +\d+ .*\n)+)", told.out, re.MULTILINE
    )
    assert table is not None
    assert [int(line.split()[0]) for line in table[1].splitlines()] == [
        0,
        4,
        8,
    ]  # with those of the first session
    assert not re.findall(
        r"\b(step|steps|train_loss|val_loss|best|done|tokens)\b(?!\.ckpt)", told.out
    )
    assert "Validasiya itkisi" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["cp1252", "cp857", "ascii"])
def test_a_console_that_cannot_write_every_letter(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
    text = "Addım 4  Validasiya itkisi 2.8119  ↓ 0.120  rekord; ə ↑"
    TqdmHandler().emit(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))
    said = written.getvalue().decode(encoding)
    assert re.fullmatch(r"Add[ı?]m 4  Validasiya itkisi 2\.8119  - 0\.120  rekord; \? \+\n", said)
