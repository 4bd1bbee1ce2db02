"""From a composed config to the objects of a run: validated settings, then datamodule, module, callbacks, trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from azllm_lightning.callbacks.console import Console
from azllm_lightning.callbacks.diagnosis import Diagnosis
from azllm_lightning.callbacks.health import Health
from azllm_lightning.callbacks.history import History
from azllm_lightning.callbacks.samples import Samples
from azllm_lightning.callbacks.summary import Summary
from azllm_lightning.callbacks.tensorboard import TensorBoard
from azllm_lightning.callbacks.throughput import Throughput
from azllm_lightning.cli.messages import LANGUAGES
from azllm_lightning.config.callbacks import CallbacksConfig, HealthConfig, SamplesConfig
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig, optimizer_config
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.config.strict import from_mapping, one_of, unknown_key
from azllm_lightning.config.trainer import TrainerConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.folder import Run, check_logs, check_name
from azllm_lightning.training import hardware
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.saving import AtomicCheckpointIO, BestCheckpoint, PeriodicCheckpoint
from azllm_lightning.training.stopping import StopRequest, parse_deadline

Config = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """A config that passed every check that needs no data and no hardware."""

    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    callbacks: CallbacksConfig
    health: HealthConfig
    samples: SamplesConfig


def check(config: Config) -> Settings:
    """Validate every key of a train config; ValueError with all complaints at once."""
    known = "run_name logs_dir seed ckpt_path init_from lang data model optimizer schedule trainer callbacks logger".split()
    problems = [unknown_key(key, known) for key in config if key not in known]
    incomplete = [f"{key} is missing" for key in known if key not in config]
    incomplete += [
        f"{key}={config[key]!r} is not a group of settings"
        for key in "data model optimizer schedule trainer callbacks logger".split()
        if key in config and not isinstance(config[key], dict)
    ]
    if incomplete:  # the rest cannot be looked at
        raise ValueError("\n".join(problems + incomplete))

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ValueError as error:
            problems.append(str(error))
            return None

    own = {key: value for key, value in config["callbacks"].items() if not _is_target(value)}
    callbacks = attempt(lambda: from_mapping(CallbacksConfig, own, "callbacks"))
    # What auto stands for is settled later; any number will do until then.
    data = (
        {**config["data"], "batch_size": 1}
        if config["data"].get("batch_size") == "auto"
        else config["data"]
    )
    built = [
        attempt(lambda: from_mapping(DataConfig, data, "data")),
        attempt(lambda: optimizer_config(config["optimizer"])),
        attempt(lambda: from_mapping(ScheduleConfig, config["schedule"], "schedule")),
        attempt(lambda: from_mapping(TrainerConfig, config["trainer"], "trainer")),
        callbacks,
        callbacks
        and attempt(lambda: from_mapping(HealthConfig, callbacks.health, "callbacks.health")),
        callbacks
        and attempt(lambda: from_mapping(SamplesConfig, callbacks.samples, "callbacks.samples")),
    ]
    attempt(
        lambda: model_config(config, 1, 1, 0)
    )  # its own settings; what follows from the data comes later
    if built[3] is not None and built[3].deadline is not None:
        attempt(lambda: parse_deadline(built[3].deadline, 0.0))
    if (
        not isinstance(config["seed"], int)
        or isinstance(config["seed"], bool)
        or not 0 <= config["seed"] < 2**32
    ):
        problems.append(f"seed={config['seed']!r} is not a whole number from 0 to 4294967295")
    attempt(lambda: check_name(str(config["run_name"])))
    attempt(lambda: check_logs(str(config["logs_dir"])))
    attempt(lambda: one_of("lang", config["lang"], LANGUAGES))
    loggers = {key for key, value in config["logger"].items() if not _is_target(value)}
    problems += [
        unknown_key(f"logger.{key}", ["logger.tensorboard"]) for key in loggers - {"tensorboard"}
    ]
    if problems:
        raise ValueError("\n".join(problems))
    return Settings(*built)


def model_config(config: Config, vocab_size: int, block_size: int, eos_id: int) -> GPTConfig:
    """The model group, with what follows from the data."""
    values = {
        **config["model"],
        "vocab_size": vocab_size,
        "block_size": block_size,
        "eos_id": eos_id,
    }
    return from_mapping(GPTConfig, values, "model")


def settle(
    config: Config, settings: Settings, model: GPTConfig, device: str, precision: str
) -> Config:
    """Replace every `auto` by what it means on this hardware, once; `device` and `precision` are settled already.

    The stored config then says what the run really is, and a resume on the same machine does the same arithmetic.
    """
    trainer = settings.trainer
    tokens = (
        trainer.max_steps
        * trainer.accumulate_grad_batches
        * settings.data.batch_size
        * model.block_size
    )
    eager_seconds = tokens * model.flops_per_token() / hardware.expected_flops(device)
    compile_net = hardware.resolve_compile(trainer.compile, device, eager_seconds)
    return {
        **config,
        "trainer": {**config["trainer"], "precision": precision, "compile": compile_net},
        "schedule": {
            **config["schedule"],
            "total_steps": settings.schedule.total_steps or trainer.max_steps,
        },
    }


@dataclass
class Parts:
    """The objects of one fit."""

    trainer: pl.Trainer
    module: CausalLM
    datamodule: TokenDataModule
    history: History
    health: Health
    diagnosis: Diagnosis
    summary: Summary
    io: AtomicCheckpointIO
    periodic: PeriodicCheckpoint


def build(
    config: Config,
    config_text: str,
    settings: Settings,
    model: GPTConfig,
    datamodule: TokenDataModule,
    run: Run,
    stop: StopRequest,
    device: str,
) -> Parts:
    """Module, callbacks, loggers and trainer of a settled config, in the run's folder."""
    module = CausalLM(
        model,
        settings.optimizer,
        settings.schedule,
        config["seed"],
        settings.trainer.log_every_steps,
    )
    module.run_config = config_text
    if settings.trainer.compile:
        module.net.compile()
    io = AtomicCheckpointIO()
    best = BestCheckpoint(run.checkpoints, io)
    history = History(io)
    summary = Summary(run, history, best, settings.trainer)
    health = Health(settings.health)
    patience = (
        settings.callbacks.early_stopping_patience if settings.callbacks.early_stopping else None
    )
    diagnosis = Diagnosis(history, settings.health, patience)
    callbacks: list[pl.Callback] = [
        history,  # first: the others read it
        health,
        TensorBoard(config, config_text),
        Throughput(history, hardware.peak_flops(device, settings.trainer.precision)),
        Console(history),
        diagnosis,
    ]
    if settings.samples.max_new_tokens:
        callbacks.append(Samples(settings.samples, settings.data.name))
    callbacks += _instantiate(config["callbacks"], "callbacks", pl.Callback)
    every = settings.trainer.checkpoint_every_steps
    periodic = PeriodicCheckpoint(
        run.checkpoints, every, settings.trainer.checkpoint_every_minutes, stop, io
    )
    callbacks += [best, periodic]
    trainer = _trainer(settings.trainer, device, callbacks, _loggers(config["logger"], run), io)
    return Parts(trainer, module, datamodule, history, health, diagnosis, summary, io, periodic)


def _trainer(
    config: TrainerConfig,
    device: str,
    callbacks: list[pl.Callback],
    loggers: list[Logger],
    io: AtomicCheckpointIO,
) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        return pl.Trainer(
            accelerator=device,
            devices=config.devices,
            strategy=_strategy(config, device),
            max_steps=config.max_steps,
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val or None,
            # Lightning counts micro-batches here.
            val_check_interval=config.val_every_steps * config.accumulate_grad_batches,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=-1,  # the whole validation at step 0; skipped by Lightning on a resume
            log_every_n_steps=1,  # CausalLM decides what is logged when
            callbacks=callbacks,
            logger=loggers,
            plugins=[hardware.precision_plugin(config.precision, device), io],
            use_distributed_sampler=False,  # the sampler shares out windows itself
            deterministic=config.deterministic or None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _strategy(config: TrainerConfig, device: str) -> Any:
    if config.strategy == "auto" and hardware.num_devices(config.devices, device) == 1:
        return "auto"
    # Rotary tables are the same everywhere; syncing them would hang a validation with unequal batches.
    if config.strategy == "ddp_notebook":
        return pl.strategies.DDPStrategy(start_method="fork", broadcast_buffers=False)
    return pl.strategies.DDPStrategy(broadcast_buffers=False)


def _loggers(config: Config, run: Run) -> list[Logger]:
    loggers: list[Logger] = []
    if config.get("tensorboard"):
        logger = TensorBoardLogger(
            run.logs, name=run.name, version=run.folder.name, default_hp_metric=False
        )
        loggers.append(logger)
    return loggers + _instantiate(config, "logger", Logger)


def _instantiate(config: Config, group: str, kind: type) -> list[Any]:
    """The user's own objects: the entries of `group` with a _target_, each of which has to make a `kind`."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    made = []
    for name, value in config.items():
        if not _is_target(value):
            continue
        try:
            made.append(instantiate(value))
        except InstantiationException as error:
            raise ValueError(
                f"{group}.{name}._target_={value['_target_']} failed: {error.__cause__ or error}"
            ) from error
        if not isinstance(made[-1], kind):
            raise ValueError(
                f"{group}.{name}._target_={value['_target_']} makes no {kind.__name__}, which {group} consists of"
            )
    return made


def _is_target(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
