"""A stop is a stop, with the command that resumes, even where nothing more can be written."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import Probe

from azllm_lightning.callbacks import summary
from azllm_lightning.cli.entrance import Resumable

Train = Callable[..., Path]


def full(path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("needs a full device")
    path.symlink_to(device)


def closed(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [full, closed])
def test_a_log_that_cannot_be_written_is_no_word_and_no_end(
    spoil: Callable[[Path], None],
    train_tiny: Train,
    probe: Probe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = train_tiny() / "train.log"
    file.unlink()
    spoil(file)
    probe.signal(9, signal.SIGTERM)
    with pytest.raises(Resumable, match="ckpt_path=last"):
        train_tiny("ckpt_path=last", "trainer.max_steps=12")
    said = "".join(capsys.readouterr())
    assert "stopped by SIGTERM at step 10, saved" in said
    assert "Logging error" not in said
    assert "Traceback" not in said


def test_a_summary_that_cannot_be_written_at_a_stop_is_a_warning(
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(summary, "write_json", fail)
    probe.signal(2, signal.SIGTERM)
    with pytest.raises(Resumable, match="ckpt_path=last"):
        train_tiny()
    assert "summary.json could not be written" in " ".join(capsys.readouterr().err.split())
