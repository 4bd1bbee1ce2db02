"""The rows of `azllm runs`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from azllm_lightning.runs.listing import QUIET_SECONDS, list_runs


def curve(folder: Path, values: dict[int, float]) -> None:
    writer = SummaryWriter(str(folder))
    for step, value in values.items():
        writer.add_scalar("val_loss", value, step)
    writer.close()


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
        summary = {"steps": steps, "status": "stopped", "best_val_loss": 4.25}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        (row,) = list_runs(tmp_path)
        assert (row.step, row.status) == (8, status)
        assert abs((row.best_val_loss or 0) - best) < 1e-6
