"""Event files read step by step, thinned curves, round ticks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from run_folders import START, WriteRun, append, scalar, text
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from azllm_lightning.report.events import RunEvents
from azllm_lightning.report.record import find_run, read_record
from azllm_lightning.report.ticks import averaged, linear_ticks, log_ticks, thinned, tick_text
from azllm_lightning.runs.curves import read_scalars


def curves_of(events: RunEvents) -> dict[str, dict[int, float]]:
    return {
        tag: dict(zip(curve.steps, curve.values, strict=True))
        for tag, curve in events.scalars.items()
    }


def test_what_is_new_is_added_and_rewritten_files_are_read_again(write_run: WriteRun) -> None:
    folder = write_run()
    events = RunEvents(folder)
    events.update()
    assert curves_of(events) == read_scalars(folder)
    file = folder / "events.out.tfevents.1"
    append(file, [scalar("train_loss", 410, 1.5, START), text("resume", 400, "a", START)])
    whole = file.read_bytes()
    file.write_bytes(whole + whole[-40:-3])  # a record that is still being written
    events.update()
    assert curves_of(events) == read_scalars(folder)
    assert events.texts["resume"][400].text == "a"
    file.write_bytes(whole[: len(whole) // 2])
    events.update()
    assert curves_of(events) == read_scalars(folder)
    assert 410 not in curves_of(events)["train_loss"]


def test_steps_that_a_later_session_repeats_are_dropped(write_run: WriteRun) -> None:
    folder = write_run()
    start = SessionLog(status=SessionLog.SessionStatus.START)
    purge = Event(wall_time=START, step=301, session_log=start).SerializeToString()
    append(folder / "events.out.tfevents.2", [purge, scalar("train_loss", 310, 0.5, START)])
    events = RunEvents(folder)
    events.update()
    assert curves_of(events) == read_scalars(folder)
    assert max(curves_of(events)["val_loss"]) == 300


def test_a_damaged_or_foreign_folder_is_one_error_or_a_page_of_what_is_left(
    write_run: WriteRun,
) -> None:
    folder = write_run("good")
    file = folder / "events.out.tfevents.1"
    content = bytearray(file.read_bytes())
    content[200:260] = b"\0" * 60
    file.write_bytes(content)
    (folder / ".hydra" / "config.yaml").write_text("a: [", encoding="utf-8")
    (folder / "summary.json").write_text("[", encoding="utf-8")
    record = read_record(folder)
    assert record.events.curve("val_loss").steps
    assert (record.config, record.summary) == ({}, {})

    logs = folder.parent.parent
    foreign = logs / "foreign" / "version_0"
    foreign.mkdir(parents=True)
    (foreign / "events.out.tfevents.1").write_bytes(b"not an event file at all" * 10)
    for name in ("foreign", "missing", "../lightning_logs", ""):
        with pytest.raises(ValueError, match=r"no run with curves in .*Runs there: foreign, good"):
            find_run(name, logs)
    for name in (None, "good", "good/version_0", str(folder)):
        assert find_run(name, logs).folder.resolve() == folder.resolve()


def test_where_nothing_was_trained_nothing_is_said_of_what_was_not_typed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no run with curves in .*; train one first$") as refusal:
        find_run(None, tmp_path / "lightning_logs")
    assert "run_name" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"^run_name=a: no run with curves in \S*lightning_logs$"):
        find_run("a", tmp_path / "lightning_logs")
    (tmp_path / "lightning_logs" / "empty" / "version_0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^no run with curves .* first\. Runs there: empty$"):
        find_run(None, tmp_path / "lightning_logs")


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 5000)
    y[54_321] = 9
    y[60_000] = math.nan
    some_x, some_y = thinned(x, y)
    assert len(some_x) <= 402
    assert (some_x[0], some_x[-1]) == (0, 99_999)
    assert (some_x[np.nanargmax(some_y)], np.nanmax(some_y)) == (54_321, 9)
    assert np.isnan(some_y).sum() == 1
    assert (np.diff(some_x) > 0).all()
    means = averaged(x, np.where(np.isnan(y), 0, y))
    assert len(means[0]) == 100
    assert math.isclose(means[1].mean(), np.nanmean(y), abs_tol=1e-3)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (2.03, 2.07), (0, 123_456), (-1, 0.1), (3e-5, 9e-4), (0, 1e9)]
)
def test_ticks_are_few_and_round(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, 4)
    assert 3 <= len(ticks) <= 9
    assert low <= ticks[0] < ticks[-1] <= high * (1 + 1e-9)
    assert all(len(tick_text(tick)) <= 7 for tick in ticks)


def test_ticks_of_a_log_axis() -> None:
    assert log_ticks(8, 4000)[:4] == [10, 20, 50, 100]
    assert len(log_ticks(1e-8, 1e8)) == 17
    assert len(log_ticks(10, 14)) >= 3
    assert [tick_text(value) for value in (0, 0.5, 1500, 2e6, 5e-5)] == [
        "0",
        "0.5",
        "1.5k",
        "2M",
        "5e-5",
    ]
