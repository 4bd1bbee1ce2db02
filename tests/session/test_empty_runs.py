"""A start that fails leaves no empty run; a run that has trained a step stays."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import Crash, Probe

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.runs import folder as run_folder
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.session.session import run_session
from azllm_lightning.training.stopping import Stopped

Train = Callable[..., Path]


@pytest.mark.parametrize(
    "wrong",
    [
        ["init_from=nowhere.ckpt"],
        ["+callbacks.mine._target_=no.such.Class"],
        ["+logger.mine._target_=no.such.Class"],
    ],
    ids=str,
)
def test_a_start_that_fails_leaves_no_run(wrong: list[str], train_tiny: Train) -> None:
    with pytest.raises(ValueError, match=r"nowhere|no\.such\.Class"):
        train_tiny(*wrong)
    assert not Path("lightning_logs/tiny").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("logger.trackio=kitab", "pip install trackio"),
        ("+callbacks.mine._target_=no.such.Class", r"no\.such\.Class"),
        ("+logger.mine._target_=no.such.Class", r"no\.such\.Class"),
        ("init_from=nowhere.ckpt", r"nowhere\.ckpt"),
    ],
)
def test_what_is_missing_is_found_before_the_text_is_prepared(
    setting: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        pytest.fail("the text is prepared")

    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("azllm_lightning.session.session.resolve", prepare)
    with pytest.raises(ValueError, match=named):
        run_session(compose(["experiment=debug", setting]))


def test_a_step_that_cannot_be_divided_is_found_before_the_text_is_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(*_: object) -> None:
        pytest.fail("the text is prepared")

    monkeypatch.setattr("azllm_lightning.session.resolve.prepared_folder", prepare)
    typed = ["experiment=debug", "trainer.global_batch_size=16", "trainer.micro_batch_size=5"]
    with pytest.raises(ValueError, match="micro_batch_size=5 does not divide"):
        run_session(compose(typed))


def test_a_crash_in_the_first_step_leaves_no_run_and_no_gap_in_the_numbers(
    train_tiny: Train, probe: Probe
) -> None:
    """The validation at step 0 has been logged, and its weights are the best so far."""
    first = train_tiny("trainer.max_steps=1")
    probe.crash(0)
    with pytest.raises(Crash):
        train_tiny()
    assert [path.name for path in first.parent.iterdir()] == ["version_0"]


def test_a_stop_before_the_first_step_leaves_no_run(train_tiny: Train, probe: Probe) -> None:
    probe.signal(0, signal.SIGTERM)
    with pytest.raises(Resumable) as stop:
        train_tiny()
    if "ckpt_path=last" not in stop.value.command:
        assert not Path("lightning_logs/tiny").exists()


def test_a_stop_before_the_first_step_of_a_fork_leaves_no_run(
    train_tiny: Train, probe: Probe
) -> None:
    """The curve up to its start is that of the other version."""
    folder = train_tiny()
    probe.at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Resumable) as stop:
        train_tiny(f"ckpt_path={folder}/checkpoints/step_00000004.ckpt", "trainer.max_steps=9")
    if "step_00000004" in stop.value.command:  # it was not a moment too late
        assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
        assert stop.value.command.endswith("trainer.max_steps=9")


@pytest.mark.parametrize("settings", [[], ["logger.tensorboard=false", "logger.csv=true"]], ids=str)
def test_a_crash_after_a_step_keeps_its_curve(
    settings: list[str], train_tiny: Train, probe: Probe
) -> None:
    probe.crash(1)
    with pytest.raises(Crash):
        train_tiny("callbacks.samples.max_new_tokens=0", *settings)
    folder = Path("lightning_logs/tiny/version_0")
    assert "Crash" in (folder / "train.log").read_text(encoding="utf-8")
    assert settings or 1 in read_scalars(folder)["train_loss"]


@pytest.mark.parametrize(
    ("step", "error", "is_resumable"),
    [
        (6, RuntimeError("CUDA error: unspecified launch failure"), True),
        (6, OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)), True),
        (6, ValueError("of the settings"), False),
        (2, RuntimeError("before anything is saved"), False),
    ],
    ids=["crash", "system", "settings", "unsaved"],
)
def test_an_error_after_a_save_comes_with_the_command_to_resume(
    step: int,
    error: Exception,
    is_resumable: bool,
    train_tiny: Train,
    probe: Probe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    probe.at(step, fail)
    with pytest.raises(type(error)):
        train_tiny()
    log = Path("lightning_logs/tiny/version_0/train.log").read_text(encoding="utf-8")
    resume = "resume: python -m azllm_lightning.train run_name=tiny ckpt_path=last\n"
    assert (resume in log) == (resume in capsys.readouterr().err) == is_resumable
    probe.at(4, fail)
    if is_resumable:  # at once, as often as it is resumed
        with pytest.raises(type(error)):
            train_tiny("ckpt_path=last")
        assert resume not in capsys.readouterr().err


def test_a_resumed_run_that_fails_at_once_stays(train_tiny: Train, probe: Probe) -> None:
    folder = train_tiny()
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=r"no\.such"):
        train_tiny("ckpt_path=last", "trainer.max_steps=9", "+callbacks.a._target_=no.such.Class")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_a_disk_that_fills_up_at_the_start_leaves_no_run(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("azllm_lightning.session.open.write_text", full)
    with pytest.raises(OSError, match="No space"):
        train_tiny()
    assert not Path("lightning_logs/tiny").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("end", [KeyboardInterrupt, Stopped("Ctrl+C"), OSError(errno.EIO, "I/O")])
@pytest.mark.parametrize("begin", ["last", "step_00000004.ckpt"], ids=["in place", "fork"])
def test_a_start_of_a_resume_that_is_interrupted_leaves_no_lock_and_no_new_version(
    begin: str,
    end: BaseException | type[BaseException],
    train_tiny: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process of a notebook goes on, and would keep the run locked."""
    folder = train_tiny()
    start = begin if begin == "last" else f"{folder}/checkpoints/{begin}"

    def interrupted(*_: object) -> None:
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "carry_curve", interrupted)
        with pytest.raises((KeyboardInterrupt, Resumable, OSError)):
            train_tiny(f"ckpt_path={start}", "trainer.max_steps=9")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert train_tiny("ckpt_path=last", "trainer.max_steps=9") == folder
