"""Checkpoint files: whole or absent, chosen only when whole, never run as code; full disks and kills included."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    Crash,
    Probe,
    add_callback,
    assert_same_end,
    curve,
    raw_points,
    sha256,
    start,
    wait_for,
)

from azllm_lightning.formats.load import read_checkpoint
from azllm_lightning.runs.checkpoint_files import step_files, verify, write_atomically
from azllm_lightning.runs.folder import claim, find_checkpoint
from azllm_lightning.training import saving

Train = Callable[..., Path]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@posix
@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_kill_9_loses_little_and_breaks_nothing(
    kills: int, tiny: list[str], train_tiny: Train, tmp_path: Path
) -> None:
    """FACTS 2: Lightning stages files in TMPDIR and copies them: a kill in between leaves half a file by its final
    name, and the stage itself.
    """
    every, rng = 3, random.Random(kills)
    sizes = [
        f"trainer.max_steps={8 * kills}",
        f"trainer.checkpoint_every_steps={every}",
        "trainer.val_every_steps=8",
    ]
    straight = train_tiny(*sizes).absolute()

    place = tmp_path / "killed"
    stage = Path("/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) / f"azllm-{os.getpid()}"
    for folder in (place, stage):
        folder.mkdir()
    run, reached = place / "lightning_logs/tiny/version_0", place / "reached"
    fixed, valid, lost, before = add_callback("Recorder", folder=place), 0, [], 0

    def session() -> Any:
        resume = (
            ["run_name=tiny", "ckpt_path=last"]
            if step_files(run / "checkpoints")
            else [*tiny, *sizes]
        )
        return start([*resume, *fixed], place, TMPDIR=str(stage))

    def progress() -> int:
        return int((reached.read_text(encoding="utf-8") if reached.exists() else "") or 0)

    try:
        for _ in range(kills):
            process, goal = session(), before + rng.randint(1, 8)
            while process.is_alive() and progress() < goal:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
            process.join()
            files = sorted((run / "checkpoints").glob("*.ckpt"))
            for path in files:
                verify(path)
                valid += 1
            newest = step_files(run / "checkpoints")[0][0] if step_files(run / "checkpoints") else 0
            lost.append(progress() - newest)
            before = newest
            reached.write_text(f"{newest:08d}", encoding="utf-8")
        process = session()
        process.join()
        assert process.exitcode == 0, (place / "output").read_text(encoding="utf-8")
        assert_same_end(straight, run)
        print(
            f"kills {kills}, files checked {valid}, all whole; steps lost {sorted(lost)}; the end bit-identical"
        )
        assert max(lost) <= every
        assert [
            path.name for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"
        ] == []
        points = [point for point in raw_points(run) if point[0] != "hp_metric"]
        assert len(points) == len(set(points))
        assert list(stage.iterdir()) == []
    finally:
        shutil.rmtree(stage)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_broken_newest_checkpoint_is_told_in_one_line_and_passed_over(
    damage: Callable[[Path], None], train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """FACTS 1: Lightning picks the newest file, broken or not, and dies of it."""
    straight = train_tiny("trainer.checkpoint_every_steps=3")
    folder = train_tiny("trainer.checkpoint_every_steps=3")
    damage(folder / "checkpoints" / "step_00000008.ckpt")
    capsys.readouterr()
    assert train_tiny("ckpt_path=last") == folder
    told = [line for line in capsys.readouterr().err.splitlines() if "step_00000008.ckpt" in line]
    assert len(told) == 1
    assert told[0].endswith("taking the one before it")
    assert_same_end(straight, folder)


def no_space(checkpoint: dict[str, Any], target: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def test_a_full_disk_costs_the_oldest_checkpoint_and_the_save_is_tried_again(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def full_once(checkpoint: dict[str, Any], target: Path) -> None:
        calls.append(target.name)
        if calls.count("step_00000006.ckpt") == 1 and target.name == "step_00000006.ckpt":
            no_space(checkpoint, target)
        write_atomically(checkpoint, target)

    monkeypatch.setattr(saving, "write_atomically", full_once)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert calls.count("step_00000006.ckpt") == 2
    assert "removing step_00000002.ckpt" in capsys.readouterr().err
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 6, 4]
    assert [verify(path)["azllm"]["step"] for _, path in step_files(folder / "checkpoints")] == [
        8,
        6,
        4,
    ]


def test_training_goes_on_while_the_disk_is_full_and_ends_well_if_a_later_save_works(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FACTS 2: a full disk kills the fit with an OSError."""

    def full_for_a_while(checkpoint: dict[str, Any], target: Path) -> None:
        (no_space if checkpoint["global_step"] in (4, 6) else write_atomically)(checkpoint, target)

    monkeypatch.setattr(saving, "write_atomically", full_for_a_while)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert "CHECKPOINT NOT SAVED" in capsys.readouterr().err
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 2]
    assert find_checkpoint("last", "tiny").name == "step_00000008.ckpt"


def test_only_a_full_disk_costs_old_checkpoints(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk answers with another error, fewer files would not help."""

    def broken_for_a_while(checkpoint: dict[str, Any], target: Path) -> None:
        if checkpoint["global_step"] == 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        write_atomically(checkpoint, target)

    monkeypatch.setattr(saving, "write_atomically", broken_for_a_while)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 4, 2]


def test_a_last_save_that_fails_is_an_error(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_at_the_end(checkpoint: dict[str, Any], target: Path) -> None:
        (no_space if checkpoint["global_step"] == 8 else write_atomically)(checkpoint, target)

    monkeypatch.setattr(saving, "write_atomically", full_at_the_end)
    with pytest.raises(OSError, match="its last checkpoint was not saved"):
        train_tiny()
    assert (
        verify(Path("lightning_logs/tiny/version_0/checkpoints/step_00000004.ckpt"))["azllm"][
            "step"
        ]
        == 4
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting is not allowed here")
    yield place
    os.chdir(tmp_path)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(
    small_disk: Path,
    train_tiny: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(small_disk)
    folder = train_tiny(
        "model.n_embd=64", "trainer.checkpoint_every_steps=1", "trainer.val_every_steps=100"
    )
    told = capsys.readouterr().err
    assert re.search(r"No space left on device.*removing step_00000001\.ckpt to try again", told), (
        told
    )
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 7, 6]
    for path in (folder / "checkpoints").glob("*.ckpt"):
        verify(path)


@pytest.mark.slow
def test_a_disk_without_a_byte_left_for_a_while(
    small_disk: Path,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even a curve can be written then; training goes on all the same."""
    monkeypatch.chdir(small_disk)
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    probe.at(3, fill)
    probe.at(6, filler.unlink)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert "CHECKPOINT NOT SAVED" in capsys.readouterr().err
    assert step_files(folder / "checkpoints")[0][0] == 8
    assert list(curve(folder)["train_loss"]) == list(range(1, 9))


@pytest.mark.slow
def test_a_read_only_disk_is_refused_before_the_first_step(
    small_disk: Path, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="cannot be written"):
        train_tiny()
    assert not probe.windows


def test_a_place_that_takes_no_folders_is_refused_before_the_first_step(
    train_tiny: Train, probe: Probe
) -> None:
    Path("lightning_logs").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OSError, match="cannot be written"):
        train_tiny()
    assert not probe.windows


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return (os.mkdir, ("taken-over",))


def test_a_hostile_checkpoint_is_refused_without_running_it(
    train_tiny: Train, tmp_path: Path
) -> None:
    torch.save(
        {"azllm": {"format": 1}, "optimizer_states": [], "payload": Hostile()}, "hostile.ckpt"
    )
    with pytest.raises(
        ValueError,
        match=r"hostile\.ckpt holds more than tensors.*would run code, so it was refused",
    ):
        train_tiny("ckpt_path=hostile.ckpt")
    assert not Path("taken-over").exists()
    pickle.loads(pickle.dumps(Hostile()))
    assert Path("taken-over").exists(), "the file was not hostile, so the test showed nothing"


def test_every_file_loads_without_trust_and_by_itself(train_tiny: Train, tmp_path: Path) -> None:
    """FACTS 1: hparams with anything but plain types cannot be loaded with weights_only=True."""
    folder = train_tiny()
    for path in (folder / "checkpoints").glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert "tokenizer" in saved["azllm"]
        assert "n_layer" in saved["azllm"]["config"]
    moved = shutil.move(folder / "checkpoints" / "step_00000008.ckpt", tmp_path / "alone.ckpt")
    shutil.rmtree("lightning_logs")
    assert (
        train_tiny(f"ckpt_path={moved}", "trainer.max_steps=9", "run_name=other").parent.name
        == "other"
    )


def test_weights_alone_are_not_resumed_from(train_tiny: Train) -> None:
    best = train_tiny() / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match=r"weights only.*ckpt_path=last.*init_from="):
        train_tiny(f"ckpt_path={best}")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "step_00000001.ckpt"
    write_atomically({"azllm": {"format": 1}, "value": 1}, target)
    before = sha256(target)

    def break_down(*args: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", break_down)
    with pytest.raises(OSError, match="broken disk"):
        write_atomically({"azllm": {"format": 1}, "value": 2}, target)
    assert sha256(target) == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    torch.save({"azllm": {"format": 99, "tokenizer": ""}}, target)
    with pytest.raises(ValueError, match="reads up to 1: upgrade azllm-lightning"):
        read_checkpoint(target)


def test_leftovers_of_a_kill_are_swept_at_the_next_start(train_tiny: Train, probe: Probe) -> None:
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny()
    leftover = Path("lightning_logs/tiny/version_0/checkpoints/.step_00000008.ckpt.123.tmp")
    leftover.write_bytes(b"half")
    train_tiny("ckpt_path=last")
    assert not leftover.exists()


@posix
def test_two_starts_at_once_get_folders_of_their_own(tiny: list[str], tmp_path: Path) -> None:
    both = [start([*tiny, "trainer.max_steps=2"], tmp_path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "output").read_text(
        encoding="utf-8"
    )
    names = sorted(path.name for path in (tmp_path / "lightning_logs/tiny").iterdir())
    assert names == ["version_0", "version_1"]


def test_claims_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [claim("tiny") for _ in range(3)]
    assert [run.version for run in runs] == [0, 1, 2]
    for run in runs:
        run.release()


@posix
def test_a_second_resume_at_once_is_refused_and_the_lock_dies_with_its_process(
    tiny: list[str], train_tiny: Train, tmp_path: Path
) -> None:
    process = start([*tiny, *add_callback("Pause", step=6, flag=tmp_path / "paused")], tmp_path)
    wait_for(tmp_path / "paused")
    with pytest.raises(ValueError, match="in use by another process"):
        train_tiny("ckpt_path=last")
    process.kill()
    process.join()
    assert train_tiny("ckpt_path=last").name == "version_0"
