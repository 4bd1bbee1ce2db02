"""Files are replaced completely or not at all, also on file systems that cannot do it in one
step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.runs import atomic
from azllm_lightning.runs.atomic import replacing, sweep, write_text


def failing(real: Callable[..., Any], number: int, times: int = 10**9) -> Callable[..., Any]:
    """`real`, which fails `times` times where its last argument exists."""
    left = times

    def call(*arguments: Any) -> Any:
        nonlocal left
        if Path(arguments[-1]).exists() and left:
            left -= 1
            raise OSError(number, os.strerror(number), str(arguments[-1]))
        return real(*arguments)

    return call


@pytest.mark.skipif(os.name != "posix", reason="Windows syncs no folders")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_failure(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def for_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", for_files_only)
    write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "{}"


def test_a_file_system_without_fsync_is_no_failure_but_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    write_text(tmp_path / "a.json", "{}")
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_text(tmp_path / "a.json", "[]")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "{}"


def test_a_reader_that_lets_go_soon_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows an open file cannot be replaced."""
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0.01,) * 3)
    (tmp_path / "best.ckpt").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", failing(Path.replace, errno.EACCES, times=2))
    with replacing(tmp_path / "best.ckpt") as file:
        file.write(b"new")
    assert (tmp_path / "best.ckpt").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("times", [2, 10**9])
def test_a_scanner_that_has_a_new_file_open(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows an open file cannot be renamed either; a name that is new is tried as often."""
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0.01,) * 3)
    calls = 0
    replace = Path.replace

    def scanned(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", scanned)
    with contextlib.nullcontext() if times < 3 else pytest.raises(PermissionError):
        write_text(tmp_path / "step_00000001.ckpt", "new")
    assert calls == (3 if times < 3 else 4)
    assert len(list(tmp_path.iterdir())) == (1 if times < 3 else 0)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.EINVAL])
def test_where_no_file_can_be_renamed_onto_another_the_old_one_is_put_aside(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0.01,) * 3)
    (tmp_path / "best.ckpt").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", failing(Path.replace, number))
    with replacing(tmp_path / "best.ckpt") as file:
        file.write(b"new")
    assert (tmp_path / "best.ckpt").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_file_that_nobody_may_touch_stays_and_the_error_is_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0.01,) * 3)
    (tmp_path / "best.ckpt").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", failing(Path.replace, errno.EACCES))

    def held(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "in use", str(self))

    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(PermissionError), replacing(tmp_path / "best.ckpt") as file:
        file.write(b"new")
    assert (tmp_path / "best.ckpt").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_only_our_own_leftovers_are_swept(tmp_path: Path) -> None:
    ours = [
        ".best.ckpt.12.tmp",
        ".step_00000004.ckpt.old.7.tmp",
        ".config.yaml.1.tmp",
        ".suite.md.1.tmp",
        ".metrics.csv.1.tmp",
        ".events.out.tfevents.17.host.3.0.99.tmp",
    ]
    theirs = [
        "step_00000004.ckpt",
        ".notes.tmp",
        ".thesis.docx.12.tmp",
        "best.ckpt.12.tmp",
        ".best.ckpt.tmp",
    ]
    for name in [*ours, *theirs]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".folder.json.1.tmp").mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, ".folder.json.1.tmp"}


def test_what_a_kill_left_aside_comes_back(tmp_path: Path) -> None:
    """Where a file cannot be renamed onto another, a kill may come between the two renames."""
    (tmp_path / ".best.ckpt.old.5.tmp").write_bytes(b"old")
    (tmp_path / ".best.ckpt.5.tmp").write_bytes(b"new")
    sweep(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"best.ckpt": b"old"}
