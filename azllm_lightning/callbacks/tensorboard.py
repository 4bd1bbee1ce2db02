"""What TensorBoard shows of a run besides its curves: layout, settings and environment."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

import azllm_lightning
from azllm_lightning.callbacks.throughput import peak_memory_bytes
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule, datamodule_of
from azllm_lightning.runs.commit import commit
from azllm_lightning.runs.curves import SESSION, write_description

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PAGE = "?smoothing=0#custom_scalars&_smoothingWeight=0"
"""The part of TensorBoard's address that opens the layout without smoothing."""

ADDRESS = f"http://localhost:6006/{PAGE}"
"""Where `tensorboard` shows its page, if nobody chose another port."""

LAYOUT = {
    "loss": {
        "train_loss, val_loss, diagnoses (nats per token; set Smoothing to 0)": [
            "Multiline",
            ["^train_loss$", "^val_loss$", "^diagnosis/"],
        ],
        "generalization_gap (nats per token)": ["Multiline", ["^generalization_gap$"]],
        "val_loss by source": ["Multiline", ["^val_loss_by_source/"]],
    },
    "perplexity": {
        "train_ppl, val_ppl (the button below: log axis)": [
            "Multiline",
            ["^train_ppl$", "^val_ppl$"],
        ],
        "val_bpb (bits per byte)": ["Multiline", ["^val_bpb$"]],
    },
    "training": {
        "lr": ["Multiline", ["^lr$"]],
        "grad_norm before clipping": ["Multiline", ["^grad_norm$"]],
        "tokens_per_sec": ["Multiline", ["^tokens_per_sec$"]],
        "peak_memory_gb": ["Multiline", ["^peak_memory_gb$"]],
    },
}
"""Rows of charts, each with the scalars whose tags match a regular expression.

Titles say what TensorBoard cannot be told: it smooths by default, and its axes are linear. Charts
of several runs are merged by their titles.
"""

HPARAMS = {
    "model": "n_layer n_embd n_head dropout tie_embeddings",
    "data": "name vocab_size block_size token_replacement",
    "optimizer": "name lr weight_decay",
    "schedule": "name warmup_steps min_lr_ratio",
    "trainer": "max_steps global_batch_size micro_batch_size precision compile",
}
"""Settings in the table of runs, in addition to seed, parameters and tokens of all steps."""

SHOWN = ("data.name", "optimizer.name", "optimizer.lr", "parameters", "tokens")
"""The settings that TensorBoard shows by default; it has room for five."""

METRICS = ("val_loss", "val_bpb", "val_loss_best", "val_loss_best_step")
"""The scalars in that table: the last value of each."""

PACKAGES = ("torch", "lightning", "tensorboard", "tokenizers", "numpy")


def layout(sources: int, has_memory: bool) -> dict[str, Any]:
    """LAYOUT without the charts that would stay empty.

    These are val_loss by source for a single source, and the memory where it is not measured.
    """
    empty = set()
    if sources < 2:
        empty.add("val_loss by source")
    if not has_memory:
        empty.add("peak_memory_gb")
    return {
        row: {title: chart for title, chart in charts.items() if title not in empty}
        for row, charts in LAYOUT.items()
    }


class TensorBoard(Callback):
    """Writes the layout, the row in the HPARAMS tab, config, environment and how to read the page.

    They are in an event file of their own, which each session replaces before its first step: see
    `runs.curves.DESCRIPTION`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write all of it, before the first curve."""
        for writer in writers(trainer):
            folder = Path(writer.log_dir)
            write_description(folder, self._description(datamodule_of(trainer)))
            # Lightning writes this file only if it is absent.
            hparams_file = folder / TensorBoardLogger.NAME_HPARAMS_FILE
            with contextlib.suppress(OSError):  # open in another program, on Windows
                hparams_file.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write hparams.yaml."""
        for logger in trainer.loggers:
            logger.save()

    def _description(self, data: TokenDataModule) -> Iterator[Any]:
        from torch.utils.tensorboard.summary import custom_scalars, hparams, text

        sources = len(data.val_sources()[0])
        has_memory = torch.cuda.is_available() or peak_memory_bytes("cpu") is not None
        yield custom_scalars(layout(sources, has_memory))  # type: ignore[no-untyped-call]
        table, row, _ = hparams(self._hparams(), dict.fromkeys(METRICS, 0))  # type: ignore[no-untyped-call]
        yield _with_default_columns(table)
        yield row
        texts = {
            "config": code_block(self.config.to_yaml()),
            "data": code_block(self._data(data)),
            "environment": code_block(environment()),
            "reading": tr(
                "Smoothing draws a curve late and flat: val_loss has few points, so that it misses "
                "its lowest one. Set Smoothing to 0, or open this page as `{address}`. Perplexity "
                "reads best on a log axis: the button under the chart. The points of the loss "
                "chart are diagnoses, at the loss of their step; the tab Text explains them.",
                address=ADDRESS,
            ),
        }
        for tag, content in texts.items():
            yield text(f"{SESSION}{tag}", content)  # type: ignore[no-untyped-call]

    def _data(self, data: TokenDataModule) -> str:
        """How much text there is, and which of it validations read, as YAML, one value per line."""
        windows = data.train_windows
        batch = self.config.trainer.global_batch_size
        found = {
            "training_tokens": windows.unique_windows * self.config.shape.block_size,
            "block_size": self.config.shape.block_size,
            "validation_windows": len(data.chosen_val_windows()),
            "all_validation_windows": data.val_windows.num_windows,
            "validation_text": data.val_text_digest,
            "steps_per_pass": round(windows.num_windows / batch, 2),
            "steps_per_reading": round(windows.windows_per_reading / batch, 2),
        }
        return "\n".join(f"{key}: {value}" for key, value in found.items())

    def _hparams(self) -> dict[str, float | str]:
        values = self.config.to_mapping()
        found = {
            f"{group}.{key}": values[group].get(key)
            for group, keys in HPARAMS.items()
            for key in keys.split()
        }
        model = self.config.shape
        found["seed"] = self.config.seed
        found["parameters"] = model.num_params()
        sequences = self.config.trainer.max_steps * self.config.trainer.global_batch_size
        found["tokens"] = sequences * model.block_size
        return {
            key: str(value).lower() if isinstance(value, bool) else value
            for key, value in found.items()
        }


def _with_default_columns(table: Any) -> Any:
    """`table`, the definition of the columns, with those of SHOWN marked to come first."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin_data = table.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in SHOWN
    plugin_data.content = content.SerializeToString()
    return table


def writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The writers of the event files; none except in the first process."""
    if trainer.is_global_zero:
        yield from (
            logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
        )


def code_block(text: str) -> str:
    """`text` as Markdown that shows it unchanged."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def environment() -> str:
    """Versions, machine and commit as YAML, one per line."""
    found = {
        "python": platform.python_version(),
        "azllm-lightning": azllm_lightning.__version__,
        **{name: version(name) for name in PACKAGES},
        "torch": str(torch.__version__),  # with its build, which its metadata from PyPI lacks
        "commit": commit() or "not a git checkout",
        "system": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {
            "cuda": torch.version.cuda,
            "gpu": ", ".join(names),
            "gpu_memory_gb": round(memory / 1e9, 1),
        }
    return "\n".join(f"{key}: {value}" for key, value in found.items())
