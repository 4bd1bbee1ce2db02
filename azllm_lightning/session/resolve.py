"""Stage 1: find checkpoint, data and hardware, and give every `auto` its value."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.resume import resumed_config
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.formats.load import stored_config
from azllm_lightning.runs.checkpoint_files import load_resumable, step_files
from azllm_lightning.runs.folder import find_checkpoint
from azllm_lightning.training import batch, hardware
from azllm_lightning.training.processes import Notes, Processes, attempt_number, first, together
from azllm_lightning.training.stopping import StopRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The checkpoint that a session resumes from."""

    path: Path
    step: int
    fingerprint: str
    """The fingerprint of the data that it was trained on."""


@dataclass(frozen=True)
class Located:
    """What a session starts from: its config, not yet settled, and the checkpoint to resume."""

    config: RunConfig
    source: Source | None


@dataclass(frozen=True)
class Resolved:
    """What a session trains: a settled config, open data, and the hardware."""

    config: RunConfig
    data: TokenDataModule
    device: str
    """The device type: "cpu" or "cuda"."""
    place: Processes
    """This process among those of the run, each of which has one device."""
    source: Source | None

    @property
    def devices(self) -> int:
        """Devices of the run, on all machines."""
        return self.place.size


def locate(config: RunConfig) -> Located:
    """Find the checkpoint to resume from, and the config that the run had there.

    Raises ValueError if there is none, or if what was typed does not fit the run.
    """
    if attempt_number():
        config = _continued(config)
    if config.ckpt_path is None:
        return Located(config, None)
    return _resumed(config)


def num_processes(config: RunConfig) -> int:
    """The processes to start on this machine for trainer.devices.

    Raises ValueError if the run needs more machines, because these have to be started from outside.
    """
    settings = config.trainer
    if settings.num_nodes > 1:
        raise ValueError(
            tr(
                "trainer.num_nodes={count}: start the run on each machine with torchrun or srun, "
                "such as: torchrun --nnodes={count} --nproc-per-node=GPUS "
                "--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m azllm_lightning.train ...",
                count=settings.num_nodes,
            )
        )
    return hardware.num_devices(
        settings.devices, hardware.resolve_accelerator(settings.accelerator)
    )


def check_launcher(typed: RunConfig, place: Processes) -> None:
    """Raise ValueError if a launcher started another number of processes than was typed."""
    if place.size == 1:
        return
    for key, count in (("devices", place.local_size), ("num_nodes", place.num_nodes)):
        value = getattr(typed.trainer, key)
        is_typed = any(text.startswith(f"trainer.{key}=") for text in typed.overrides)
        if is_typed and value != "auto" and hardware.num_devices(value, "cpu") != count:
            raise ValueError(
                tr(
                    "trainer.{key}={value}, but the launcher started {size} processes on {nodes} "
                    "machines; omit trainer.{key}",
                    key=key,
                    value=value,
                    size=place.size,
                    nodes=place.num_nodes,
                )
            )


def session_start(now: float) -> float:
    """When the session began, from which its deadline counts: before a launcher's restarts."""
    notes = Notes()
    earlier = notes.read("started")
    if earlier is None:
        notes.write("started", str(now))
    return now if earlier is None else float(earlier)


def resolve(located: Located, stop: StopRequest, place: Processes) -> Resolved:
    """Prepare and open the data, and settle the config.

    With several processes, the first one does, and the others open the same data, after one of each
    machine has prepared it there if the machines share no disk.

    Raises ValueError for what the user can fix, before the run folder is created or changed.
    """
    config = located.config
    source = located.source
    use_language(config.lang)
    if source is not None:
        log.info(tr("resuming from {path}, step {step:,}", path=source.path, step=source.step))
    # Report missing hardware before the data is prepared, which may take long.
    device = together(lambda: _device(config, place))
    stop.until(config.trainer.deadline)
    mine: TokenDataModule | None = None

    def settle() -> tuple[RunConfig, str]:
        nonlocal mine
        mine = _open_data(config)
        if source is not None:
            mine.check_same_data(source.fingerprint)
        return settled(config, mine, device, place.size), mine.fingerprint

    config, fingerprint = first(settle)
    if Notes().read("micro_batch_size") is not None:  # left by processes that ended
        step = 0 if source is None else source.step
        log.warning(paragraph(batch.continuing(config.trainer, place.size, step)))
    for is_my_turn in (place.local_rank == 0, place.local_rank > 0):
        if mine is None and is_my_turn:
            mine = together(lambda: _open_data(config, fingerprint))
        else:
            together(lambda: None)
    assert mine is not None
    assert isinstance(config.trainer.micro_batch_size, int)
    mine.micro_batch_size = config.trainer.micro_batch_size
    return Resolved(config, mine, device, place, source)


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


def _device(config: RunConfig, place: Processes) -> str:
    """The device type; makes the GPU of this process the current one."""
    device = hardware.resolve_accelerator(config.trainer.accelerator)
    if device == "cuda":
        torch.cuda.set_device(gpu_index(config, place.local_rank))
    hardware.resolve_precision(config.trainer.precision, device)
    return device


def gpu_index(config: RunConfig, local_rank: int) -> int:
    """The number of the GPU of a process: that of the list trainer.devices, if it is one.

    Where a launcher shows each process its own GPU only, that is number 0 for all.
    """
    listed = str(config.trainer.devices).split(",")
    if len(listed) > 1 and local_rank < len(listed):
        return int(listed[local_rank])
    return local_rank % torch.cuda.device_count()


def _open_data(config: RunConfig, fingerprint: str | None = None) -> TokenDataModule:
    """The data, prepared here if necessary; ValueError if it has another `fingerprint`."""
    # The micro-batch follows from the model's shape, and that from the data: it is set later.
    data = TokenDataModule(config.data, micro_batch_size=1, seed=config.seed)
    data.setup()
    if fingerprint not in (None, data.fingerprint):
        raise ValueError(
            tr(
                "{folder} on {host} has different data from that of the first machine; delete it "
                "there, or choose another data.dir",
                folder=data.folder,
                host=socket.gethostname(),
            )
        )
    return data


def _continued(config: RunConfig) -> RunConfig:
    """`config` after a launcher has started all processes again: it resumes what they began."""
    notes = Notes()
    size = notes.read("micro_batch_size")
    if size is not None:
        trainer = replace(config.trainer, micro_batch_size=int(size))
        overrides = (*config.overrides, f"trainer.micro_batch_size={size}")
        config = replace(config, trainer=trainer, overrides=overrides)
    folder = notes.read("run")
    if folder is not None and step_files(Path(folder) / "checkpoints"):
        config = replace(config, ckpt_path=folder, init_from=None)
    return config


def _resumed(config: RunConfig) -> Located:
    """The run that ckpt_path belongs to, with what was typed on top, and its checkpoint."""
    assert config.ckpt_path is not None
    path = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir), resume=True)
    checkpoint = load_resumable(path)
    stored = stored_config(checkpoint)
    if not stored:
        message = tr("{path} has no config: it was not written by azllm_lightning.train", path=path)
        raise ValueError(message)
    resumed = resumed_config(stored, config, str(path))
    step = int(checkpoint["azllm"]["step"])
    fingerprint = checkpoint["TokenDataModule"]["fingerprint"]
    return Located(resumed, Source(path, step, fingerprint))
