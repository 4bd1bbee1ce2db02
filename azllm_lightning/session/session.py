"""One session of a run: from a config to the end of training, to a stop, or back to a checkpoint and on again."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from azllm_lightning.callbacks.console import TqdmHandler
from azllm_lightning.callbacks.health import RollBack, rolling_back
from azllm_lightning.callbacks.panels import end_panel, start_panel, stopped_line
from azllm_lightning.callbacks.text import paragraph
from azllm_lightning.cli import entrance as cli
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.resume import adapted_accumulation, check_same_run, resumed_config
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.runs.checkpoint_files import step_files, valid_steps
from azllm_lightning.runs.curves import carry_curve
from azllm_lightning.runs.folder import (
    Run,
    claim,
    find_checkpoint,
    load_resumable,
    open_for_resume,
    write_text,
)
from azllm_lightning.session.build import Parts, build, check, model_config, settle
from azllm_lightning.training import batch as micro_batch
from azllm_lightning.training import hardware
from azllm_lightning.training.schedule import lr_factor
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
            config, overrides, automatic = micro_batch.number_under_auto(
                config, overrides, cli.compose
            )
            source, told = None, list(overrides)
            if config.get("ckpt_path") is not None:
                config, source = _lay_over_stored(config, overrides)
                told = list(dict.fromkeys([*source.overrides, *overrides]))
            settings = check(config)
            use_language(config["lang"])
            stop.finishing = tr("finishing this step, then saving (Ctrl+C again: stop at once)")
            stop.at_once = tr("stopped at once, without saving")
            device = hardware.resolve_accelerator(
                settings.trainer.accelerator
            )  # told before the data take their time
            precision = hardware.resolve_precision(settings.trainer.precision, device)
            if automatic:
                micro_batch.check_devices(hardware.num_devices(settings.trainer.devices, device))
            stop.until(settings.trainer.deadline)
            datamodule = TokenDataModule(settings.data, config["seed"])
            datamodule.setup()  # prepares the data too
            if source is not None:  # told before a folder is touched
                datamodule.check_same_data(source.fingerprint)
            tokenizer = datamodule.tokenizer
            model = model_config(
                config, tokenizer.vocab_size, settings.data.block_size, tokenizer.eot_id
            )
            config = settle(config, settings, model, device, precision)
            if automatic:
                config = micro_batch.fitted(config, device, model, settings.optimizer, precision)
            settings = check(config)
            datamodule.config = settings.data
            run = _open_run(config, source)
            _write_down(run, _as_text(config, told), datamodule)
            with _log_file(run):
                try:
                    log.info(
                        start_panel(
                            run,
                            model,
                            datamodule,
                            settings.trainer,
                            settings.optimizer,
                            device,
                        )
                    )
                    steps, last = settings.schedule.total_steps, settings.trainer.max_steps
                    if lr_factor(last - 1, settings.schedule) == 0:
                        log.warning(
                            paragraph(
                                tr(
                                    "the learning rate is 0 from step {step} on, so nothing more "
                                    "is learned: add schedule.total_steps={max_steps}",
                                    step=steps,
                                    max_steps=last,
                                )
                            )
                        )

                    def make(config: dict[str, Any]) -> Parts:
                        text, settings = _as_text(config, told), check(config)
                        return build(config, text, settings, model, datamodule, run, stop, device)

                    _fit(make, config, told, run, source and source.path)
                    return run.folder
                finally:
                    if step_files(run.checkpoints):
                        again = cli.command("train", [*run.address, "ckpt_path=last"])
                    run.release()
    except Stopped:
        raise cli.Resumable(again, tr("resume")) from None


class Source(NamedTuple):
    """The checkpoint that a session resumes from: its step, its data's fingerprint, what its run was started with."""

    path: Path
    step: int
    fingerprint: str
    overrides: list[str]


def _lay_over_stored(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], Source]:
    """The config of the run that ckpt_path belongs to, with `overrides` on top, and its checkpoint."""
    path = find_checkpoint(
        config["ckpt_path"], config["run_name"], Path(config["logs_dir"]), resume=True
    )
    checkpoint = load_resumable(path)
    stored = yaml.safe_load(checkpoint["azllm"]["config"])
    if not stored:
        raise ValueError(
            f"{path} carries no config, for it was not written by azllm_lightning.train"
        )
    merged = resumed_config(stored, config, overrides, cli.compose)
    check_same_run(stored, merged, str(path))
    settings = check(merged)
    device = hardware.resolve_accelerator(settings.trainer.accelerator)
    typed = any(
        text.lstrip("+").startswith("trainer.accumulate_grad_batches=") for text in overrides
    )
    merged["trainer"]["accumulate_grad_batches"] = adapted_accumulation(
        checkpoint["TokenDataModule"]["effective_batch"],
        settings.data.batch_size,
        hardware.num_devices(settings.trainer.devices, device),
        settings.trainer.accumulate_grad_batches if typed else None,
    )
    use_language(merged["lang"])
    log.info(tr("resuming from {path}, step {step:,}", path=path, step=checkpoint["azllm"]["step"]))
    fingerprint = checkpoint["TokenDataModule"]["fingerprint"]
    return merged, Source(
        path, checkpoint["azllm"]["step"], fingerprint, stored.get("overrides", [])
    )


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


def _as_text(config: dict[str, Any], told: list[str]) -> str:
    """The YAML that config.yaml and every checkpoint hold; `told` is what the user typed to get this config."""
    return yaml.safe_dump({**config, "overrides": told}, allow_unicode=True, sort_keys=False)


def _step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a full state; -1 where there is none yet, for then not even step 0 stands."""
    return -1 if checkpoint is None else int(load_resumable(checkpoint)["azllm"]["step"])


def _write_down(run: Run, config: str, datamodule: TokenDataModule) -> None:
    """Put beside the run what it is: its config and its tokenizer."""
    (run.folder / ".hydra").mkdir(exist_ok=True)
    write_text(run.folder / ".hydra" / "config.yaml", config)
    datamodule.tokenizer.save(run.folder / "tokenizer.json")


def _fit(
    make: Callable[[dict[str, Any]], Parts],
    config: dict[str, Any],
    told: list[str],
    run: Run,
    checkpoint: Path | None,
) -> None:
    """Fit to the end, going back to a checkpoint where the numbers broke, and on with less where memory ran out."""
    rollbacks, resumed_from = 0, checkpoint
    while True:
        parts = make(config)
        parts.health.rollbacks = rollbacks
        parts.history.starts_from = None if resumed_from is None else str(resumed_from)
        if checkpoint is None and config["init_from"] is not None:
            parts.module.start_from(config["init_from"])
        try:
            with _quiet():
                parts.trainer.fit(
                    parts.module,
                    datamodule=parts.datamodule,
                    ckpt_path=checkpoint,
                    weights_only=True,
                )
        except Stopped as stopped:
            saved = bool(step_files(run.checkpoints))
            log.info(stopped_line(str(stopped), parts.trainer.global_step, saved))
            if saved:
                parts.summary.write(parts.trainer, parts.module, "stopped")
            raise
        except RollBack as broken:
            rollbacks = parts.health.rollbacks + 1
            if rollbacks > parts.health.config.max_rollbacks or parts.trainer.world_size > 1:
                tried = f"and so after {rollbacks - 1} roll backs too"
                if parts.trainer.world_size > 1:
                    tried = "and a run on several devices cannot roll back"
                raise ValueError(
                    f"{broken}, {tried}: the data or the settings are at fault. Look at the last validations, lower "
                    "optimizer.lr, or try trainer.precision=32-true; "
                    f"the last good state is in {run.checkpoints}"
                ) from None
            step = _step_of(checkpoint)
            whole: list[tuple[int, Path | None]] = list(valid_steps(run.checkpoints))
            before = [found for found in whole if found[0] < broken.first_step]
            # Where all are younger, the oldest will do: the steps left out have changed no weight.
            step, checkpoint = (before or whole[-1:] or [(step, checkpoint)])[0]
            resumed_from = checkpoint
            carry_curve(run.folder, run.folder, step)
            parts.datamodule.skip_steps(broken.first_step, broken.last_step)
            log.warning(rolling_back(broken, checkpoint))
        except torch.OutOfMemoryError:
            start, reached = _step_of(checkpoint), parts.trainer.global_step
            config = micro_batch.halved(config, parts.trainer.world_size)
            parts.module.run_config = _as_text(config, told)
            if reached > max(start, 0) and micro_batch.between_steps(parts.trainer, parts.module):
                parts.periodic.save(parts.trainer)
            newest = (found for found in valid_steps(run.checkpoints) if found[0] <= reached)
            step, checkpoint = next(newest, (start, checkpoint))
            if (
                step > start
            ):  # a state of this session, which knows already what the session came from
                resumed_from = None
            carry_curve(run.folder, run.folder, step)
            _write_down(run, parts.module.run_config, parts.datamodule)
            parts.datamodule.config = check(config).data
            size, accumulate = (
                parts.datamodule.config.batch_size,
                config["trainer"]["accumulate_grad_batches"],
            )
            log.warning(
                paragraph(
                    tr(
                        "out of memory after step {step:,}: "
                        "continuing with micro-batches of {size}, {accumulate} per step",
                        step=reached,
                        size=size,
                        accumulate=accumulate,
                    )
                )
            )
        else:
            break
        parts.datamodule.trainer = None
        del parts
        micro_batch.free_memory()  # only here is the exception gone, and with it what its frames held
    summary = parts.summary.write(parts.trainer, parts.module, "done")
    if parts.io.failed:
        raise OSError(f"training is done, but its last checkpoint was not saved: {parts.io.failed}")
    # More steps do not help a run that overfits or has stopped improving.
    extendable = not parts.diagnosis.overfitting and summary.steps == parts.trainer.max_steps
    last = parts.module.last_validation
    log.info(end_panel(run, parts.history.validations, last, summary, extendable))


def _listen_to_logs() -> None:
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    log.setLevel(
        logging.INFO if first else logging.WARNING
    )  # one of several processes tells how things go
    log.propagate = False
    if not any(isinstance(handler, TqdmHandler) for handler in log.handlers):
        log.addHandler(TqdmHandler())
    for noisy in (
        "lightning.pytorch",
        "lightning.fabric",
    ):  # what they say at INFO stands in the first panel
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
        for text in (
            ".*does not have many workers.*",
            ".*isinstance\\(treespec.*",
            ".*exists and is not empty.*",
        ):
            warnings.filterwarnings("ignore", text)
        yield
