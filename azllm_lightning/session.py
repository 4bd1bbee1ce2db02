"""One session of a run: from a config to the end of training, to a stop, or back to a checkpoint and on again."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from azllm_lightning import cli
from azllm_lightning.build import Parts, Settings, build, check, model_config, settle
from azllm_lightning.callbacks.console import TqdmHandler
from azllm_lightning.callbacks.health import RollBack
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.model.config import GPTConfig
from azllm_lightning.training import hardware
from azllm_lightning.training.checkpoint import step_files, valid_steps
from azllm_lightning.training.curve import carry_curve
from azllm_lightning.training.resume import adapted_accumulation, check_same_run, resumed_config
from azllm_lightning.training.run import Run, claim, find_checkpoint, load_resumable, open_for_resume, write_text
from azllm_lightning.training.stopping import Stopped, StopRequest

log = logging.getLogger("azllm_lightning")

RUN_FOLDER = "AZLLM_RUN_FOLDER"
"""The environment variable in which the first process tells those it starts where the run lies."""


def run_session(config: dict[str, Any], overrides: list[str]) -> Path:
    """Train or resume the run of `config`; see `azllm_lightning.train.train`."""
    _listen_to_logs()
    again = cli.command("train", overrides)
    try:
        with StopRequest() as stop:
            source, told = None, list(overrides)
            if config.get("ckpt_path") is not None:
                config, source = _lay_over_stored(config, overrides)
                told = list(dict.fromkeys([*source.overrides, *overrides]))
            settings = check(config)
            device = hardware.resolve_accelerator(settings.trainer.accelerator)  # told before the data take their time
            precision = hardware.resolve_precision(settings.trainer.precision, device)
            stop.until(settings.trainer.deadline)
            datamodule = TokenDataModule(settings.data, config["seed"])
            datamodule.setup()  # prepares the data too
            if source is not None:  # told before a folder is touched
                datamodule.check_same_data(source.fingerprint)
            tokenizer = datamodule.tokenizer
            model = model_config(config, tokenizer.vocab_size, settings.data.block_size, tokenizer.eot_id)
            config = settle(config, settings, model, device, precision)
            settings = check(config)
            run = _open_run(config, source)
            text = yaml.safe_dump({**config, "overrides": told}, allow_unicode=True, sort_keys=False)
            _write_down(run, text, datamodule)
            with _log_file(run):
                try:
                    _introduce(run, model, datamodule, settings, device)

                    def make() -> Parts:
                        return build(config, text, settings, model, datamodule, run, stop, device)

                    _fit(make, run, source and source.path, config["init_from"], settings.health.max_rollbacks)
                    return run.folder
                finally:
                    if step_files(run.checkpoints):
                        again = cli.command("train", [*run.address, "ckpt_path=last"])
                    run.release()
    except Stopped:
        raise cli.Resumable(again) from None


class Source(NamedTuple):
    """The checkpoint that a session resumes from: its step, its data's fingerprint, what its run was started with."""

    path: Path
    step: int
    fingerprint: str
    overrides: list[str]


def _lay_over_stored(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], Source]:
    """The config of the run that ckpt_path belongs to, with `overrides` on top, and its checkpoint."""
    path = find_checkpoint(config["ckpt_path"], config["run_name"], Path(config["logs_dir"]), resume=True)
    checkpoint = load_resumable(path)
    stored = yaml.safe_load(checkpoint["azllm"]["config"])
    if not stored:
        raise ValueError(f"{path} carries no config, for it was not written by azllm_lightning.train")
    merged = resumed_config(stored, config, overrides, cli.compose)
    check_same_run(stored, merged, str(path))
    settings = check(merged)
    device = hardware.resolve_accelerator(settings.trainer.accelerator)
    typed = any(text.lstrip("+").startswith("trainer.accumulate_grad_batches=") for text in overrides)
    merged["trainer"]["accumulate_grad_batches"] = adapted_accumulation(
        checkpoint["TokenDataModule"]["effective_batch"],
        settings.data.batch_size,
        hardware.num_devices(settings.trainer.devices, device),
        settings.trainer.accumulate_grad_batches if typed else None,
    )
    log.info(f"resuming from {path}, step {checkpoint['azllm']['step']}")
    fingerprint = checkpoint["TokenDataModule"]["fingerprint"]
    return merged, Source(path, checkpoint["azllm"]["step"], fingerprint, stored.get("overrides", []))


def _open_run(config: dict[str, Any], source: Source | None) -> Run:
    """Claim the run's folder; the other processes of a run join the first one's."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return Run(Path(os.environ[RUN_FOLDER]))
    logs = Path(config["logs_dir"])
    if source is None:
        run = claim(config["run_name"], logs)
    else:
        run = open_for_resume(source.path, source.step, config["run_name"], logs)
    config["run_name"] = run.name
    os.environ[RUN_FOLDER] = str(run.folder.absolute())
    return run


def _write_down(run: Run, config: str, datamodule: TokenDataModule) -> None:
    """Put beside the run what it is: its config and its tokenizer."""
    (run.folder / ".hydra").mkdir(exist_ok=True)
    write_text(run.folder / ".hydra" / "config.yaml", config)
    datamodule.tokenizer.save(run.folder / "tokenizer.json")


def _fit(
    make: Callable[[], Parts], run: Run, checkpoint: Path | None, init_from: str | None, max_rollbacks: int
) -> None:
    """Fit to the end, going back to an earlier checkpoint where the numbers broke."""
    rollbacks = 0
    while True:
        parts = make()
        parts.health.rollbacks = rollbacks
        parts.summary.starts_from = None if checkpoint is None else str(checkpoint)
        if checkpoint is None and init_from is not None:
            parts.module.start_from(init_from)
        try:
            with _quiet():
                parts.trainer.fit(parts.module, datamodule=parts.datamodule, ckpt_path=checkpoint, weights_only=True)
        except Stopped as stopped:
            log.info(f"stopped by {stopped} at step {parts.trainer.global_step}")
            if step_files(run.checkpoints):
                parts.summary.write(parts.trainer, parts.module, "stopped")
            raise
        except RollBack as broken:
            rollbacks = parts.health.rollbacks + 1
            if rollbacks > max_rollbacks or parts.trainer.world_size > 1:
                tried = f"and so after {rollbacks - 1} roll backs too"
                if parts.trainer.world_size > 1:
                    tried = "and a run on several devices cannot roll back"
                raise ValueError(
                    f"{broken}, {tried}: the data or the settings are at fault. Look at the last validations, lower "
                    "optimizer.lr, or try trainer.precision=32-true; "
                    f"the last good state is in {run.checkpoints}"
                ) from None
            step = -1 if checkpoint is None else load_resumable(checkpoint)["azllm"]["step"]
            whole: list[tuple[int, Path | None]] = list(valid_steps(run.checkpoints))
            before = [found for found in whole if found[0] < broken.first_step]
            # Where all are younger, the oldest will do: the steps left out have changed no weight.
            step, checkpoint = (before or whole[-1:] or [(step, checkpoint)])[0]
            carry_curve(run.folder, run.folder, step)
            parts.datamodule.skip_steps(broken.first_step, broken.last_step)
            log.warning(f"{broken}: going back to {checkpoint or 'the start'} and on without their windows")
            continue
        break
    values = parts.summary.write(parts.trainer, parts.module, "done")
    if parts.io.failed:
        raise OSError(f"training is done, but its last checkpoint was not saved: {parts.io.failed}")
    _conclude(run, values)


def _introduce(run: Run, model: GPTConfig, data: TokenDataModule, settings: Settings, device: str) -> None:
    trainer = settings.trainer
    windows = settings.data.batch_size * trainer.accumulate_grad_batches * hardware.num_devices(trainer.devices, device)
    tokens = trainer.max_steps * windows * model.block_size
    available = data.train_windows.num_windows * model.block_size
    compiled = "compiled (the first step takes a while)" if trainer.compile else "not compiled"
    shape = f"{model.n_layer} x {model.n_embd}, {model.n_head} heads"
    log.info(
        f"run       {run.folder}\n"
        f"model     {shape}: {model.num_params() / 1e6:.1f} M parameters, vocabulary {model.vocab_size:,}, "
        f"context {model.block_size}\n"
        f"data      {available:,} training tokens, {len(data.chosen_val_windows()):,} validation windows\n"
        f"          {data.folder}\n"
        f"steps     {trainer.max_steps:,} of {windows * model.block_size:,} tokens: {tokens / 1e6:.1f} M tokens, "
        f"{tokens / available:.1f} passes, {tokens / model.num_params():.1f} tokens a parameter\n"
        f"hardware  {device}, {trainer.precision}, {compiled}"
    )


def _conclude(run: Run, values: dict[str, Any]) -> None:
    best = values["best_val_loss"]
    longer = [*run.address, "ckpt_path=last", f"trainer.max_steps={2 * values['steps']}"]
    log.info(
        f"done      {values['steps']:,} steps, {values['wall_seconds']:.0f} s"
        + (f", best val_loss {best:.4f} at step {values['best_step']}" if best is not None else "")
        + f"\nwatch     tensorboard --logdir {shlex.quote(str(run.logs))}"
        + f"\ntalk      {cli.command('generate', run.address)}"
        + f"\nlonger    {cli.command('train', longer)}"
    )


def _listen_to_logs() -> None:
    log.setLevel(logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, TqdmHandler) for handler in log.handlers):
        log.addHandler(TqdmHandler())
    for noisy in ("lightning.pytorch", "lightning.fabric"):  # what they say at INFO is said by `_introduce`
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def _log_file(run: Run) -> Iterator[None]:
    """train.log gets all that the terminal gets, with the time."""
    handler = logging.FileHandler(run.folder / "train.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's advice that does not fit here."""
    with warnings.catch_warnings():
        for text in (".*does not have many workers.*", ".*isinstance\\(treespec.*", ".*exists and is not empty.*"):
            warnings.filterwarnings("ignore", text)
        yield
