"""Stage 1: find checkpoint, data and hardware, and give every `auto` its value."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import yaml

from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.resume import resumed_config
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import AUTO, AutoChoices
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.pipeline import prepared_folder, with_prepared
from azllm_lightning.data.typed import check_typed
from azllm_lightning.formats.load import stored_config
from azllm_lightning.runs.checkpoint_files import load_resumable
from azllm_lightning.runs.folder import Run, find_checkpoint
from azllm_lightning.runs.paths import is_version
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
    precision: str
    """The precision that it was trained in."""


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
    devices = hardware.num_devices(config.trainer.devices, device)
    hardware.check_precision(config.trainer.precision, device)
    if config.trainer.deterministic:
        hardware.be_deterministic(device)
    stop.until(config.trainer.deadline)
    # The micro-batch follows from the model's shape, and that from the data: it is set below.
    check_typed(config.data, config.overrides)
    place = config.data if source is None else _data_of(config.data, source)
    data = TokenDataModule(place, micro_batch_size=1, seed=config.seed)
    data.setup()  # prepares the data too
    if source is not None:
        data.check_same_data(source.fingerprint)
    elif config.init_from is not None:
        check_tokens(config.init_from, data.tokenizer)
    joined = joined_run()
    if joined is None:
        config = settled(config, data, device, devices)
        if source is not None and source.precision != config.trainer.precision:
            _report_precision(source, config.trainer.precision)
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

    The stored config then has the values that the run really used, and a resume on such a device
    uses them again; `RunConfig.auto` has those that it may choose again elsewhere.
    """
    tokenizer = data.tokenizer
    shape = config.model.for_data(tokenizer.vocab_size, config.data.block_size, tokenizer.eot_id)
    steps = config.schedule.total_steps or config.trainer.max_steps
    chosen = config.auto.settings
    trainer = config.trainer
    if "micro_batch_size" in chosen and not batch.divides_a_step(trainer, devices):
        trainer = replace(trainer, micro_batch_size="auto")  # other devices
    precision = hardware.resolve_precision(trainer.precision, device)
    config = replace(
        config,
        model=shape,
        trainer=replace(trainer, precision=precision),
        schedule=replace(config.schedule, total_steps=steps),
        auto=AutoChoices(
            device=hardware.device_name(device),
            settings=[name for name in AUTO if name in chosen or getattr(trainer, name) == "auto"],
        ),
    )
    micro = trainer.micro_batch_size
    if micro == "auto":
        micro = batch.largest_micro_batch(config, device, devices)
    trainer = replace(config.trainer, micro_batch_size=micro)
    batch.accumulation(trainer, devices)  # reports a micro-batch that does not divide a step
    sequences = trainer.max_steps * trainer.global_batch_size // devices
    flops = sequences * shape.block_size * shape.flops_per_token()
    seconds = flops / hardware.expected_flops(device)
    compile_net = trainer.compile
    if compile_net is True and "compile" in chosen:
        compile_net = "auto"  # nobody asked for it: what it needs may be missing here
        seconds = math.inf
    compile_net = hardware.resolve_compile(compile_net, device, seconds)
    return replace(config, trainer=replace(trainer, compile=compile_net))


def joined_run() -> Run | None:
    """The run of the process that started this one for another device; None in that process."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return Run(Path(os.environ[RUN_FOLDER]))
    return None


def _resumed(config: RunConfig) -> tuple[RunConfig, Source]:
    """The run that ckpt_path belongs to, with what was typed on top, and its checkpoint."""
    assert config.ckpt_path is not None
    path = find_checkpoint(config.ckpt_path, config.given_name, Path(config.logs_dir), resume=True)
    _check_name(config, path)
    checkpoint = load_resumable(path)
    stored = stored_config(checkpoint)
    if not stored:
        message = tr("{path} has no config: it was not written by azllm_lightning.train", path=path)
        raise ValueError(message)
    warn_of_edits(path, stored)
    resumed = resumed_here(stored, config, str(path))
    use_language(resumed.lang)
    step = int(checkpoint["azllm"]["step"])
    log.info(tr("resuming from {path}, step {step:,}", path=path, step=step))
    fingerprint = checkpoint["TokenDataModule"]["fingerprint"]
    return resumed, Source(path, step, fingerprint, stored["trainer"]["precision"])


def resumed_here(stored: Mapping[str, Any], typed: RunConfig, checkpoint: str) -> RunConfig:
    """`resumed_config` on this machine.

    A value that `auto` chose is kept on the device that it was chosen for, so that a resume is
    exact, and is `auto` again on any other. A value typed now is nobody's choice but the user's.
    """
    resumed = resumed_config(stored, typed, checkpoint)
    chosen = resumed.auto.settings
    if not chosen:
        return resumed
    undecided = {"trainer": {**stored["trainer"], **dict.fromkeys(chosen, "auto")}}
    untyped = resumed_config({**copy.deepcopy(dict(stored)), **undecided}, typed, checkpoint)
    kept = [
        name
        for name in chosen
        if getattr(untyped.trainer, name) == "auto" and getattr(resumed.trainer, name) != "auto"
    ]
    device = hardware.resolve_accelerator(resumed.trainer.accelerator)
    trainer = resumed.trainer
    if hardware.device_name(device) != resumed.auto.device:
        again: dict[str, Any] = dict.fromkeys(kept, "auto")
        trainer = replace(trainer, **again)
        kept = []
    return replace(resumed, trainer=trainer, auto=replace(resumed.auto, settings=kept))


def _report_precision(source: Source, precision: str) -> None:
    message = tr(
        "trainer.precision was {before} until step {step:,} and is {precision} from there on: the "
        "losses will differ slightly from those of an uninterrupted run",
        before=source.precision,
        step=source.step,
        precision=precision,
    )
    log.warning(message)


def _check_name(config: RunConfig, path: Path) -> None:
    """Raise ValueError if run_name was typed and the checkpoint belongs to a run of another name.

    A resume continues in the run of the checkpoint.
    """
    folder = path.resolve().parent.parent
    if "run_name" not in typed_keys(config.overrides) or not is_version(folder):
        return
    name = folder.parent.name
    if normalize("NFC", name) != config.run_name:
        raise ValueError(
            tr(
                "run_name={run_name}: ckpt_path={ckpt_path} belongs to the run {name} and "
                "continues it; omit run_name, or start a new run from its weights with "
                "init_from={ckpt_path}",
                run_name=config.run_name,
                ckpt_path=config.ckpt_path,
                name=name,
            )
        )


def _read_yaml(path: Path) -> dict[str, object]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values
