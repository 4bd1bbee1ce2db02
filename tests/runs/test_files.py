"""Checkpoint files: complete or absent, chosen only if complete, never run as code; also on full
disks and after kills.
"""

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
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    Crash,
    Probe,
    Uninterrupted,
    add_callback,
    assert_same_end,
    curve,
    raw_points,
    sha256,
    start,
    wait_for,
)

from azllm_lightning.formats.load import FORMAT, read_checkpoint
from azllm_lightning.runs.checkpoint_files import is_complete, step_files, verify, write_checkpoint
from azllm_lightning.runs.folder import claim, find_checkpoint
from azllm_lightning.training import saving

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@posix
@pytest.mark.parametrize(
    "kills", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(50, marks=pytest.mark.slow)]
)
def test_kill_9_loses_little_and_breaks_nothing(
    kills: int, tiny: list[str], uninterrupted: Straight, tmp_path: Path
) -> None:
    """Lightning stages files in TMPDIR and copies them: a kill in between leaves half a file under
    its final name, and the stage itself.
    """
    every, rng = 3, random.Random(kills)
    sizes = [f"trainer.max_steps={8 * kills}", "trainer.val_every_steps=8"]
    straight = uninterrupted(*sizes).folder

    place = tmp_path / "killed"
    stage = Path("/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) / f"azllm-{os.getpid()}"
    for folder in (place, stage):
        folder.mkdir()
    run = place / "lightning_logs/tiny/version_0"
    reached = place / "reached"
    recorder = add_callback("Recorder", folder=place)
    verified, lost, newest = 0, [], 0

    def session() -> Any:
        resume = ["run_name=tiny", "ckpt_path=last"]
        first = [*tiny, *sizes, f"trainer.checkpoint_every_steps={every}"]
        typed = resume if step_files(run / "checkpoints") else first
        return start([*typed, *recorder], place, TMPDIR=str(stage))

    def progress() -> int:
        return int((reached.read_text(encoding="utf-8") if reached.exists() else "") or 0)

    try:
        for _ in range(kills):
            process, goal = session(), newest + rng.randint(every + 1, 8)
            while process.is_alive() and progress() < goal:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
            process.join()
            for path in (run / "checkpoints").glob("*.ckpt"):
                verify(path)
                verified += 1
            newest = next((step for step, _ in step_files(run / "checkpoints")), 0)
            lost.append(progress() - newest)
            reached.write_text(f"{newest:08d}", encoding="utf-8")
        process = session()
        process.join()
        assert process.exitcode == 0, (place / "output").read_text(encoding="utf-8")
        assert_same_end(straight, run)
        print(f"{kills} kills, {verified} files verified; steps lost {sorted(lost)}")
        assert max(lost) <= every
        assert not [path for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"]
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
def test_a_broken_newest_checkpoint_is_reported_in_one_line_and_skipped(
    damage: Callable[[Path], None],
    uninterrupted: Straight,
    train_tiny: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lightning picks the newest file, broken or not, and crashes."""
    folder = train_tiny("trainer.checkpoint_every_steps=3")
    damage(folder / "checkpoints" / "step_00000008.ckpt")
    capsys.readouterr()
    assert train_tiny("ckpt_path=last") == folder
    lines = [line for line in capsys.readouterr().err.splitlines() if "step_00000008.ckpt" in line]
    assert len(lines) == 1
    assert lines[0].endswith("trying the previous one")
    assert_same_end(uninterrupted().folder, folder)


def test_a_damaged_directory_of_the_file_is_a_broken_checkpoint_too(tmp_path: Path) -> None:
    """zipfile has an error of another kind for most of its fields."""
    path = tmp_path / "step_00000001.ckpt"
    content = {"format": FORMAT, "tokenizer": "{}"}
    write_checkpoint({"azllm": content, "state_dict": {"net.weight": torch.ones(4)}}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        begin = file.start_dir
    verify(path)
    refused = 0
    for position in range(begin, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        refused += not is_complete(path)
    assert refused > (len(whole) - begin) / 2


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
        write_checkpoint(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", full_once)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert calls.count("step_00000006.ckpt") == 2
    assert "removing step_00000002.ckpt" in capsys.readouterr().err
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 6, 4]
    assert all(
        verify(path)["azllm"]["step"] == step for step, path in step_files(folder / "checkpoints")
    )


def test_training_continues_while_the_disk_is_full_and_succeeds_if_a_later_save_works(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In plain Lightning, a full disk ends the fit with an OSError."""

    def full_for_a_while(checkpoint: dict[str, Any], target: Path) -> None:
        (no_space if checkpoint["global_step"] in (4, 6) else write_checkpoint)(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", full_for_a_while)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert "CHECKPOINT NOT SAVED" in capsys.readouterr().err
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 2]
    assert find_checkpoint("last", "tiny").name == "step_00000008.ckpt"


def test_only_a_full_disk_costs_old_checkpoints(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any other error of the disk, fewer files would not help."""

    def broken_for_a_while(checkpoint: dict[str, Any], target: Path) -> None:
        if checkpoint["global_step"] == 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        write_checkpoint(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", broken_for_a_while)
    folder = train_tiny("trainer.checkpoint_every_steps=2")
    assert [step for step, _ in step_files(folder / "checkpoints")] == [8, 4, 2]


def test_a_last_save_that_fails_is_an_error(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_at_the_end(checkpoint: dict[str, Any], target: Path) -> None:
        (no_space if checkpoint["global_step"] == 8 else write_checkpoint)(checkpoint, target)

    monkeypatch.setattr(saving, "write_checkpoint", full_at_the_end)
    with pytest.raises(OSError, match="its last checkpoint was not saved"):
        train_tiny()
    before = Path("lightning_logs/tiny/version_0/checkpoints/step_00000004.ckpt")
    assert verify(before)["azllm"]["step"] == 4


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
    """It has room for three full states and two best.ckpt, not for a fourth state."""
    monkeypatch.chdir(small_disk)
    folder = train_tiny(
        "model.n_embd=56", "trainer.checkpoint_every_steps=1", "trainer.val_every_steps=100"
    )
    warnings = capsys.readouterr().err
    message = r"the disk is full.*removing step_00000001\.ckpt to try again"
    assert re.search(message, warnings), warnings
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
    """Not even a curve can be written then, but training continues."""
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
        match=r"hostile\.ckpt.*code",
    ):
        train_tiny("ckpt_path=hostile.ckpt")
    assert not Path("taken-over").exists()
    pickle.loads(pickle.dumps(Hostile()))
    assert Path("taken-over").exists(), "the file was not hostile, so the test proves nothing"


def test_every_file_loads_without_trust_and_by_itself(train_tiny: Train, tmp_path: Path) -> None:
    """hparams with anything but plain types cannot be loaded with weights_only=True."""
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
    write_checkpoint({"azllm": {"format": 1}, "value": 1}, target)
    before = sha256(target)

    def break_down(*args: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", break_down)
    with pytest.raises(OSError, match="broken disk"):
        write_checkpoint({"azllm": {"format": 1}, "value": 2}, target)
    assert sha256(target) == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    torch.save({"azllm": {"format": 99, "tokenizer": ""}}, target)
    with pytest.raises(ValueError, match="upgrade azllm-lightning"):
        read_checkpoint(target)


def test_leftovers_of_a_kill_are_removed_at_the_next_start(train_tiny: Train, probe: Probe) -> None:
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny()
    leftover = Path("lightning_logs/tiny/version_0/checkpoints/.step_00000008.ckpt.123.tmp")
    leftover.write_bytes(b"half")
    train_tiny("ckpt_path=last")
    assert not leftover.exists()


@posix
@pytest.mark.slow
def test_two_starts_at_once_get_folders_of_their_own(tiny: list[str], tmp_path: Path) -> None:
    both = [start([*tiny, "trainer.max_steps=1"], tmp_path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "output").read_text(
        encoding="utf-8"
    )
    names = sorted(path.name for path in (tmp_path / "lightning_logs/tiny").iterdir())
    assert names == ["version_0", "version_1"]


def test_claims_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [claim("tiny") for _ in range(3)]
    assert [run.version for run in runs] == [0, 1, 2]
    for run in runs:
        run.release()


@pytest.mark.thorough
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
