"""The rows of `azllm runs`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from azllm_lightning.report.record import read_record
from azllm_lightning.runs.folder import claim, reopen
from azllm_lightning.runs.listing import QUIET_SECONDS, list_runs


def curve(folder: Path, values: dict[int, float], tag: str = "val_loss") -> None:
    writer = SummaryWriter(str(folder))
    for step, value in values.items():
        writer.add_scalar(tag, value, step)
    writer.close()


def write_summary(folder: Path, steps: int, status: str, best: float) -> None:
    values = {"steps": steps, "status": status, "best_val_loss": best}
    (folder / "summary.json").write_text(json.dumps(values), encoding="utf-8")


def test_a_run_without_a_summary_is_read_from_its_curve(tmp_path: Path) -> None:
    folder = tmp_path / "kitablar" / "version_0"
    curve(folder, {0: 1.0, 4: 5.5, 8: 4.5, 12: float("nan")})
    (row,) = list_runs(tmp_path)
    assert (row.status, row.best_val_loss) == ("training", 4.5)
    for file in folder.iterdir():
        before = file.stat().st_mtime - QUIET_SECONDS - 60
        os.utime(file, (before, before))
    (row,) = list_runs(tmp_path)
    assert row.status == "unfinished"


def test_a_resumed_run_shows_its_curve_and_not_the_summary_of_its_first_session(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "kitablar" / "version_0"
    curve(folder, {4: 5.5, 8: 4.5})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_00000008.ckpt").touch()
    for steps, status, best in ((4, "training", 4.5), (8, "stopped", 4.25)):
        write_summary(folder, steps, "stopped", 4.25)
        (row,) = list_runs(tmp_path)
        assert (row.step, row.status) == (8, status)
        assert abs((row.best_val_loss or 0) - best) < 1e-6


def seen(folder: Path) -> tuple[str, str, float | None]:
    """The status in the list and on the page, and the best val_loss of the list."""
    (row,) = list_runs(folder.parent.parent)
    best = None if row.best_val_loss is None else round(row.best_val_loss, 6)
    return row.status, read_record(folder).status, best


def test_a_run_trains_while_its_folder_is_locked_and_not_a_moment_longer(tmp_path: Path) -> None:
    run = claim("kitab", tmp_path)
    curve(run.folder, {4: 4.5})
    for file in run.folder.glob("events*"):  # it logs less often than every ten minutes
        before = file.stat().st_mtime - QUIET_SECONDS - 60
        os.utime(file, (before, before))
    assert seen(run.folder) == ("training", "training", 4.5)
    run.release()  # as a kill does
    curve(run.folder, {8: 4.25})
    assert seen(run.folder) == ("unfinished", "unfinished", 4.25)
    write_summary(run.folder, 8, "stopped", 4.25)
    assert seen(run.folder) == ("stopped", "stopped", 4.25)
    again = reopen(run.folder)  # a resume that has logged nothing yet
    assert seen(run.folder) == ("training", "training", 4.25)
    again.release()
    assert seen(run.folder) == ("stopped", "stopped", 4.25)


def test_a_resumed_run_that_was_killed_before_a_checkpoint_is_unfinished(tmp_path: Path) -> None:
    run = claim("kitab", tmp_path)
    run.release()
    curve(run.folder, {4: 4.5})
    write_summary(run.folder, 4, "done", 4.5)
    assert seen(run.folder) == ("done", "done", 4.5)
    curve(run.folder, {4: 4.5, 5: 4.4}, tag="train_loss")
    curve(run.folder, {5: 4.25})
    assert seen(run.folder) == ("unfinished", "unfinished", 4.25)
