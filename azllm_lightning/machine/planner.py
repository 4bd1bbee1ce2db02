"""A plan for a text, a machine and a time, with alternatives: what `plan` finds out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from azllm_lightning.cli.composition import group_choices
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import with_near_path
from azllm_lightning.cli.overrides import command
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.compose import compose, tried
from azllm_lightning.config.effects import PLANNED, typed_keys
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.verbs import CheckConfig, PlanConfig
from azllm_lightning.data.hints import look
from azllm_lightning.data.pipeline import is_prepared
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.typed import check_typed
from azllm_lightning.data.workers import num_cores
from azllm_lightning.machine.checkup import PARTS, Checkup
from azllm_lightning.planning import rule
from azllm_lightning.planning.choice import Candidate, Choice, Task, choose, longer, setting
from azllm_lightning.planning.models import models_with
from azllm_lightning.planning.speed import EFFICIENCY, Speed
from azllm_lightning.planning.survey import Text, prepared, survey
from azllm_lightning.runs.own_file import has_keys
from azllm_lightning.training import hardware

FORMAT_VERSION = 2
"""Increased when a key of the JSON changes its meaning or is removed."""

KEYS = ("format_version", *PARTS)
"""What every check.json has."""

LONGEST_REPORT = 1_000_000
"""Bytes: some hundred times those of a check.json."""

MEASURED = {
    "cpu": ("products", "disk", "data", "steps"),
    "cuda": ("products", "disk", "data", "steps", "compile"),
}
MINUTES = 1.0
"""What of a check is measured here, and about how long it may take."""

MORE_TEXT = (2, 4, 10)
"""So many times the text: what would it bring?"""

Figures = dict[str, Any]


def make_plan(config: PlanConfig) -> Figures:
    """Read the text, measure the machine, and choose: the content of plan.json.

    Raises ValueError if there is no text, if it cannot be read, if `train` would refuse what was
    typed about it, or if `check` is not a check.json.
    """
    check_typed(config.run.data, config.run.overrides)
    findings = None if config.check is None else read_check(Path(config.check))
    folder = config.run.data.dir
    if folder is not None and is_prepared(Path(folder)):
        text = prepared(config.run.data, Path(folder))
    else:
        _announce(tr("reading the text"))
        text = survey(config.run.data)
    task = task_of(config, text, _assumed(config))
    seconds = 3600 * config.hours
    if findings is None:
        findings = _measured(config, choose(task, seconds))
    task = replace(task, speed=_as_typed(config, Speed.from_check(findings)))
    chosen = choose(task, seconds)
    half = min(choose(task, seconds / 2), chosen, key=lambda each: each.seconds)
    twice = longer(task, seconds, chosen)
    more = [choose(replace(task, text=text.with_more(factor)), seconds) for factor in MORE_TEXT]
    return {
        "format_version": FORMAT_VERSION,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "overrides": list(config.overrides),
        "hours": config.hours,
        "text": {
            **asdict(text),
            "unique_tokens": round(chosen.size.unique_tokens),
            "unused": asdict(look(config.run.data)),
            "mix": config.run.data.mix,
        },
        "machine": {
            **asdict(task.speed),
            "not_measured": findings["steps"]["reason"],
            "cpu_share": findings["steps"].get("cpu_share"),
            "others_share": findings["steps"].get("others_share"),
        },
        "plan": figures(config, chosen),
        "half_the_time": figures(config, half),
        "twice_the_time": figures(config, twice),
        "more_text": [
            {"factor": factor, **asdict(choice.prediction)}
            for factor, choice in zip(MORE_TEXT, more, strict=True)
        ],
    }


def task_of(config: PlanConfig, text: Text, speed: Speed) -> Task:
    """What is given, and what the user has decided."""
    run = config.run
    typed = typed_keys(run.overrides)
    vocab_size = rule.vocab_size(text.train_bytes)
    if text.vocab_size is not None:
        vocab_size = text.vocab_size
    elif run.data.tokenizer is not None:
        vocab_size = Tokenizer.from_file(run.data.tokenizer).vocab_size
    elif "data.vocab_size" in typed:
        vocab_size = run.data.vocab_size
    block_size = rule.block_size(text.train_bytes)
    if "data.block_size" in typed:
        block_size = run.data.block_size
    return Task(
        text,
        speed,
        _candidates(config),
        block_size,
        vocab_size,
        shares_affixes=run.optimizer.shares_affixes,
        starts_from_neighbors=run.init_embeddings == "neighbors",
        starts_with_induction=run.init_attention == "induction",
    )


def figures(config: PlanConfig, choice: Choice) -> Figures:
    """A planned run as plain values."""
    shape = choice.shape
    return {
        "command": command("train", overrides_of(config, choice)),
        "model": choice.candidate.name,
        "parameters": shape.num_params(),
        "vocab_size": shape.vocab_size,
        "block_size": shape.block_size,
        "global_batch_size": choice.batch,
        "micro_batch_size": choice.micro_batch,
        "steps": choice.steps,
        "tokens": choice.tokens,
        "branches": choice.branches,
        "passes": choice.passes,
        **asdict(choice.regularization),
        "seconds": choice.seconds,
        "prepare_seconds": choice.prepare_seconds,
        "time_error": choice.time_error,
        "disk_bytes": choice.disk_bytes,
        "memory_bytes": choice.memory_bytes,
        **asdict(choice.prediction),
    }


def overrides_of(config: PlanConfig, choice: Choice) -> list[str]:
    """The overrides of the command: what was typed, and what the plan chose that is not so yet."""
    given = [*_kept(config), *choice.candidate.overrides]
    run = tried(tuple(given))
    values = choice.values()
    if not _divides(run, choice.batch):
        values["trainer.micro_batch_size"] = "auto"
    omitted = _omitted(run)
    changed = {
        key: value
        for key, value in values.items()
        if key not in omitted and attrgetter(key)(run) != value
    }
    others = [text for text in given if not typed_keys([text]) & changed.keys()]
    return [*others, *(setting(key, value) for key, value in changed.items())]


def read_check(path: Path) -> Figures:
    """The content of a check.json; ValueError if it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = tr(
            "check={path}: no such file; make it with python -m azllm_lightning.check out={path} "
            "on the machine that will train",
            path=path,
        )
        raise ValueError(with_near_path(message, path, _is_report)) from None
    except OSError as error:
        raise ValueError(
            tr("check={path}: {error}", path=path, error=system_reason(error))
        ) from None
    except ValueError:  # not JSON, or not even text
        values = None
    if not isinstance(values, dict) or not set(KEYS) <= values.keys():
        raise ValueError(
            tr(
                "check={path} is not a report of check: make one with python -m "
                "azllm_lightning.check on that machine",
                path=path,
            )
        )
    return values


def _is_report(path: Path) -> bool:
    """Whether `read_check` would read `path`; what is too long for that is not looked into."""
    is_short = path.is_file() and path.stat().st_size < LONGEST_REPORT
    return is_short and has_keys(path, *KEYS)


def _omitted(run: RunConfig) -> set[str]:
    """The settings of a plan that `train` would refuse next to what was typed."""
    found = set()
    if run.data.tokenizer is not None:
        found.add("data.vocab_size")  # the tokenizer has it
    if not isinstance(run.optimizer, MuonConfig):
        found.add("optimizer.adam_weight_decay")
    return found


def _kept(config: PlanConfig) -> list[str]:
    """What was typed and is not for the plan to choose, and the text, for which `train` has another
    default.
    """
    planned = set(PLANNED.split())
    kept = [text for text in config.run.overrides if not typed_keys([text]) & planned]
    return kept if _names_data(tuple(kept)) else ["data=text", *kept]


@cache
def _names_data(overrides: tuple[str, ...]) -> bool:
    """Whether `overrides`, or their experiment, choose a file of conf/data."""
    typed = typed_keys(overrides)
    if "data" in typed or "experiment" not in typed:
        return "data" in typed
    return group_choices("train", overrides)["data"] != "tales"


def _candidates(config: PlanConfig) -> Sequence[Candidate]:
    """The models to choose from: all that go with what was typed, or the one that it names."""
    run = config.run
    found = () if "model" in typed_keys(run.overrides) else models_with(_kept(config))
    if len({candidate.model for candidate in found}) > 1:
        return found
    return [Candidate((), run.model)]  # no choice is left


def _divides(run: RunConfig, batch: int) -> bool:
    """Whether the micro-batch stays as it is: `auto`, or typed for batches such as this one."""
    micro = run.trainer.micro_batch_size
    is_typed = "trainer.micro_batch_size" in typed_keys(run.overrides)
    return micro == "auto" or (is_typed and batch % micro == 0)


def _device(config: PlanConfig) -> str:
    """The type of the device that is measured here."""
    settings = config.run.trainer
    try:
        return hardware.resolve_accelerator(settings.accelerator, settings.devices)
    except ValueError:
        return "cpu"


def _as_typed(config: PlanConfig, speed: Speed) -> Speed:
    """`speed` with the trainer.compile of the run."""
    setting = config.run.trainer.compile
    if setting == "auto":
        return speed
    return replace(speed, can_compile=bool(setting), always_compiles=bool(setting))


def _assumed(config: PlanConfig) -> Speed:
    """The speed of this machine before steps are measured, from its matrix products."""
    device = _device(config)
    speed = _as_typed(config, Speed.assumed(device, num_cores()))
    if config.check is not None:
        return speed
    precision = hardware.resolve_precision(config.run.trainer.precision, device)
    flops = EFFICIENCY * hardware.matmul_flops(device, precision)
    return replace(speed, flops=flops, optimizer_flops=flops)


def _measured(config: PlanConfig, choice: Choice) -> Figures:
    """A short check of this machine with the model that is likely to be chosen."""
    _announce(tr("measuring this machine for about a minute"))
    # Compiling the model would take the minute; what it gains is known, where it works.
    overrides = [*overrides_of(config, choice), "trainer.compile=false"]
    check = CheckConfig(
        lang=config.lang,
        overrides=tuple(overrides),
        out="check.json",
        minutes=MINUTES,
        run=compose(overrides),
    )
    return Checkup(check, MEASURED[_device(config)]).run()


def _announce(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
