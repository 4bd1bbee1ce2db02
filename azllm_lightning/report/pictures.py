"""The picture of a training in a model card."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.report.charts import picture
from azllm_lightning.report.document import asset
from azllm_lightning.report.record import read_record
from azllm_lightning.report.run_charts import loss_chart
from azllm_lightning.runs.paths import is_version

PICTURE = "training.svg"

SIZE = (760, 320)


def training_picture(checkpoint: Path) -> str | None:
    """The losses of the run that a checkpoint is from, as SVG; None if they are not with it."""
    folder = checkpoint.resolve().parent.parent
    if not checkpoint.is_file() or not is_version(folder):
        return None
    chart = loss_chart(read_record(folder, is_training=False))
    if not chart.lines or chart.is_empty:
        return None
    return picture(chart, *SIZE, asset("chart.css"))
