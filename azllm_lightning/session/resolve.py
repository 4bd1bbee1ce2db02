"""Stage 1: find checkpoint, data and hardware, and give every `auto` its value."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.resume import resumed_config
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.pipeline import prepared_folder, with_prepared
from azllm_lightning.formats.load import stored_config
from azllm_lightning.runs.checkpoint_files import load_resumable
from azllm_lightning.runs.folder import Run, find_checkpoint
from azllm_lightning.session.edited_config import warn_of_edits
from azllm_lightning.session.initial_weights import check_tokens
from azllm_lightning.training import batch, hardware
from azllm_lightning.training.stopping import StopRequest

log = logging.getLogger(__name__)

RUN_FOLDER = "AZLLM_RUN_FOLDER"
"""Environment variable with the run folder, for processes that the first one starts."""


@dataclass(frozen=True)
class Source:
    """The checkpoint that a session resumes from."""

    path: Path
    step: int
    fingerprint: str
    """The fingerprint of the data that it was trained on."""


@dataclass(frozen=True)
class Resolved:
    """What a session trains: a settled config, open data, and the hardware."""

    config: RunConfig
    data: TokenDataModule
    device: str
    """The device type: "cpu" or "cuda"."""
    devices: int
    source: Source | None


def resolve(config: RunConfig, stop: StopRequest) -> Resolved:
    """Find the checkpoint to resume from, prepare and open the data, and settle the config.

    Raises ValueError for what the user can fix, before the run folder is created or changed.
    """
    source = None
    if config.ckpt_path is not None:
        config, source = _resumed(config)
    use_language(config.lang)
    # Report missing hardware before the data is prepared, which may take long.
    device = hardware.resolve_accelerator(config.trainer.accelerator)
    hardware.resolve_precision(config.trainer.precision, device)
    stop.until(config.trainer.deadline)
    # The micro-batch follows from the model's shape, and that from the data: it is set below.
    place = config.data if source is None else _data_of(config.data, source)
    data = TokenDataModule(place, micro_batch_size=1, seed=config.seed)
    data.setup()  # prepares the data too
    if source is not None:
        data.check_same_data(source.fingerprint)
    elif config.init_from is not None:
        check_tokens(config.init_from, data.tokenizer)
    devices = hardware.num_devices(config.trainer.devices, device)
    joined = joined_run()
    if joined is None:
        config = settled(config, data, device, devices)
    else:  # started by the process that settled the config
        config = RunConfig.from_mapping(_read_yaml(joined.config_file))
    assert isinstance(config.trainer.micro_batch_size, int)
    data.micro_batch_size = config.trainer.micro_batch_size
    return Resolved(config, data, device, devices, source)


def _data_of(config: DataConfig, source: Source) -> DataConfig:
    """`config` with the folder of a run's prepared data, unless it has to be prepared again.

    Raises ValueError if there are neither shards nor the text.
    """
    place = with_prepared(config, source.fingerprint)
    try:
        prepared_folder(place)
    except ValueError as error:
        raise ValueError(
            tr(
                "{error}. The prepared text of this run is not in the cache either: give the new "
                "place of the text (data.path=) or of its prepared folder (data.dir=)",
                error=error,
            )
        ) from None
    return place


def settled(config: RunConfig, data: TokenDataModule, device: str, devices: int) -> RunConfig:
    """`config` with every `auto` replaced by what it means for this data on this hardware.

    The stored config then has the values that the run really used, and a resume uses them again.
    """
    tokenizer = data.tokenizer
    shape = config.model.for_data(tokenizer.vocab_size, config.data.block_size, tokenizer.eot_id)
    steps = config.schedule.total_steps or config.trainer.max_steps
    precision = hardware.resolve_precision(config.trainer.precision, device)
    trainer = replace(config.trainer, precision=precision)
    config = replace(
        config,
        model=shape,
        trainer=trainer,
        schedule=replace(config.schedule, total_steps=steps),
    )
    if trainer.micro_batch_size == "auto":
        trainer = replace(
            trainer, micro_batch_size=batch.largest_micro_batch(config, device, devices)
        )
    batch.accumulation(trainer, devices)  # reports a micro-batch that does not divide a step
    sequences = trainer.max_steps * trainer.global_batch_size // devices
    flops = sequences * shape.block_size * shape.flops_per_token()
    compile_net = hardware.resolve_compile(
        trainer.compile, device, flops / hardware.expected_flops(device)
    )
    return replace(config, trainer=replace(trainer, compile=compile_net))


def joined_run() -> Run | None:
    """The run of the process that started this one for another device; None in that process."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return Run(Path(os.environ[RUN_FOLDER]))
    return None


def _resumed(config: RunConfig) -> tuple[RunConfig, Source]:
    """The run that ckpt_path belongs to, with what was typed on top, and its checkpoint."""
    assert config.ckpt_path is not None
    path = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir), resume=True)
    checkpoint = load_resumable(path)
    stored = stored_config(checkpoint)
    if not stored:
        message = tr("{path} has no config: it was not written by azllm_lightning.train", path=path)
        raise ValueError(message)
    warn_of_edits(path, stored)
    resumed = resumed_config(stored, config, str(path))
    use_language(resumed.lang)
    step = int(checkpoint["azllm"]["step"])
    log.info(tr("resuming from {path}, step {step:,}", path=path, step=step))
    return resumed, Source(path, step, checkpoint["TokenDataModule"]["fingerprint"])


def _read_yaml(path: Path) -> dict[str, object]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values
