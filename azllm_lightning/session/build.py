"""Build the objects of one fit from a settled config: module, callbacks, loggers, trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.loggers import Logger

from azllm_lightning.callbacks.console import Console
from azllm_lightning.callbacks.diagnosis import Diagnosis
from azllm_lightning.callbacks.health import Health
from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.samples import Samples
from azllm_lightning.callbacks.summary import Summary
from azllm_lightning.callbacks.tensorboard import TensorBoard
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.report.live import LivePage
from azllm_lightning.runs.folder import Run
from azllm_lightning.runs.model_paths import read_tokenizer
from azllm_lightning.session.loggers import check_wandb, loggers, tracker
from azllm_lightning.session.resolve import Resolved, gpu_index
from azllm_lightning.training import hardware
from azllm_lightning.training.batch import accumulation
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.compiled import compile_network
from azllm_lightning.training.saving import AtomicCheckpointIO, BestCheckpoint, PeriodicCheckpoint
from azllm_lightning.training.stopping import StopRequest
from azllm_lightning.training.teachers import check_tokenizers


@dataclass
class Parts:
    """The objects of one fit."""

    trainer: pl.Trainer
    module: CausalLM
    data: TokenDataModule
    history: History
    health: Health
    diagnosis: Diagnosis
    samples: Samples | None
    summary: Summary
    io: AtomicCheckpointIO
    periodic: PeriodicCheckpoint
    page: LivePage


def check_optional(config: RunConfig) -> None:
    """Look for the packages and the account of the trackers, the classes of the user's own objects,
    and the weights of init_from and teachers.

    Raises ValueError for the first that is missing: before the text is prepared, which may take
    long.
    """
    if config.init_from is not None and config.ckpt_path is None:
        read_tokenizer("init_from", config.init_from, Path(config.logs_dir))
    check_tokenizers(config)
    if config.logger.wandb is not None:
        check_wandb(config.logger.wandb)
    if config.logger.trackio is not None:
        tracker("trackio", config.logger.trackio)
    _find_targets(config.callbacks.custom, "callbacks")
    _find_targets(config.logger.custom, "logger")


def build(
    config: RunConfig, resolved: Resolved, run: Run, stop: StopRequest, first_step: int = -1
) -> Parts:
    """The objects of one fit of a settled `config` after step `first_step`, in the run's folder."""
    trainer_config = config.trainer
    device = resolved.device
    module = CausalLM(
        config.shape,
        config.optimizer,
        config.schedule,
        config.seed,
        trainer_config.log_every_steps,
    )
    module.run_config = config.to_yaml()
    module.teachers = resolved.teachers
    if trainer_config.compile:
        is_student = module.teachers is not None
        compile_network(module.net, device, is_student, resolved.devices)
        module.is_compiled = True
    if resolved.devices > 1:
        stop.interruptible = False  # the other processes would wait for this one
    io = AtomicCheckpointIO()
    best = BestCheckpoint(run.checkpoints, io)
    periodic = PeriodicCheckpoint(
        run.checkpoints,
        trainer_config.checkpoint_every_steps,
        trainer_config.checkpoint_every_minutes,
        stop,
        io,
    )
    history = History(io)
    health = Health(config.callbacks.health)
    diagnosis = Diagnosis(history, config.callbacks)
    samples = None
    if config.callbacks.samples.max_new_tokens:
        samples = Samples(config.callbacks.samples, config.data.name)
    callbacks: list[pl.Callback] = [
        history,  # first: the others read what it recorded
        health,
        TensorBoard(config),
        Throughput(history, hardware.peak_flops(device, trainer_config.precision)),
        *([samples] if samples is not None else []),
        # Shows the latest sample.
        Console(history, samples, bool(trainer_config.compile), stop.deadline),
        diagnosis,
    ]
    callbacks += _instantiate(config.callbacks.custom, "callbacks", pl.Callback)
    page = LivePage(run.folder, history)
    callbacks += [page, best, periodic]  # Lightning runs checkpoints last in any case
    own = _instantiate(config.logger.custom, "logger", Logger)
    logs = loggers(config.logger, run, first_step, resolved.place.is_first) + own
    trainer = _trainer(config, resolved, callbacks, logs, io)
    summary = Summary(run, history, best, trainer_config)
    return Parts(
        trainer=trainer,
        module=module,
        data=resolved.data,
        history=history,
        health=health,
        diagnosis=diagnosis,
        samples=samples,
        summary=summary,
        io=io,
        periodic=periodic,
        page=page,
    )


def _trainer(
    config: RunConfig,
    resolved: Resolved,
    callbacks: list[pl.Callback],
    logs: list[Logger],
    io: AtomicCheckpointIO,
) -> pl.Trainer:
    settings = config.trainer
    accumulate = accumulation(settings, resolved.devices)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        return pl.Trainer(
            accelerator=resolved.device,
            devices=_devices(config, resolved),
            num_nodes=resolved.place.num_nodes,
            strategy=_strategy(config, resolved),
            max_steps=settings.max_steps,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=settings.gradient_clip_val or None,
            # Lightning counts micro-batches here.
            val_check_interval=settings.val_every_steps * accumulate,
            check_val_every_n_epoch=None,
            # The complete validation at step 0; Lightning omits it on a resume.
            num_sanity_val_steps=-1,
            log_every_n_steps=1,  # CausalLM decides what is logged when
            callbacks=callbacks,
            logger=logs,
            plugins=[
                hardware.precision_plugin(settings.precision, resolved.device),
                io,
                # Lightning (2.6) would ask SLURM, which knows nothing of `resolved.place`.
                TorchElasticEnvironment() if resolved.devices > 1 else LightningEnvironment(),
            ],
            deterministic=settings.deterministic or None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _strategy(config: RunConfig, resolved: Resolved) -> Any:
    if resolved.devices == 1 and config.trainer.strategy == "auto":
        return "auto"
    ddp = hardware.ddp_settings()
    if resolved.devices == 1:
        return pl.strategies.DDPStrategy(**ddp)
    ranks = range(resolved.place.local_size)
    return pl.strategies.DDPStrategy(
        parallel_devices=[
            torch.device("cuda", gpu_index(config, rank))
            if resolved.device == "cuda"
            else torch.device("cpu")
            for rank in ranks
        ],
        **ddp,
    )


def _devices(config: RunConfig, resolved: Resolved) -> Any:
    """Lightning's `devices`; those of several processes are the strategy's `parallel_devices`."""
    if resolved.devices > 1:
        return "auto"
    return [gpu_index(config, 0)] if resolved.device == "cuda" else 1


def _find_targets(entries: Mapping[str, Any], group: str) -> None:
    """Raise ValueError for the first of `entries` whose _target_ cannot be imported."""
    from hydra.utils import get_object

    for name, value in entries.items():
        try:
            get_object(value["_target_"])
        except Exception as error:  # importing it runs the user's code
            message = tr(
                "{target} failed: {reason}",
                target=f"{group}.{name}._target_={value['_target_']}",
                reason=error.__cause__ or error,
            )
            raise ValueError(message) from error


def _instantiate(entries: Mapping[str, Any], group: str, kind: type) -> list[Any]:
    """The user's own objects in `group`, each of which must be a `kind`.

    Raises ValueError if one cannot be built or is of another type.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    objects = []
    for name, value in entries.items():
        target = f"{group}.{name}._target_={value['_target_']}"
        try:
            objects.append(instantiate(value))
        except InstantiationException as error:
            message = tr(
                "{target} failed: {reason}", target=target, reason=error.__cause__ or error
            )
            raise ValueError(message) from error
        if not isinstance(objects[-1], kind):
            message = tr(
                "{target} is not a {kind}, as every entry of {group} must be",
                target=target,
                kind=kind.__name__,
                group=group,
            )
            raise ValueError(message)
    return objects
