"""Stage 1: find checkpoint, data and hardware, and give every `auto` its value."""

from __future__ import annotations

import copy
import logging
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch

from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli.messages import and_then, tr, use_language
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.effects import DATA, TRAIN, ignored_settings, typed_keys
from azllm_lightning.config.resume import kept_settings, left_out, resumed_config, resumed_language
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.trainer import AUTO, AutoChoices, listed_gpus
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.hints import hints, look
from azllm_lightning.data.pipeline import is_prepared, prepared_folder, with_prepared
from azllm_lightning.data.remarks import warn_of_text, warn_of_text_of_run
from azllm_lightning.data.typed import changed, check_typed
from azllm_lightning.formats.load import stored_config
from azllm_lightning.runs.checkpoint_files import load_resumable, step_files
from azllm_lightning.runs.folder import check_not_in_use, find_checkpoint
from azllm_lightning.runs.paths import is_version
from azllm_lightning.session.deadline import set_deadline, without_old_deadline
from azllm_lightning.session.edited_config import warn_of_edits
from azllm_lightning.session.initial_weights import check_tokens
from azllm_lightning.session.unprepared import (
    check_text_of_run,
    check_tokens_of_models,
    way_out,
)
from azllm_lightning.training import batch, compiled, hardware
from azllm_lightning.training.branches import check_branches
from azllm_lightning.training.processes import Notes, Processes, attempt_number, first, together
from azllm_lightning.training.stopping import StopRequest
from azllm_lightning.training.teachers import (
    Teachers,
    check_same_teachers,
    digests_of,
    teachers_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The checkpoint that a session resumes from."""

    path: Path
    step: int
    fingerprint: str
    """The fingerprint of the data that it was trained on."""
    precision: str
    """The precision that it was trained in."""
    teachers: list[str] = field(default_factory=list)
    """The digests of its teachers."""
    threads: int | None = None
    """PyTorch's threads, if it was trained on a CPU."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its data."""
    validation: str | None = None
    """A digest of the text that it was validated on."""


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
    teachers: Teachers | None = None

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
    device = hardware.resolve_accelerator(settings.accelerator, settings.devices)
    return hardware.num_devices(settings.devices, device)


def check_launcher(typed: RunConfig, place: Processes) -> None:
    """Raise ValueError if a launcher started another number of processes than was typed."""
    if place.size == 1:
        return
    for key, count in (("devices", place.local_size), ("num_nodes", place.num_nodes)):
        value = str(getattr(typed.trainer, key))
        is_typed = any(text.startswith(f"trainer.{key}=") for text in typed.overrides)
        wanted = len(listed_gpus(value)) if "," in value else value
        if is_typed and wanted not in ("auto", count, str(count)):
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
    if source is not None:  # what is typed of its text is up to `check_text_of_run`
        log.info(tr("resuming from {path}, step {step:,}", path=source.path, step=source.step))
    else:
        check_typed(config.data, config.overrides)
    # What cannot run here is reported before the data is prepared, which may take long.
    device = together(lambda: _device(config, place))
    together(lambda: batch.check_devices(config, place.size))
    together(lambda: set_deadline(stop, config.trainer.deadline))
    mine: TokenDataModule | None = None
    teachers: Teachers | None = None

    def settle() -> tuple[RunConfig, str, list[str]]:
        nonlocal mine, teachers
        check_tokens_of_models(config)
        was_prepared = source is None and is_prepared(prepared_folder(config.data))
        mine = _open_data(config, source)
        if source is not None:
            _check_same_data(mine, source)
        _say_of_text(mine, source, was_prepared)
        if source is None and config.init_from is not None:
            check_tokens(config.init_from, mine.tokenizer)
        teachers = teachers_of(config, mine.tokenizer)
        if source is not None:
            check_same_teachers(source.teachers, teachers, config.teacher_paths)
        complete = settled(config, mine, device, place.size, teachers)
        batch.check_validation(len(mine.chosen_val_windows()), place.size)
        if source is not None:
            _report_precision(source, complete.trainer.precision)
            _report_threads(source, device)
        return complete, mine.fingerprint, digests_of(teachers)

    config, fingerprint, digests = first(settle)
    if Notes().read("micro_batch_size") is not None:  # left by processes that ended
        step = 0 if source is None else source.step
        message = batch.continuing(config.trainer, place.size, step, config.shape.dropout)
        log.warning(paragraph(message))
    for is_my_turn in (place.local_rank == 0, place.local_rank > 0):
        if mine is None and is_my_turn:
            mine = together(lambda: _open_data(config, source, fingerprint))
        else:
            together(lambda: None)
    assert mine is not None
    assert isinstance(config.trainer.micro_batch_size, int)
    mine.micro_batch_size = config.trainer.micro_batch_size
    tokenizer = mine.tokenizer
    teachers = together(lambda: teachers or teachers_of(config, tokenizer, digests))
    return Resolved(config, mine, device, place, source, teachers)


def _data_of(config: DataConfig, source: Source) -> DataConfig:
    """`config` with the folder of a run's prepared data, unless it has to be prepared again.

    Raises ValueError if there are neither shards nor the text.
    """
    place = with_prepared(config, source.fingerprint, source.validation)
    try:
        prepared_folder(place)
    except ValueError as error:
        raise ValueError(
            and_then(
                str(error),
                tr(
                    "The prepared text of this run is not in the cache either: give the new place "
                    "of the text (data.path=) or of its prepared folder (data.dir=)"
                ),
            )
        ) from None
    check_text_of_run(place, source.data, source.fingerprint)
    return place


def _check_same_data(data: TokenDataModule, source: Source) -> None:
    """Raise ValueError, with the way out, unless `data` is what `source` was trained on."""
    try:
        data.check_same_data(source.fingerprint, source.validation)
    except ValueError as error:
        keys = changed(data.config, source.data)
        text = and_then(str(error), way_out(keys)) if keys else str(error)
        raise ValueError(text) from None


def _say_of_text(data: TokenDataModule, source: Source | None, was_prepared: bool) -> None:
    """Say what is missing in the text of a run; of a new one, once, also what it leaves unused."""
    if source is not None:
        warn_of_text_of_run(data.config, data.folder, source.path)
        return
    warn_of_text(data.config, data.folder, was_prepared)
    if not was_prepared:
        for hint in hints(look(data.config)):
            log.info(hint)


def settled(
    config: RunConfig,
    data: TokenDataModule,
    device: str,
    devices: int,
    teachers: Teachers | None = None,
) -> RunConfig:
    """`config` with every `auto` replaced by what it means for this data on this hardware.

    The stored config then has the values that the run really used, and a resume on such a device
    uses them again; `RunConfig.auto` has those that it may choose again elsewhere.
    """
    tokenizer = data.tokenizer
    shape = config.model.for_data(tokenizer.vocab_size, config.data.block_size, tokenizer.eot_id)
    steps = config.schedule.total_steps or config.trainer.max_steps
    chosen = config.auto.settings
    trainer = batch.trainer_for(config, devices)
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
        micro = batch.largest_micro_batch(config, device, devices, teachers, tokenizer)
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
    if compile_net and trainer.compile == "auto" and device == "cpu":
        compile_net = compiled.pays(shape, micro, trainer.precision)
    return replace(config, trainer=replace(trainer, compile=compile_net))


def _device(config: RunConfig, place: Processes) -> str:
    """The device type; makes the GPU of this process the current one."""
    settings = config.trainer
    used = settings.devices if listed_gpus(settings.devices) else place.local_size
    device = hardware.resolve_accelerator(settings.accelerator, used)
    hardware.check_precision(settings.precision, device)
    if device == "cuda":
        torch.cuda.set_device(gpu_index(config, place.local_rank))
    if settings.deterministic:
        hardware.be_deterministic(device)
    return device


def gpu_index(config: RunConfig, local_rank: int) -> int:
    """The number of the GPU of a process: that of the list trainer.devices, if it is one.

    Where a launcher shows each process its own GPU only, that is number 0 for all.
    """
    listed = listed_gpus(config.trainer.devices)
    if local_rank < len(listed):
        return listed[local_rank]
    return local_rank % torch.cuda.device_count()


def _open_data(
    config: RunConfig, source: Source | None, fingerprint: str | None = None
) -> TokenDataModule:
    """The data, prepared here if necessary; ValueError if it has another `fingerprint`."""
    # The micro-batch follows from the model's shape, and that from the data: it is set later.
    place = config.data if source is None else _data_of(config.data, source)
    data = TokenDataModule(place, micro_batch_size=1, seed=config.seed)
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
    path = find_checkpoint(config.ckpt_path, config.given_name, Path(config.logs_dir), resume=True)
    _check_name(config, path)
    checkpoint = load_resumable(path)
    stored = stored_config(checkpoint)
    if not stored:
        message = tr("{path} has no config: it was not written by azllm_lightning.train", path=path)
        raise ValueError(message)
    use_language(resumed_language(stored, config))  # before anything of it is refused
    step = int(checkpoint["azllm"]["step"])
    check_not_in_use(path, step)
    resumed = without_old_deadline(resumed_here(stored, config, str(path)), config)
    warn_of_edits(path, stored, resumed.to_mapping(), typed_keys(config.overrides))
    if missing := left_out(stored, resumed):
        log.warning(
            tr(
                "{entries}: not part of the run from here on, since no checkpoint brings code to "
                "run; to have it, type it again",
                entries=", ".join(missing),
            )
        )
    ignored = ignored_settings([*TRAIN, *DATA], resumed, config.overrides)
    for message in [*ignored, *kept_settings(stored, config, resumed)]:
        log.warning(message)
    total = resumed.schedule.total_steps or resumed.trainer.max_steps
    schedule = replace(resumed.schedule, total_steps=total)
    check_branches(schedule, step, checkpoint.get("branches", {}).get("plan"))
    fingerprint = checkpoint["TokenDataModule"]["fingerprint"]
    source = Source(
        path,
        step,
        fingerprint,
        stored["trainer"]["precision"],
        checkpoint["azllm"].get("teachers", []),
        checkpoint["azllm"].get("threads"),
        stored["data"],
        checkpoint["azllm"].get("validation"),
    )
    return Located(resumed, source)


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
    trainer = resumed.trainer
    device = hardware.resolve_accelerator(trainer.accelerator, trainer.devices)
    if hardware.device_name(device) != resumed.auto.device:
        again: dict[str, Any] = dict.fromkeys(kept, "auto")
        trainer = replace(trainer, **again)
        kept = []
    return replace(resumed, trainer=trainer, auto=replace(resumed.auto, settings=kept))


def _report_precision(source: Source, precision: str) -> None:
    if source.precision == precision:
        return
    message = tr(
        "trainer.precision was {before} until step {step:,} and is {precision} from there on: the "
        "losses will differ slightly from those of an uninterrupted run",
        before=source.precision,
        step=source.step,
        precision=precision,
    )
    log.warning(message)


def _report_threads(source: Source, device: str) -> None:
    threads = torch.get_num_threads()
    if device != "cpu" or source.threads in (None, threads):
        return
    message = tr(
        "until step {step:,} PyTorch had {before} threads on the CPU, and has {threads} from there "
        "on: the losses will differ slightly from those of an uninterrupted run "
        "(OMP_NUM_THREADS={before} keeps them equal)",
        step=source.step,
        before=source.threads,
        threads=threads,
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
