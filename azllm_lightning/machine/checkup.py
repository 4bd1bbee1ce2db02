"""All measurements of a check, in order, within its time; each may fail without ending the rest."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from azllm_lightning.callbacks.text import duration
from azllm_lightning.cli.messages import tr, trn
from azllm_lightning.config.data import as_list
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.verbs import CheckConfig
from azllm_lightning.data.shards import MANIFEST
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.machine.advice import advice
from azllm_lightning.machine.experiment import (
    Experiment,
    measure_steps,
    proof_seconds,
    prove_resume_exact,
)
from azllm_lightning.machine.facts import machine_facts
from azllm_lightning.machine.isolated import isolated, one_line
from azllm_lightning.machine.loading import measure_data
from azllm_lightning.machine.products import TYPE_OF_PRECISION
from azllm_lightning.machine.random_text import random_text
from azllm_lightning.machine.sample import Sample, sample, step_seconds
from azllm_lightning.machine.storage import measure_disk
from azllm_lightning.runs.model_paths import read_tokenizer
from azllm_lightning.training import hardware
from azllm_lightning.training.batch import check_devices

FORMAT_VERSION = 1
"""Increased when a key of check.json changes its meaning or is removed."""

PARTS = ("products", "disk", "data", "steps", "resume", "compile")

SHARE_OF_STEPS = 0.25
"""Share of the time left that the steps should take, so that a resume fits as well."""

STARTUP_SECONDS = 10
"""About what a training process takes besides its steps."""

LEAST_SECONDS = 20
"""What each process may take even if the time is over."""

COMPILE_SECONDS = 45
"""The same for torch.compile, which is tried last, and gets at most twice as much."""

DOCUMENTS = 400
"""Documents of random text, 512 tokens each."""


class Skipped(Exception):
    """A part is not measured, for a reason that is no failure."""


class Checkup:
    """The measurements of one check, of `parts`; `run` returns the content of check.json.

    A part is a mapping with "status" (ok, failed, skipped, interrupted), "reason" (None if ok),
    "timed_out" (whether it was skipped because it took too long), "seconds", and its figures if it
    is ok.
    """

    def __init__(self, config: CheckConfig, parts: Sequence[str] = PARTS) -> None:
        self.config = config
        self.parts = parts
        self.findings: dict[str, Any] = {}
        self._started = time.monotonic()
        self._folder = Path()
        self._sample: Sample | None = None
        self._experiment: Experiment | None = None

    def run(self) -> dict[str, Any]:
        """Measure everything; Ctrl+C ends it with what there is."""
        log = logging.getLogger("azllm_lightning")
        level = log.level
        log.setLevel(logging.CRITICAL)  # the table has what matters
        device, missing = self._device()
        self.findings = {
            "format_version": FORMAT_VERSION,
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "overrides": list(self.config.overrides),
            "interrupted": False,
            "machine": machine_facts(device),
            "missing_device": missing,
            "experiment": None,
        }
        measure: dict[str, Callable[[], dict[str, Any]]] = {
            "products": self._products,
            "disk": self._disk,
            "data": self._data,
            "steps": self._steps,
            "resume": self._resume,
            "compile": self._compile,
        }
        try:
            with tempfile.TemporaryDirectory(
                prefix="azllm-check-", ignore_cleanup_errors=True
            ) as name:
                self._folder = Path(name)
                for part in PARTS:
                    self._measure(part, measure[part])
        finally:
            log.setLevel(level)
        self.findings["seconds"] = time.monotonic() - self._started
        self.findings["advice"] = advice(self.findings)
        return self.findings

    @property
    def left(self) -> float:
        """Seconds until the time of this check is over."""
        return 60 * self.config.minutes - (time.monotonic() - self._started)

    def _measure(self, part: str, function: Callable[[], dict[str, Any]]) -> None:
        """One part; whatever happens in it becomes its status."""
        started = time.monotonic()
        figures: dict[str, Any] = {}
        status, reason, timed_out = "ok", None, False
        try:
            if self.findings["interrupted"]:
                raise KeyboardInterrupt
            if part not in self.parts:
                raise Skipped(tr("not asked for"))
            figures = function()
        except KeyboardInterrupt:
            self.findings["interrupted"] = True
            status, reason = "interrupted", tr("not measured: stopped by Ctrl+C")
        except (Skipped, TimeoutError) as why:
            status, reason = "skipped", str(why)
            timed_out = isinstance(why, TimeoutError)
        except Exception as error:
            status, reason = "failed", one_line(error)
        seconds = time.monotonic() - started
        self.findings[part] = {
            "status": status,
            "reason": reason,
            "timed_out": timed_out,
            "seconds": seconds,
            **figures,
        }

    def _device(self) -> tuple[str, str | None]:
        """The device type of the run, and the reason if it is not the one that it asks for."""
        settings = self.config.run.trainer
        try:
            device = hardware.resolve_accelerator(settings.accelerator, settings.devices)
            return device, None
        except ValueError as error:
            return "cpu", one_line(error)

    def _products(self) -> dict[str, Any]:
        self._announce(tr("matrix products"))
        device = self.findings["machine"]["device"]
        target = "azllm_lightning.machine.products:measure_products"
        return {"types": isolated(target, device, seconds=self._limit(60))}

    def _disk(self) -> dict[str, Any]:
        self._announce(tr("disk of {folder}", folder=self.config.run.logs_dir))
        return measure_disk(Path(self.config.run.logs_dir))

    def _data(self) -> dict[str, Any]:
        self._announce(tr("data"))
        given = self.config.run.data.dir
        folder = Path(given).absolute() if given is not None else None
        is_random = folder is None or not (folder / MANIFEST).is_file()
        if folder is None or is_random:
            folder = self._folder / "data"
            block_size = self.config.run.data.block_size
            documents = max(DOCUMENTS, 2 * block_size)
            data = self.config.run.data
            source = {"name": data.name, "path": data.path, "val_path": data.val_path}
            vocabulary = _tokenizer(self.config.run) or data.vocab_size
            random_text(folder, vocabulary, documents, source)
        run = _without_mix(self.config.run) if is_random else self.config.run
        figures = measure_data(run, folder)
        self._experiment = self._opened(run, folder)
        self.findings["experiment"] = self._size(self._experiment)
        return {**figures, "is_random_text": is_random}

    def _opened(self, run: RunConfig, folder: Path) -> Experiment:
        tokenizer = Tokenizer.from_file(folder)
        shape = run.model.for_data(tokenizer.vocab_size, run.data.block_size, tokenizer.eot_id)
        device = self.findings["machine"]["device"]
        return Experiment(run, run.overrides, device, shape, folder, self._folder)

    def _size(self, experiment: Experiment) -> dict[str, Any]:
        """What the run is, without any measurement but that of the products."""
        run = self.config.run
        tokens = run.trainer.global_batch_size * run.data.block_size
        flops = run.trainer.max_steps * tokens * experiment.shape.flops_per_token()
        return {
            "run_name": run.run_name,
            "num_params": experiment.shape.num_params(),
            "max_steps": run.trainer.max_steps,
            "tokens_per_step": tokens,
            "flops_per_token": experiment.shape.flops_per_token(),
            "least_hours": flops / self._flops(experiment) / 3600,
        }

    def _steps(self) -> dict[str, Any]:
        if self._experiment is None:
            raise Skipped(tr("there is no data for it"))
        run = self.config.run
        devices = hardware.num_devices(run.trainer.devices, self._experiment.device)
        check_devices(run, devices)
        flops = self._flops(self._experiment)
        left = max(0.0, self.left - STARTUP_SECONDS)
        shares = [SHARE_OF_STEPS * left, 0.9 * left]
        samples = [
            sample(run, self._experiment.shape, flops, seconds, devices) for seconds in shares
        ]
        self._sample = next((found for found in samples if found is not None), None)
        if self._sample is None:
            needed = 2 * step_seconds(run, self._experiment.shape, devices, flops)
            raise Skipped(
                trn(
                    "two steps of {count} sequence would take about {duration}: set "
                    "minutes={minutes}",
                    "two steps of {count} sequences would take about {duration}: set "
                    "minutes={minutes}",
                    devices,
                    duration=duration(needed),
                    minutes=math.ceil(needed / 60) + 2,
                )
            )
        self._announce(
            tr(
                "{steps} steps of {name}, {sequences} x {block_size} tokens each",
                steps=self._sample.steps,
                name=run.run_name,
                sequences=self._sample.sequences,
                block_size=run.data.block_size,
            )
        )
        products = self.findings["products"].get("types", {})
        return measure_steps(self._experiment, self._sample, products, self._limit(self.left))

    def _flops(self, experiment: Experiment) -> float:
        """FLOP/s of the products of this run, as measured or else assumed."""
        config = self.config.run.trainer
        precision = hardware.resolve_precision(config.precision, experiment.device)
        number_type = TYPE_OF_PRECISION[precision]
        found = self.findings["products"].get("types", {}).get(number_type, {})
        return float(found.get("flops_per_second") or hardware.expected_flops(experiment.device))

    def _resume(self) -> dict[str, Any]:
        steps = self.findings["steps"]
        if self._experiment is None or self._sample is None or steps["status"] != "ok":
            raise Skipped(tr("there are no steps to compare with"))
        expected = proof_seconds(self._experiment, self._sample, steps)
        if expected > self.left:
            raise Skipped(
                tr(
                    "not proved: it would take about {seconds:.0f} s, and the time is over: set a "
                    "larger minutes=, or run prove_resume",
                    seconds=expected,
                )
            )
        self._announce(tr("the same once more, resumed after step {step}", step=self._sample.half))
        return prove_resume_exact(self._experiment, self._sample, self._limit(2 * self.left))

    def _compile(self) -> dict[str, Any]:
        self._announce(tr("torch.compile of a small function"))
        device = self.findings["machine"]["device"]
        target = "azllm_lightning.machine.compiling:compile_small_function"
        return isolated(
            target, device, seconds=min(2 * COMPILE_SECONDS, max(COMPILE_SECONDS, self.left))
        )

    def _limit(self, seconds: float) -> float:
        """How long a process may take that should take no more than `seconds`."""
        return max(LEAST_SECONDS, seconds)

    def _announce(self, what: str) -> None:
        elapsed = duration(time.monotonic() - self._started)
        print(f"{elapsed:>10}  {what}", file=sys.stderr, flush=True)


def _without_mix(run: RunConfig) -> RunConfig:
    """`run` on text without sources; a mix only chooses windows, which takes no time."""
    overrides = (*run.overrides, "data.mix=null")
    return replace(run, data=replace(run.data, mix=None), overrides=overrides)


def _tokenizer(run: RunConfig) -> Tokenizer | None:
    """The tokenizer that the text of `run` must have; None if one is trained on it.

    Raises ValueError if there is none at the place that is given.
    """
    if run.data.tokenizer is not None:
        return Tokenizer.from_file(run.data.tokenizer)
    models = [("teachers", path) for path in run.teacher_paths]
    models += [("init_from", path) for path in as_list(run.init_from)]
    found = [read_tokenizer(key, path, Path(run.logs_dir)) for key, path in models]
    return found[0] if found else None
