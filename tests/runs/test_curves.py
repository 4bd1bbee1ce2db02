from __future__ import annotations

import builtins
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training_runs import Crash, Probe, Uninterrupted, raw_points

from azllm_lightning.runs import atomic
from azllm_lightning.runs.curves import EVENTS, carry_curve, read_records, read_run, read_scalars


def write(folder: Path, steps: range, offset: float = 0.0) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("loss", step + offset, step)


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(7))
    carry_curve(tmp_path, tmp_path, 4)
    assert read_scalars(tmp_path) == {"loss": {step: float(step) for step in range(5)}}


def test_carried_twice_and_logged_on_the_steps_stay_in_order(tmp_path: Path) -> None:
    """Also within one second, when the names of the files do not show their age."""
    for start in (0, 3, 6):
        write(tmp_path, range(start, start + 5))
        carry_curve(tmp_path, tmp_path, start + 2)
    write(tmp_path, range(9, 12))
    assert raw_points(tmp_path) == [("loss", step) for step in range(12)]
    assert len(list(tmp_path.glob(EVENTS))) == 2


def test_a_kill_between_the_new_file_and_the_removal_of_the_old_doubles_nothing(
    tmp_path: Path,
) -> None:
    write(tmp_path, range(3))
    write(tmp_path, range(3, 6))
    newest = sorted(tmp_path.glob(EVENTS))[-1]
    content = newest.read_bytes()
    carry_curve(tmp_path, tmp_path, 5)
    newest.write_bytes(content)  # as if the removal had not happened
    carry_curve(tmp_path, tmp_path, 5)
    assert raw_points(tmp_path) == [("loss", step) for step in range(6)]


def test_of_two_resumes_from_one_step_the_last_one_is_kept(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    for text in ("first", "second"):
        carry_curve(tmp_path, tmp_path, 4)
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_text("resume", text, 4)
            writer.add_scalar("loss", 5.0, 5)
    carry_curve(tmp_path, tmp_path, 5)
    (file,) = tmp_path.glob(EVENTS)
    assert b"second" in file.read_bytes()
    assert b"first" not in file.read_bytes()
    points = [("loss", step) for step in range(6)]
    # In any order: the names of files of one second do not sort as they were written.
    assert sorted(raw_points(tmp_path)) == [*points, ("resume/text_summary", 4)]


def test_a_record_that_a_kill_cut_off_ends_its_file(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    (path,) = tmp_path.glob(EVENTS)
    path.write_bytes(path.read_bytes()[:-7])
    carry_curve(tmp_path, tmp_path, 10)
    write(tmp_path, range(4, 6))
    # in any order: the names of files of one second do not sort as they were written
    assert sorted(raw_points(tmp_path)) == [("loss", step) for step in range(6)]


@pytest.mark.parametrize("value", [0, 255, None])
def test_a_damaged_byte_costs_its_record_and_not_what_follows(
    value: int | None, tmp_path: Path
) -> None:
    """TensorBoard's own reader ends at the first damaged record."""
    write(tmp_path, range(6))
    (path,) = tmp_path.glob(EVENTS)
    content = path.read_bytes()
    whole = list(read_records([path]))
    assert len(whole) == 7  # the first is the version of the format
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] = damaged[place] ^ 1 if value is None else value
        path.write_bytes(damaged)
        found = list(read_records([path]))
        assert found == [raw for raw in whole if raw in found], place
        assert len(found) >= len(whole) - 1, place


@pytest.mark.parametrize("length", [1, 20, 100])
def test_a_gap_or_zeros_in_a_file_cost_only_their_records(length: int, tmp_path: Path) -> None:
    """A power cut leaves zeros; a copy that was interrupted leaves a gap."""
    write(tmp_path, range(8))
    (path,) = tmp_path.glob(EVENTS)
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (
        content[:middle] + bytes(length) + content[middle + length :],
        content[:middle] + content[middle + length :],
    ):
        path.write_bytes(damaged)
        points = read_scalars(tmp_path)["loss"]
        assert points == {step: float(step) for step in points}
        assert {0, 7} <= points.keys()
        assert len(points) < 8 or length == 1


def held_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows while TensorBoard runs: no event file can be replaced, renamed or deleted."""

    def refuse(name: str, which: int) -> None:
        real = getattr(Path, name)

        def call(*arguments: Any, **options: Any) -> Any:
            path = Path(arguments[which])
            if path.name.startswith("events.out") and path.exists():
                raise PermissionError(errno.EACCES, "used by another process", str(path))
            return real(*arguments, **options)

        monkeypatch.setattr(Path, name, call)

    for name, which in (("replace", 1), ("rename", 0), ("unlink", 0)):
        refuse(name, which)
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0.0,))


def test_a_curve_that_a_reader_holds_open_is_continued_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, range(7), offset=100)
    with monkeypatch.context() as patch:
        held_open(patch)
        carry_curve(tmp_path, tmp_path, 4)
    assert "cannot be rewritten (" in caplog.text
    expected = {step: 100.0 + step for step in range(5)}
    assert read_scalars(tmp_path) == {"loss": expected}, "the steps after 4 are dropped"
    write(tmp_path, range(5, 8))
    expected |= {5: 5.0, 6: 6.0, 7: 7.0}
    assert read_scalars(tmp_path) == {"loss": expected}
    assert tensorboard_points(tmp_path) == expected
    assert not list(tmp_path.glob(".*"))
    carry_curve(tmp_path, tmp_path, 6)  # TensorBoard was closed
    del expected[7]
    assert read_scalars(tmp_path) == {"loss": expected}
    assert raw_points(tmp_path) == [("loss", step) for step in range(7)]


def tensorboard_points(folder: Path) -> dict[int, float]:
    """The points of `loss` that TensorBoard shows."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars("loss")}


def test_a_fork_takes_the_curve_along_and_leaves_the_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    write(source, range(5))
    carry_curve(source, target, 2)
    assert list(read_scalars(target)["loss"]) == [0, 1, 2]
    assert list(read_scalars(source)["loss"]) == [0, 1, 2, 3, 4]


def test_a_run_is_a_table_of_steps_and_tags(train_tiny: Callable[..., Path]) -> None:
    folder = train_tiny()
    table = read_run(folder)
    assert table.index.name == "step"
    assert {"train_loss", "val_loss", "val_ppl", "val_bpb", "lr", "generalization_gap"} <= set(
        table.columns
    )
    assert table["val_loss"].dropna().to_dict() == read_scalars(folder)["val_loss"]
    assert list(table["val_loss"].dropna().index) == [0, 4, 8]
    assert list(table["train_loss"].dropna().index) == list(range(1, 9))
    assert table.attrs["summary"]["steps"] == 8
    for path in (str(folder), folder.parent, "tiny", "tiny/version_0"):
        assert read_run(path).equals(table), path
    train_tiny("trainer.max_steps=1")
    for path in (folder.parent, "tiny"):
        assert Path(read_run(path).attrs["folder"]).name == "version_1", (
            "a name is its newest version"
        )


def test_a_crashed_a_resumed_and_a_forked_run_read_as_the_uninterrupted_one(
    uninterrupted: Callable[..., Uninterrupted], train_tiny: Callable[..., Path], probe: Probe
) -> None:
    straight = read_run(uninterrupted().folder)["train_loss"]
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny()
    crashed = read_run("tiny/version_0")
    assert crashed["train_loss"].dropna().equals(straight.loc[1:6])
    assert crashed.attrs["summary"] == {}
    resumed = train_tiny("ckpt_path=last")
    assert read_run(resumed)["train_loss"].equals(straight)
    forked = train_tiny(f"ckpt_path={resumed}/checkpoints/step_00000004.ckpt")
    assert forked != resumed
    assert read_run(forked)["train_loss"].equals(straight)


@pytest.mark.parametrize("lost", [1, 7, 20, 60])
def test_a_run_in_progress_and_one_cut_off_by_a_crash_read_as_far_as_they_got(
    lost: int, tmp_path: Path
) -> None:
    writer = SummaryWriter(str(tmp_path))
    for step in range(9):
        writer.add_scalar("loss", step, step)
    writer.flush()
    table = read_run(tmp_path)
    assert list(table["loss"]) == list(range(9))
    assert table.attrs["summary"] == {}
    writer.close()
    (path,) = tmp_path.glob(EVENTS)
    path.write_bytes(path.read_bytes()[:-lost])
    kept = list(read_run(tmp_path)["loss"])
    assert kept == list(range(len(kept)))
    assert 5 < len(kept) < 9


def test_several_runs_are_columns_of_one_table(tmp_path: Path) -> None:
    folders = [tmp_path / name / "version_0" for name in ("b", "a")]
    for folder, steps in zip(folders, (range(3), range(2, 5)), strict=True):
        write(folder, steps)
    (folders[0] / "summary.json").write_text(json.dumps({"steps": 2}), encoding="utf-8")
    table = read_run(folders)
    assert list(table["loss"].columns) == ["b/version_0", "a/version_0"]
    assert list(table.index) == [0, 1, 2, 3, 4]
    assert table["loss"]["a/version_0"].dropna().to_dict() == {2: 2.0, 3: 3.0, 4: 4.0}
    assert table.attrs["summary"] == {"b/version_0": {"steps": 2}, "a/version_0": {}}
    elsewhere = tmp_path / "elsewhere" / "a" / "version_0"
    write(elsewhere, range(1))
    assert list(read_run([folders[1], elsewhere])["loss"].columns) == [
        "a/version_0",
        str(elsewhere),
    ]


def test_a_wrong_path_is_reported_with_the_runs_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"nowhere: no run with curves.*lightning_logs \(newest there: none\)"
    ):
        read_run("nowhere")
    write(tmp_path / "lightning_logs" / "mine" / "version_3", range(2))
    (tmp_path / "lightning_logs" / "mine" / "version_4").mkdir()
    for path in ("mine/version_4", "lightning_logs", "mine"):
        with pytest.raises(ValueError, match=r"no run with curves.*newest there: mine/version_3"):
            read_run(path)
    with pytest.raises(ValueError, match="at least one run"):
        read_run([])


def test_without_pandas_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = builtins.__import__

    def without_pandas(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ValueError, match=r"needs pandas.*\[notebooks\]"):
        read_run(tmp_path)
