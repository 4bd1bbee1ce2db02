from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import START, Curves, WriteRun, append, healthy, scalar, text


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run(name, curves, ...): a run folder in lightning_logs; a step takes a second."""

    def write(
        name: str = "run",
        curves: Curves | None = None,
        texts: Mapping[str, Mapping[int, str]] | None = None,
        config: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / "lightning_logs" / name / "version_0"
        (folder / ".hydra").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        settings = {"trainer": {"max_steps": 400}, "data": {"name": "text"}, **(config or {})}
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        points = [
            (step, scalar(tag, step, value, START + step))
            for tag, curve in (healthy() if curves is None else curves).items()
            for step, value in curve.items()
        ]
        points += [
            (step, text(tag, step, content, START + step))
            for tag, entries in (texts or {}).items()
            for step, content in entries.items()
        ]
        points.sort(key=lambda point: point[0])
        append(folder / "events.out.tfevents.1", [record for _, record in points])
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(dict(summary)), encoding="utf-8")
        return folder

    return write
