"""What TensorBoard shows of a run besides its curves: layout, settings and environment."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

import azllm_lightning
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.curves import SESSION

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAYOUT = {
    "loss": {
        "train_loss, val_loss (nats per token)": ["Multiline", ["^train_loss$", "^val_loss$"]],
        "generalization_gap (nats per token)": ["Multiline", ["^generalization_gap$"]],
        "val_loss by source": ["Multiline", ["^val_loss_by_source/"]],
    },
    "perplexity": {
        "train_ppl, val_ppl": ["Multiline", ["^train_ppl$", "^val_ppl$"]],
        "val_bpb (bits per byte)": ["Multiline", ["^val_bpb$"]],
    },
    "training": {
        "lr": ["Multiline", ["^lr$"]],
        "grad_norm before clipping": ["Multiline", ["^grad_norm$"]],
        "tokens_per_sec": ["Multiline", ["^tokens_per_sec$"]],
        "peak_memory_gb": ["Multiline", ["^peak_memory_gb$"]],
    },
}
"""Rows of charts, each with the scalars whose tags match a regular expression; all runs share it.
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

METRICS = ("val_loss", "val_bpb", "best_val_loss", "best_step")
"""The scalars in that table: the last value of each."""

PACKAGES = ("torch", "lightning", "tensorboard", "tokenizers", "numpy")


class TensorBoard(Callback):
    """Writes the layout, the row in the HPARAMS tab, config and environment, once per session.

    A resume drops those of the session before (`carry_curve`).
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all of it, at step 0."""
        from torch.utils.tensorboard.summary import hparams

        for writer in writers(trainer):
            writer.add_custom_scalars(LAYOUT)
            table, row, _ = hparams(self._hparams(), dict.fromkeys(METRICS, 0))  # type: ignore[no-untyped-call]
            for summary in (_with_default_columns(table), row):
                writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
            writer.add_text(f"{SESSION}config", code_block(self.config.to_yaml()), 0)
            writer.add_text(f"{SESSION}environment", code_block(environment()), 0)
            # Lightning writes this file only if it is absent.
            hparams_file = Path(writer.log_dir) / TensorBoardLogger.NAME_HPARAMS_FILE
            with contextlib.suppress(OSError):  # open in another program, on Windows
                hparams_file.unlink(missing_ok=True)
        for logger in trainer.loggers:
            logger.save()

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


def commit() -> str | None:
    """The commit of this code, "-dirty" if files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # site-packages may be inside the checkout of another project
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
