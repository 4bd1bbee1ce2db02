"""What a resumed run is: the stored settings, with what was typed on top, as far as that leaves it the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

Config = dict[str, Any]

FRESH = ("ckpt_path", "init_from", "logs_dir")
"""Keys that say how this session starts, and are never taken from a stored config."""

CODE = ("callbacks", "logger")
"""Groups whose `_target_` entries name code to run: those come from the user's own config, never from a file."""

FIXED = {
    "seed": ("seed",),
    "model shape": ("model",),
    "context": ("data", "block_size"),
    "optimizer": ("optimizer", "name"),
}
"""What makes a run this run; a change of these is another run."""


def resumed_config(
    stored: Config,
    composed: Config,
    overrides: Sequence[str],
    compose: Callable[[Sequence[str]], Config],
) -> Config:
    """The stored config with `overrides` on top; `composed` is the config that they make over the defaults.

    A group choice (model=tiny, +experiment=t4) that the run was started with is no news; another one brings the values
    in which it differs from the defaults (`compose` tells them).
    """
    config = {key: value for key, value in copy.deepcopy(stored).items() if key != "overrides"}
    started_with = set(stored.get("overrides", []))
    defaults: Config | None = None
    for text in overrides:
        override = OverridesParser.create().parse_override(text)
        key, path = override.key_or_group, override.key_or_group.split(".")
        if override.is_delete():
            _delete(config, path)
        elif _is_group(key, composed):
            if text in started_with:
                continue
            defaults = compose([]) if defaults is None else defaults
            _overlay(config, defaults, compose([text]))
        else:
            _set(config, path, _get(composed, path))
    for group in (
        "data",
        "schedule",
        "trainer",
        "callbacks",
    ):  # keys younger than the run, at their defaults
        _fill(config[group], composed[group])
    for key in FRESH:
        config[key] = composed[key]
    for group in CODE:
        kept = {k: v for k, v in config[group].items() if not _has_target(v)}
        config[group] = kept | {k: v for k, v in composed[group].items() if _has_target(v)}
    return config


def check_same_run(stored: Config, config: Config, path: str) -> None:
    """Raise ValueError where `config` would make the checkpoint `path` another run, with both values."""
    problems = []
    for name, keys in FIXED.items():
        before, now = _get(stored, list(keys)), _get(config, list(keys))
        if name == "model shape":
            before, now = (
                {k: v for k, v in part.items() if k != "dropout"} for part in (before, now)
            )
            changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
            problems += [
                f"model.{k}: {before.get(k)} in the checkpoint, {now.get(k)} asked for"
                for k in changed
            ]
        elif before != now:
            problems.append(f"{'.'.join(keys)}: {before} in the checkpoint, {now} asked for")
    if problems:
        raise ValueError(
            f"{path} cannot be resumed with other settings of the run itself:\n  "
            + "\n  ".join(problems)
            + "\nLeave these out, or start a new run (its weights can be the start: init_from=...)"
        )


def adapted_accumulation(
    effective_batch: int, batch_size: int, devices: int, asked: int | None
) -> int:
    """Micro-batches per step that keep `effective_batch` windows; ValueError where `batch_size` cannot divide it.

    `asked` is trainer.accumulate_grad_batches if it was typed, and must then agree.
    """
    share = batch_size * devices
    if effective_batch % share or (asked is not None and asked * share != effective_batch):
        fits = ", ".join(
            str(b) for b in range(1, effective_batch + 1) if effective_batch % (b * devices) == 0
        )
        raise ValueError(
            f"the run takes {effective_batch} windows a step; data.batch_size={batch_size} x {devices} device(s)"
            + (f" x trainer.accumulate_grad_batches={asked}" if asked is not None else "")
            + f" does not make that. data.batch_size can be one of {fits}, without trainer.accumulate_grad_batches"
        )
    return effective_batch // share


def _is_group(key: str, composed: Config) -> bool:
    return key == "experiment" or ("." not in key and isinstance(composed.get(key), dict))


def _overlay(config: Config, base: Config, changed: Config) -> None:
    for key, value in changed.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _overlay(config.setdefault(key, {}), base[key], value)
        elif key not in base or base[key] != value:
            config[key] = value


def _fill(config: Config, defaults: Config) -> None:
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _fill(config[key], value)
        else:
            config.setdefault(key, copy.deepcopy(value))


def _get(config: Config, path: list[str]) -> Any:
    for key in path:
        config = config[key]
    return config


def _set(config: Config, path: list[str], value: Any) -> None:
    for key in path[:-1]:
        config = config.setdefault(key, {})
    config[path[-1]] = value


def _delete(config: Config, path: list[str]) -> None:
    for key in path[:-1]:
        config = config.get(key, {})
    config.pop(path[-1], None)


def _has_target(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
