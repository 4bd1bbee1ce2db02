"""Signals and deadlines: the step is finished and saved, the command to resume is printed, and no
process is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training_runs import Probe, Uninterrupted, add_callback, assert_same_end, start, wait_for

from azllm_lightning.cli.entrance import EXIT_RESUMABLE, Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.config.trainer import parse_deadline
from azllm_lightning.data import datamodule
from azllm_lightning.runs.checkpoint_files import step_files, write_checkpoint
from azllm_lightning.session.deadline import without_old_deadline
from azllm_lightning.training import causal_lm, saving, stopping
from azllm_lightning.training.causal_lm import CausalLM

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
RESUME = "python -m azllm_lightning.train run_name=tiny ckpt_path=last"


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def saved_steps() -> list[int]:
    return [step for step, _ in step_files(Path("lightning_logs/tiny/version_0/checkpoints"))]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_signal_loses_no_step_right_after_a_save_either(step: int, train_tiny: Train) -> None:
    """Files are due at every third step; the signal comes when the weights are one step newer."""
    target = "_target_=azllm_lightning.callbacks.interrupt.Interrupt"
    interrupt = [f"+callbacks.interrupt.{pair}" for pair in (target, f"step={step}", "kill=false")]
    with pytest.raises(Resumable):
        train_tiny("trainer.checkpoint_every_steps=3", *interrupt)
    assert saved_steps()[0] == step


@pytest.mark.parametrize("step", [4, 8])
def test_sigterm_during_validation(
    step: int, uninterrupted: Straight, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume runs the validation from its start, and it is logged once. That of the last step
    is finished before the process ends.
    """
    straight, validate = uninterrupted().folder, CausalLM.validation_step
    interruptions: list[int] = []

    def interrupted(self: CausalLM, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == step and not interruptions:
            interruptions.append(step)
            terminate()
        validate(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "validation_step", interrupted)
    if step == 4:
        with pytest.raises(Resumable, match=RESUME):
            train_tiny()
        assert saved_steps() == [4]
        with pytest.MonkeyPatch.context() as patch:  # the negative control: it is forgotten
            loops = causal_lm.canonical_loops
            patch.setattr(
                causal_lm,
                "canonical_loops",
                lambda trainer, step, validation_done: loops(trainer, step, True),
            )
            shutil.copytree("lightning_logs", "copy/lightning_logs")
            patch.chdir("copy")
            forgetful = train_tiny("ckpt_path=last").absolute()
        with pytest.raises(AssertionError):
            assert_same_end(straight, forgetful)
        assert_same_end(straight, train_tiny("ckpt_path=last"))
    else:
        assert_same_end(straight, train_tiny())
    assert interruptions == [step]


def test_sigterm_during_a_save(
    uninterrupted: Straight, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a SIGTERM, plain Lightning saves nothing and exits with 0."""
    interruptions: list[str] = []

    def interrupted(checkpoint: dict[str, Any], target: Path) -> None:
        if target.name == "step_00000004.ckpt" and not interruptions:
            interruptions.append(target.name)
            terminate()
        write_checkpoint(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", interrupted)
    with pytest.raises(Resumable, match=RESUME):
        train_tiny()
    assert interruptions
    assert saved_steps() == [5, 4]
    assert_same_end(uninterrupted().folder, train_tiny("ckpt_path=last"))


def test_sigterm_before_the_end_of_the_first_step_stops_at_once(
    train_tiny: Train, probe: Probe
) -> None:
    """Compiling happens there, and may take a minute; nothing is unsaved yet, so nothing is
    finished first.
    """
    probe.signal(0, signal.SIGTERM)
    probe.at(0, lambda: pytest.fail("the step continued"), micro=1)
    with pytest.raises(Resumable, match=r"azllm_lightning.train run_name=tiny .*max_steps=8"):
        train_tiny("trainer.micro_batch_size=2")


def test_sigterm_while_preparing_data_stops_at_once(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: object) -> Path:
        terminate()
        raise AssertionError("preparing continued")

    monkeypatch.setattr(datamodule, "prepare", interrupted)
    with pytest.raises(Resumable, match=r"azllm_lightning.train run_name=tiny .*max_steps=8"):
        train_tiny()
    assert not probe.windows
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [int(child) for child in children] + [
        other for child in children for other in descendants(int(child))
    ]


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stopped_command_prints_how_to_resume_and_leaves_no_process(
    tiny: list[str], tmp_path: Path
) -> None:
    """Exit code 75, the command to resume last, workers gone; the signal goes to all processes, as
    with Ctrl+C.
    """
    flag = tmp_path / "here"
    process = start(
        [*tiny, "data.num_workers=2", *add_callback("Pause", step=3, flag=flag, seconds=1)],
        tmp_path,
    )
    wait_for(flag)
    workers = descendants(process.pid or 0)
    assert len(workers) >= 4
    for pid in (process.pid or 0, *workers):
        os.kill(pid, signal.SIGINT)
    process.join()
    assert process.exitcode == EXIT_RESUMABLE
    last_line = (tmp_path / "output").read_text(encoding="utf-8").splitlines()[-1]
    assert last_line.startswith(f"resume: {RESUME} ")
    assert step_files(tmp_path / "lightning_logs/tiny/version_0/checkpoints")[0][0] == 3
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.thorough
@posix
@pytest.mark.parametrize("devices", [1, 2])
def test_the_signals_of_one_press_save_the_step(
    devices: int, tiny: list[str], tmp_path: Path
) -> None:
    """What the stop button of Colab, Jupyter and Kaggle sends to a `!` command."""
    flag = tmp_path / "here"
    pause = add_callback("Pause", step=3, flag=flag, seconds=2)
    settings = [f"trainer.devices={devices}", "trainer.micro_batch_size=2"]
    process = start([*tiny, *settings, *pause, *add_callback("Press", seconds=3600)], tmp_path)
    wait_for(flag)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGCONT, signal.SIGINT):
        os.kill(process.pid or 0, number)
        time.sleep(0.05)
    process.join(60)
    assert process.exitcode == EXIT_RESUMABLE
    assert step_files(tmp_path / "lightning_logs/tiny/version_0/checkpoints")[0][0] in (3, 4)


@pytest.mark.thorough
@posix
def test_a_second_ctrl_c_stops_at_once(tiny: list[str], tmp_path: Path) -> None:
    flag = tmp_path / "here"
    pause = add_callback("Pause", step=3, flag=flag)
    process = start([*tiny, *pause, *add_callback("Press", seconds=0)], tmp_path)
    wait_for(flag)
    for wait in (0.2, 0.0):
        os.kill(process.pid or 0, signal.SIGINT)
        time.sleep(wait)
    process.join(20)
    assert process.exitcode == 130
    assert not step_files(tmp_path / "lightning_logs/tiny/version_0/checkpoints")


def test_signals_within_two_seconds_are_one_press(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1.0)
    watch = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(stopping, "time", watch)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with stopping.StopRequest(interruptible=False) as stop:

        def press() -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                clock.now += 0.05

        press()
        assert (stop.reason, codes) == ("Ctrl+C", [])
        stop.is_saving = True
        clock.now += 2
        press()
        assert "once more" in stop.shown[-1]
        assert codes == []
        clock.now += 2
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]


@posix
@pytest.mark.parametrize("count", [2, 3])
def test_a_second_ctrl_c_during_the_save_takes_a_third(
    count: int, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        """Instead of the end of this process."""

    def end(code: int) -> None:
        raise Ended

    def interrupted(checkpoint: dict[str, Any], target: Path) -> None:
        for _ in range(count - 1 if target.name.startswith("step_") else 0):
            signal.raise_signal(signal.SIGINT)
        write_checkpoint(checkpoint, target)

    monkeypatch.setattr(stopping, "PRESS_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", end)
    probe.signal(2, signal.SIGINT)
    probe.at(3, lambda: pytest.fail("the training continued"))
    monkeypatch.setattr(saving, "write_checkpoint", interrupted)
    with pytest.raises(Resumable if count == 2 else Ended):
        train_tiny()
    assert saved_steps() == ([3] if count == 2 else [])


def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the kernel is gone"))


@pytest.mark.parametrize("count", [2, 3])
def test_a_notebook_stays_and_a_third_press_stops_its_cell_without_saving(
    count: int,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def press() -> None:
        for _ in range(count):
            signal.raise_signal(signal.SIGINT)

    in_notebook(monkeypatch)
    monkeypatch.setattr(stopping, "PRESS_SECONDS", 0)
    before = signal.getsignal(signal.SIGINT)
    probe.at(2, press)
    with pytest.raises(Resumable if count == 2 else KeyboardInterrupt):
        train_tiny()
    assert saved_steps() == ([3] if count == 2 else [])
    assert "once more: stop at once, without saving" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_of_a_notebook_ends_at_the_third_press(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setenv(stopping.OF_NOTEBOOK, "1")
    monkeypatch.setattr(stopping, "PRESS_SECONDS", 0)
    with stopping.StopRequest(interruptible=False):
        for expected in ([], [], [130]):
            signal.raise_signal(signal.SIGINT)
            assert codes == expected


@pytest.mark.slow
def test_three_short_sessions_are_one_long_session(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's max_time saves nothing, stops in mid-accumulation, and counts the time of earlier
    sessions.
    """
    overrides = ["trainer.max_steps=30", "trainer.micro_batch_size=2"]
    straight = uninterrupted(*overrides).folder

    # On this clock a micro-batch takes 2 seconds and a save 5.
    clock = SimpleNamespace(now=1e9)
    watch = SimpleNamespace(
        time=lambda: clock.now, monotonic=lambda: clock.now, perf_counter=lambda: clock.now
    )
    monkeypatch.setattr(stopping, "time", watch)
    monkeypatch.setattr(saving, "time", watch)

    def tick(step: int, batch: object) -> float:
        clock.now += 2
        return 1.0

    def slow_write(checkpoint: dict[str, Any], target: Path) -> None:
        clock.now += 5
        write_checkpoint(checkpoint, target)

    probe.factor = tick
    monkeypatch.setattr(saving, "write_checkpoint", slow_write)
    reached = []
    for session in range(2):
        began = clock.now
        with pytest.raises(Resumable):
            train_tiny(
                *([*overrides, "trainer.deadline=1m30s"] if session == 0 else ["ckpt_path=last"])
            )
        assert 90 - 2 * (5 + 4) * 1.5 < clock.now - began <= 90
        reached.append(saved_steps()[0])
    assert 5 < reached[0] < reached[1] - 5
    assert_same_end(straight, train_tiny("ckpt_path=last"))


def test_a_pause_is_no_reason_to_stop_before_the_deadline(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop that sleeps, or Ctrl+Z, in step 5."""
    paused = [0.0]
    watch = SimpleNamespace(
        time=lambda: time.time() + paused[0],
        monotonic=lambda: time.monotonic() + paused[0],
        perf_counter=time.perf_counter,
    )
    monkeypatch.setattr(stopping, "time", watch)
    monkeypatch.setattr(saving, "time", watch)
    probe.at(4, lambda: paused.append(paused.pop() + 3000))
    train_tiny("trainer.deadline=2h")
    assert saved_steps()[0] == 8


NOW = datetime(2026, 11, 22, 20, 0).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("11h30m", 41400), ("45m", 2700), ("90s", 90), ("1h1m1s", 3661)],
        *[("20:30", 1800), ("06:30", 37800), ("20:00", 86400), ("2026-11-22T20:10", 600)],
    ],
)
def test_deadlines(text: str, seconds: float) -> None:
    assert parse_deadline(text, NOW) == NOW + seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "25:00", "20:61", "-5m", "inf", "nan", "-inf"),
        *("0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"),
    ],
)
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a duration"):
        parse_deadline(text, NOW)


@pytest.mark.parametrize("text", ["99999999h", "99999999999h", "9" * 5000 + "s"])
def test_a_deadline_beyond_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is too far away"):
        parse_deadline(text, NOW)


def test_a_deadline_that_has_passed_is_refused(train_tiny: Train) -> None:
    with pytest.raises(ValueError, match=r"deadline=2020-01-01T06:30 has passed.*null"):
        train_tiny("trainer.deadline=2020-01-01T06:30")
    assert not Path("lightning_logs/tiny").exists()


@pytest.mark.parametrize(
    ("stored", "typed", "left"),
    [
        ("2020-01-01T06:30", [], None),
        ("2999-01-01T06:30", [], "2999-01-01T06:30"),
        ("11h30m", [], "11h30m"),  # of each session
        ("06:30", [], "06:30"),  # the next one
        # A mistake, which the session refuses.
        ("2020-01-01", ["trainer.deadline=2020-01-01"], "2020-01-01"),
    ],
)
def test_a_resume_has_no_deadline_that_an_earlier_session_has_reached(
    stored: str, typed: list[str], left: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    resumed = without_old_deadline(compose([f"trainer.deadline='{stored}'"]), compose(typed))
    assert resumed.trainer.deadline == left
    assert ("has passed" in caplog.text) == (left is None)


def test_a_stop_before_the_first_step_of_a_resume_changes_nothing(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the state is restored, when the trainer is still at step 0, nor after that."""
    folder = train_tiny("trainer.max_steps=4", "schedule.total_steps=8")
    summary = (folder / "summary.json").read_bytes()
    for hook in ("on_load_checkpoint", "on_train_start"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CausalLM, hook, lambda *args: terminate())
            with pytest.raises(Resumable, match=RESUME):
                train_tiny("ckpt_path=last", "trainer.max_steps=8")
        assert (folder / "summary.json").read_bytes() == summary
        log = (folder / "train.log").read_text(encoding="utf-8")
        stopped, resume = log.splitlines()[-2:]
        assert stopped.endswith("stopped by SIGTERM at step 4, saved")
        # Nothing has saved what was typed.
        assert resume.endswith("ckpt_path=last trainer.max_steps=8")


def test_only_the_session_handles_signals(train_tiny: Train, probe: Probe) -> None:
    """Lightning's handler would end the training in the middle of a step, and its loop would ask
    for that at each micro-batch.
    """
    handlers: list[object] = []

    def look() -> None:
        handlers.extend(signal.getsignal(number) for number in stopping.SIGNALS)
        assert not probe.module.trainer.received_sigterm

    probe.at(1, look)
    train_tiny("trainer.max_steps=2")
    assert len(handlers) == len(stopping.SIGNALS)
    assert {type(getattr(handler, "__self__", None)) for handler in handlers} == {
        stopping.StopRequest
    }


def test_nothing_is_raised_once_a_step_has_begun(capsys: pytest.CaptureFixture[str]) -> None:
    with stopping.StopRequest() as stop:
        stop.interruptible = False
        terminate()
        assert stop.reason == "SIGTERM"
        assert stop.due(0.0)
    assert "finishing this step" in capsys.readouterr().err
    with stopping.StopRequest() as stop:
        stop.begin()
        with pytest.raises(stopping.Stopped):
            terminate()


def test_a_signal_while_the_handlers_are_installed_is_raised_where_it_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping.StopRequest() as stop:
        terminate()  # nothing is raised: an exception from __enter__ would leave the handlers
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            stop.begin()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_survives_a_dead_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stderr", Dead())
    with stopping.StopRequest(interruptible=False) as stop:
        terminate()
    assert stop.reason == "SIGTERM"
